"""Further normal images taken into a trained model that keeps a memory bank, without those that it was trained on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from datasets import ClassSamples, ImageDataset, Sample, images_in, require_images, split, with_interest
from detection.checkpoint import save
from detection.description import MASK, Description
from detection.memory_bank import Extensible
from detection.precision import precision_name
from errors import UsageError
from experiment.dataset_config import DatasetConfig
from experiment.machine.device import choose_device, choose_precision
from experiment.machine.memory import one_line_when_full
from experiment.model_config import ExtendConfig
from experiment.plan.reading import look_at
from experiment.train.banks import embed_all
from experiment.train.embeddings import Predictions
from experiment.train.finish import thresholds_of
from experiment.train.tiles import tiles_to_train_on
from experiment.train.training_set import TrainingEmbeddings, TrainingSet
from files import new_folder
from methods import load


def extend(config: ExtendConfig) -> int:
    """Write a model of its own: the one that is there with the images taken in, at thresholds of these.

    Returns:
        The exit code, 0.

    Raises:
        UsageError: no such model or folder, a model without a memory bank, or a folder that is there already.
        DataError: a folder without images, an image or a model that cannot be used, images of another size than those
            that it was trained on, or no memory or room.
    """
    if not config.folder.is_dir():
        raise UsageError(f"'{config.folder}' is not a folder: expected one with further normal images")
    if config.out.exists():
        raise UsageError(f"'{config.out}' is there already: give another --out, the model in it stays as it is")
    with one_line_when_full():
        device = choose_device((config.gpu,))
        model = load(config.model_dir, device, config.backbone_weights)
        detector, description = model.detector, model.description
        description.check_mask(config.model_dir, config.mask_of_interest)
        if not isinstance(detector, Extensible):
            raise UsageError(
                f"'{config.model_dir}' is a model of {description.detector}, which keeps no memory bank to extend: "
                "train it again with all images"
            )
        choose_precision(precision_name(description.dtype), device)  # TF32 as in training
        data = DatasetConfig(
            description.dataset,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
            reading=model.transform.reading,
            **description.transform,
            **_options_of_tiles(description),
        )
        samples = _samples(config.folder, description.class_name, config.train_val_split)
        if description.keeps_mask:
            samples = with_interest(samples, config.model_dir / MASK, config.folder)
        elif config.mask_of_interest is not None:
            samples = with_interest(samples, config.mask_of_interest, config.folder)
        found = look_at(data, description.title, samples, description.image_sizes)
        for note in found.notes:
            click.echo(note, err=True)
        samples = found.samples
        transform = data.test_transform
        train = embed_all(description.title, detector, ImageDataset(samples.train, transform), data)
        if sentence := train.seen.sentence(description.title, transform):
            click.echo(sentence, err=True)
        own = train  # what thresholds come from
        if samples.validation:
            own = embed_all(description.title, detector, ImageDataset(samples.validation, transform), data)
        chosen = tiles_to_train_on(description.title, samples, data)
        lesson = TrainingSet(samples, data, train.bank, chosen)
        detector.extend(TrainingEmbeddings([detector], [lesson], description.seed))
        normal = Predictions(
            detector,
            samples.validation or samples.train,
            data,
            own.bank,
            brightness=own.brightness,
            as_new=not samples.validation,
        )
        thresholds = thresholds_of(samples, normal, description.thresholds.quantile, None)
        extended = replace(description, thresholds=thresholds, metrics={})  # of test images nothing is known yet
        with new_folder(config.out) as folder:
            save(folder, detector, extended, model.mask)
    click.echo(
        f"{len(samples.train)} images taken in; image threshold {description.thresholds.image:.4g} became "
        f"{thresholds.image:.4g}; written to {config.out}",
        err=True,
    )
    click.echo(thresholds.said, err=True)
    return 0


def _options_of_tiles(description: Description) -> dict[str, Any]:
    """The options of dataset that a model's tiles were asked for by."""
    if description.tiles is None:
        return {}
    tiles = dict(description.tiles)
    return {"tile": f"{tiles.pop('width')}x{tiles.pop('height')}", **tiles}


def _samples(folder: Path, class_name: str, share: float) -> ClassSamples:
    """The images in a folder and all below it: a share of them to take in, the rest held out.

    Raises:
        DataError: there are none, or none that is not held out.
    """
    paths = images_in(folder, recursive=True)
    require_images(paths, folder)
    samples = [Sample(path, (), False, class_name, "good") for path in paths]
    train, held_out = split(samples, share)
    return ClassSamples(train, [], held_out)
