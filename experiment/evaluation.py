"""Scores, maps and metrics of a detector on the test images of one class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import metrics
from datasets import Sample
from errors import DataError
from experiment.features import TestPredictions

METRICS = ("image_auroc", "pixel_auroc", "pro")


@dataclass(frozen=True)
class Evaluation:
    """Image scores [N] in the order of the samples, and the value of every metric of METRICS (NaN: does not exist)."""

    scores: NDArray[np.float32]
    metrics: dict[str, float]


def evaluate(predictions: TestPredictions, samples: Sequence[Sample], bar: tqdm) -> Evaluation:
    """Predict every test image and compare with the labels and, where the dataset has masks, the masks.

    Raises:
        DataError: an image or mask that cannot be used, or scores that are not finite.
    """
    has_masks = any(sample.mask_paths for sample in samples)
    scores, maps, masks = [], [], []
    for prediction, batch_masks in predictions:
        scores.append(prediction.scores.cpu().numpy())
        if has_masks:
            maps.append(prediction.maps.cpu().numpy())
            masks.append(batch_masks)
        bar.update()
    all_scores = np.concatenate(scores)
    if not np.isfinite(all_scores).all():
        raise DataError(
            "training diverged: scores are not finite; lower dsc_lr or the noise, or look for extreme images"
        )
    values = {"image_auroc": metrics.auroc([sample.anomalous for sample in samples], all_scores)}
    if has_masks:
        pixels = metrics.pixel_metrics(np.concatenate(masks), np.concatenate(maps))
        values |= {"pixel_auroc": pixels["auroc"], "pro": pixels["pro"]}
    return Evaluation(all_scores, {name: values.get(name, float("nan")) for name in METRICS})
