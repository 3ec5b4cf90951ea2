"""Thresholds of a trained model set anew by fresh good images, in a copy of it, and what is known of them."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

from datasets import reader_count
from detection import Prediction, TrainedModel, is_anomalous
from detection.brightness import like
from detection.decision import FRESH, SURE, Thresholds, allowed_above, images_needed, share_interval
from detection.description import EACH, MASK, WEIGHTS, write_description
from detection.normal_scores import NormalScores, normal_scores
from detection.precision import precision_name
from detection.whole_images import predicted
from errors import DataError, UsageError
from experiment.machine.device import choose_device, choose_precision
from experiment.machine.memory import Halving, one_line_when_full
from experiment.machine.progress import progress
from experiment.model_config import CalibrateConfig
from experiment.use.inputs import Inputs, Item, allowing, images_at_once, read_ahead
from experiment.use.interest import MaskOf, masks_for
from experiment.use.unused import refuse_unused_weights
from files import new_folder, readable
from methods import load

ADVICE = "lower --batch_size, or choose another --gpu"
FAR = 3  # interquartile ranges above the upper quartile: Tukey's outer fence


def calibrate(config: CalibrateConfig) -> int:
    """Write a copy of a model with thresholds of fresh good images, and say what is known of them.

    Returns:
        The exit code, 0.

    Raises:
        UsageError: no such model or folder, a model of a table, an image that is good and bad, or a folder that is
            there already.
        DataError: a folder without images, an image or a model that cannot be used, or no memory or room.
    """
    if config.out.exists():
        raise UsageError(f"'{config.out}' is there already: give another --out, the model in it stays as it is")
    good = _images(config.folder, "fresh good images")
    bad = [] if config.bad is None else _images(config.bad, "bad images")
    _refuse_common(good, bad)
    with one_line_when_full(ADVICE):
        device = choose_device((config.gpu,))
        model = load(config.model_dir, device, config.backbone_weights)
        refuse_unused_weights(model, config.backbone_weights)
        if model.table is not None:
            raise UsageError(f"'{config.model_dir}' is a model of a table, and calibrate is of images")
        choose_precision(precision_name(model.description.dtype), device)  # TF32 as in training
        levels: list[float] = []
        mask_of = masks_for(model, config.model_dir, config.mask_of_interest)
        if model.description.mask_of_interest == EACH:
            _refuse_one_name(good, bad)
        predictions = _predictions(model, good, config, "good", levels, mask_of)
        scores, pixel = normal_scores(predictions, len(good), 1 - config.false_alarms)
        found = [own.scores.cpu().numpy() for own in _predictions(model, bad, config, "bad", [], mask_of)]
        thresholds = _thresholds(model, scores, pixel, config.false_alarms, np.array(levels))
        with new_folder(config.out) as folder:
            for name in (WEIGHTS, *([MASK] if model.description.keeps_mask else [])):
                shutil.copyfile(config.model_dir / name, folder / name)
            write_description(folder, replace(model.description, thresholds=thresholds))
    before = model.thresholds.image
    click.echo(f"Image threshold {before:.4g} became {thresholds.image:.4g}; written to {config.out}", err=True)
    for line in _said(config.false_alarms, good, scores, thresholds):
        click.echo(line, err=True)
    if bad:
        click.echo(_found(np.concatenate(found), thresholds.image), err=True)
    return 0


def _images(folder: Path, of: str) -> list[Item]:
    """Those in a folder and in all below it; what is left out is said."""
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is not a folder: expected one with {of}")
    inputs = Inputs((str(folder),))
    if inputs.said:
        click.echo(f"'{folder}': {inputs.said}", err=True)
    return list(inputs)


def _refuse_common(good: Sequence[Item], bad: Sequence[Item]) -> None:
    places = {os.path.realpath(item.path) for item in good}
    if common := [item.path for item in bad if os.path.realpath(item.path) in places]:
        raise UsageError(
            f"'{common[0]}'{f' and {len(common) - 1} more' if common[1:] else ''} would be good and bad: the folder of "
            "good images must hold none of --bad's"
        )


def _refuse_one_name(good: Sequence[Item], bad: Sequence[Item]) -> None:
    names = {item.relative.with_suffix("") for item in good}
    if common := [item.path for item in bad if item.relative.with_suffix("") in names]:
        raise UsageError(f"'{common[0]}' has the name of a good image, and so its mask of interest: rename it")


def _predictions(
    model: TrainedModel,
    items: Sequence[Item],
    config: CalibrateConfig,
    name: str,
    levels: list[float],
    mask_of: MaskOf | None,
) -> Iterator[Prediction]:
    """What the model says of images, in batches; `levels` takes their brightness.

    Raises:
        DataError: one cannot be read, or has a score that is no number.
    """
    score = Halving(model.detector.predict_read, "prediction", Prediction.joined, ADVICE)
    transform = allowing(model.transform, config.max_pixels)
    at_once, ahead = images_at_once(model.tiling, config.batch_size)
    stream = read_ahead(iter(items), transform, reader_count(config.num_workers), ahead, False, mask_of)
    with progress(name, total=len(items), unit="image") as bar:
        while batch := list(islice(stream, at_once)):
            if broken := [item for item in batch if item.error]:
                raise DataError(f"{broken[0].error}; mend it or take it out: no image is left out of a calibration")
            levels += [item.brightness for item in batch]
            images = torch.stack([item.tensor for item in batch])
            prediction = predicted(score, images, model.tiling, config.batch_size)
            if not prediction.scores.isfinite().all():
                raise DataError(f"the model gives '{batch[0].path}' or an image after it a score that is no number")
            yield prediction
            bar.update(len(batch))


def _thresholds(
    model: TrainedModel,
    scores: NDArray[np.float32],
    pixel: float | None,
    share: float,
    levels: NDArray[np.floating],
) -> Thresholds:
    """The thresholds by fresh scores [N] of normal images, of which as few lie above as `share` allows."""
    normal = NormalScores.of(scores)
    return Thresholds(
        threshold_of(scores, share),
        pixel,
        1 - share,
        FRESH,
        len(scores),
        above=allowed_above(share, len(scores)),
        unseen=len(scores),
        brightness=None if model.detector.light is not None else like(levels, SURE),
        scores=normal.kept,
        tail=normal.tail,
    )


def threshold_of(scores: NDArray[np.float32], share: float) -> float:
    """The lowest of the scores [N] of normal images with at most this share of new ones above it, as expected.

    The highest where that is none.
    """
    return float(np.sort(scores)[len(scores) - 1 - allowed_above(share, len(scores))])


def outliers(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which scores [N] lie far above the others: beyond Tukey's outer fence (1977)."""
    lower, upper = np.quantile(scores, [0.25, 0.75])
    return scores > upper + FAR * (upper - lower)


