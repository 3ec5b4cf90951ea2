"""What a command line names, found and checked: classes, images and backbones."""

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import backbones
from datasets import DATASETS, drawn, find_root, folders_in, remarks_on_masks, split, with_interest
from errors import DataError, UsageError
from experiment.dataset_config import DatasetConfig
from experiment.detector_config import BackboneConfig, BackboneOptions, DetectorConfig
from experiment.plan.reading import ClassFound, look_at
from methods import DETECTORS

Known = dict[tuple[Any, ...], ClassFound]  # classes that were looked at, by where they are and how they are read


def find_classes(data: DatasetConfig) -> tuple[Path, list[str]]:
    """The dataset's root folder and the classes to run: those asked for, else all.

    Raises:
        UsageError: an unknown dataset or class, or a path that is left out or missing.
        DataError: no class under the path, or several folders that hold some.
    """
    if data.name not in DATASETS:
        raise UsageError(f"unknown dataset '{data.name}'{_nearest(data.name, list(DATASETS))}")
    reader = data.reader
    if data.data_path is None and reader.default_root is None:
        kind = "FILE" if reader.is_file else "PATH"
        raise UsageError(f"dataset '{data.name}' needs a DATA_PATH: dataset [options] {data.name} {kind}")
    path = data.data_path if data.data_path is not None else reader.default_root()
    if reader.is_file:
        if not path.is_file():
            raise UsageError(f"DATA_PATH '{path}' is not a file: expected {reader.layout}")
    elif not path.is_dir():
        raise UsageError(f"DATA_PATH '{path}' is not a folder")
    root, known = find_root(reader, path)
    for name in known:
        if Path(name).name != name:
            raise DataError(f"dataset '{data.name}' in '{root}' names class '{name}', which is no folder's name")
    if not data.subdatasets and not reader.is_file:
        folders_in(root, complete=True)  # no class may be left out for a link to nothing
    classes = list(dict.fromkeys(data.subdatasets)) or known
    for name in classes:
        if name not in known:
            raise UsageError(f"dataset '{data.name}' has no class '{name}' in '{root}'{_nearest(name, known)}")
    return root, classes


def read_samples(data: DatasetConfig, root: Path, class_name: str, known: Known, seed: int = 0) -> ClassFound:
    """The images of a class; a share of the normal ones, or of those drawn, is trained on, the rest held out.

    How masks are read is among the notes where it could have been meant otherwise.

    Args:
        data, root, class_name: which class.
        known: what was looked at before; what is missing is added. All runs of a command line read a class.
        seed: of what is drawn.

    Raises:
        DataError: what the dataset's reader, look_at, drawn and split raise.
    """
    key = data.name, data.options, data.reading, data.mask_of_interest, root, class_name
    if key not in known:
        samples = data.reader.read_class(root, class_name)
        if data.mask_of_interest is not None:
            samples = with_interest(samples, data.mask_of_interest, root)
        found = look_at(data, f"{data.name}_{class_name}", samples)
        said = remarks_on_masks(found.samples.test, found.samples.doubts, found.reading)
        known[key] = replace(found, notes=(*found.notes, *(f"{class_name}: {remark}" for remark in said)))
    samples = drawn(known[key].samples, data.shots, data.contamination, seed)
    train, held_out = split(samples.train, data.train_val_split)
    return replace(known[key], samples=replace(samples, train=train, validation=samples.validation + held_out))


def notes_of_roots(datasets: Sequence[DatasetConfig], roots: Sequence[Path]) -> list[str]:
    """What is said of datasets that lie in another folder than the one that is named."""
    return [
        f"Reading dataset '{data.name}' from '{root}'"
        for data, root in zip(datasets, roots, strict=True)
        if data.data_path not in (None, root)
    ]


def load_backbone(
    backbone: BackboneConfig, config: DetectorConfig | BackboneOptions, seed: int, size: tuple[int, int]
) -> backbones.FeatureExtractor:
    """A backbone whose layers are known to exist and to see all of images of (height, width); says what they are.

    Raises:
        UsageError: an unknown backbone or layer, no layer, or images of a size that leaves borders unseen.
    """
    own = backbones.normalisation_of(backbone.name, config.normalisation)
    extractor = backbones.load(backbone.name, config.backbone_weights, backbone.seed_in(seed), own)
    if not backbone.layers:
        raise UsageError(
            f"-b {backbone.label} needs layers, such as -le layer2: its layers are {', '.join(extractor.layers())}"
        )
    infos = extractor.layer_info(backbone.layers, size)
    extractor.check_size(backbone.layers, size)
    if backbone.name == backbones.PIXELS:
        return extractor
    shown = ", ".join(f"{i.name} ({i.channels} channels, stride {i.stride}, {i.grid[0]} x {i.grid[1]})" for i in infos)
    click.echo(f"{backbone.label}: {shown}", err=True)
    for name in backbone.name.split(backbones.TOGETHER):
        theirs = backbones.normalisation_of(name)
        if own != theirs:
            click.echo(
                f"{name}: its weights were trained with {theirs}, not with ImageNet's {own}, which images are "
                "normalised by: --normalisation model takes its own",
                err=True,
            )
    return extractor


def check_detector(
    extractor: backbones.FeatureExtractor,
    backbone: BackboneConfig,
    config: DetectorConfig,
    size: tuple[int, int],
    is_masked: bool = False,
) -> list[str]:
    """See that a detector can be built on a backbone and, where they are masked, leave out parts of images.

    Returns:
        What is to be said of its options.

    Raises:
        UsageError: it cannot, with these options.
    """
    with backbones.shapes_only():
        kind = DETECTORS[config.command].variant(config.options)
        detector = kind(extractor, backbone.layers, size, **config.options)
        detector.check()
        if is_masked and detector.not_masked:
            raise UsageError(f"--mask_of_interest is not for {config.command} as it is here: {detector.not_masked}")
    return list(detector.notes)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {near[0]}? It has {', '.join(known)}" if near else f": known are {', '.join(known)}"