def _said(share: float, good: Sequence[Item], scores: NDArray[np.float32], thresholds: Thresholds) -> Iterator[str]:
    """What users are told of the threshold."""
    above, images = thresholds.above, thresholds.unseen
    low, high = share_interval(above, images)
    yield (
        f"It will reject about {100 * thresholds.false_alarms.expected:.2g} % of good parts, {100 * low:.2g} to "
        f"{100 * high:.2g} % (95 % interval), by {images} {FRESH}, {above} of them above it."
    )
    expected, sure = images_needed(share)
    if images < expected:
        yield (
            f"{images} images are few: to expect {100 * share:.3g} % or less takes {expected}, to be 95 % sure of it "
            f"{sure}; the threshold is the highest of their scores."
        )
    far = outliers(scores)
    if far.any():
        named = [f"'{good[i].path}' ({scores[i]:.4g})" for i in np.argsort(-scores) if far[i]]
        yield readable(
            f"{len(named)} of them score far above the others, and count all the same: {', '.join(named)}. If they are "
            f"bad, take them out and calibrate again: without them the threshold were "
            f"{threshold_of(scores[~far], share):.4g}."
        )


def _found(scores: NDArray[np.float32], threshold: float) -> str:
    """What users are told of the scores of bad images."""
    count, total = int(is_anomalous(scores, threshold).sum()), len(scores)
    low, high = share_interval(count, total)
    return (
        f"It finds {count} of {total} bad images: {100 * count / total:.3g} %, {100 * low:.3g} to {100 * high:.3g} % "
        "(95 % interval)."
    )
