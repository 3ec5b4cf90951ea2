"""Scores, maps and metrics of a detector on the test images of one class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import metrics
from backbones.bank import beside_bank
from datasets import Defect, Sample
from errors import DataError
from experiment.features import Predictions

METRICS = ("image_auroc", "pixel_auroc", "pro", "image_ap", "image_f1_max", "pixel_ap", "pixel_f1_max")
DECISION_METRICS = ("precision", "recall", "f1", "accuracy")  # at the stored threshold, known once training is over
SPRO_LIMITS = (0.05, 0.3)
LOCO_KINDS = ("logical", "structural")
LOCO_METRICS = tuple(  # of MVTec LOCO only, each for both kinds of anomalies and as their mean
    f"{name}_{kind}"
    for name in ("image_auroc", *(f"auspro_{limit}" for limit in SPRO_LIMITS))
    for kind in (*LOCO_KINDS, "mean")
)


@dataclass(frozen=True)
class Evaluation:
    """What a detector says of the test images.

    Attributes:
        scores: image scores [N] in the order of the samples.
        map_range: the lowest and the highest pixel score of all maps.
        metrics: the value of every metric of METRICS (NaN: does not exist), and of LOCO_METRICS where they apply.
    """

    scores: NDArray[np.float32]
    map_range: tuple[float, float]
    metrics: dict[str, float]


def evaluate(
    predictions: Predictions,
    samples: Sequence[Sample],
    defects: Sequence[Defect],
    bar: tqdm,
    on_disk: bool = False,
    regions: NDArray[np.integer] | None = None,
) -> Evaluation:
    """Predict every test image and compare with the labels and, where the dataset has masks, the masks.

    Args:
        predictions: of the samples, in their order.
        samples: the test images.
        defects: every defect with its saturation area, for sPRO; empty where a dataset knows none.
        bar: advances by every batch.
        on_disk: keep the maps of all images in a temporary file, as is done where host memory has no room for them.
        regions: of all defective pixels, as metrics.pixel_metrics takes them; None finds them in the masks.

    Raises:
        DataError: an image or mask that cannot be used, no room for the maps, or scores that are not finite.
    """
    has_masks = any(sample.mask_paths for sample in samples)
    scores: list[NDArray[np.float32]] = []
    done = 0
    lowest, highest = float("inf"), float("-inf")
    for prediction, batch_masks in predictions:
        scores.append(prediction.scores.cpu().numpy())
        batch_maps = prediction.maps.cpu().numpy()
        lowest, highest = min(lowest, float(batch_maps.min())), max(highest, float(batch_maps.max()))
        if has_masks:
            if not done:
                shape = (len(samples), *batch_maps.shape[1:])
                maps = beside_bank(shape, prediction.maps.dtype, on_disk).numpy()
                masks = beside_bank(shape, torch.bool, on_disk).numpy()
            maps[done : done + len(batch_maps)] = batch_maps
            masks[done : done + len(batch_maps)] = batch_masks
        done += len(batch_maps)
        bar.update()
    all_scores = np.concatenate(scores)
    if not np.isfinite(all_scores).all():
        raise DataError(
            "training diverged: scores are not finite; lower the learning rate or the noise, or look for extreme images"
        )
    anomalous = [sample.anomalous for sample in samples]
    values = {
        "image_auroc": metrics.auroc(anomalous, all_scores),
        "image_ap": metrics.average_precision(anomalous, all_scores),
        "image_f1_max": metrics.f1_max(anomalous, all_scores),
    }
    if has_masks:
        pixels = metrics.pixel_metrics(masks, maps, regions=regions)
        values |= {name if name == "pro" else f"pixel_{name}": value for name, value in pixels.items()}
        if defects:
            values |= _loco_metrics(samples, all_scores, maps, defects)
    values = dict.fromkeys(METRICS, math.nan) | {name: float(value) for name, value in values.items()}
    return Evaluation(all_scores, (lowest, highest), values)


def decision_metrics(labels: Sequence[bool], decisions: NDArray[np.bool_]) -> dict[str, float]:
    """DECISION_METRICS of decisions [N]; NaN where all labels are the same, as of AUROC, or a share is of nothing."""
    anomalous = np.asarray(labels, dtype=bool)
    if anomalous.all() or not anomalous.any():
        return dict.fromkeys(DECISION_METRICS, math.nan)
    hits, alarms = (anomalous & decisions).sum(), (~anomalous & decisions).sum()
    shares = (
        (hits, hits + alarms),
        (hits, anomalous.sum()),
        (2 * hits, anomalous.sum() + hits + alarms),
        ((anomalous == decisions).sum(), len(anomalous)),
    )
    values = (float(part / whole) if whole else math.nan for part, whole in shares)
    return dict(zip(DECISION_METRICS, values, strict=True))


def normal_thresholds(predictions: Predictions, quantile: float) -> tuple[float, float]:
    """Scores that a share of normal images, and of their pixels, stay at or below: thresholds of an image and a pixel.

    Args:
        predictions: of normal images.
        quantile: the share, in [0, 1]; the next higher score is taken where it falls between two.
    """
    scores: list[NDArray[np.float32]] = []
    highest = np.empty(0, np.float32)  # pixel scores from the quantile up: all of them would need much memory
    for prediction, _ in predictions:
        pixels = len(predictions.dataset) * prediction.maps[0].numel()
        kept = pixels - math.ceil(quantile * (pixels - 1))
        scores.append(prediction.scores.cpu().numpy())
        highest = np.concatenate([highest, prediction.maps.cpu().numpy().ravel()])
        if len(highest) > kept:
            highest = np.partition(highest, len(highest) - kept)[-kept:]
    return float(np.quantile(np.concatenate(scores), quantile, method="higher")), float(highest.min())


def _loco_metrics(
    samples: Sequence[Sample], scores: NDArray[np.float32], maps: NDArray[np.float32], defects: Sequence[Defect]
) -> dict[str, float]:
    """Image AUROC and AUsPRO of logical and of structural anomalies, each among all normal images, and their means."""
    values: dict[str, float] = {}
    for kind in LOCO_KINDS:
        chosen = [i for i, s in enumerate(samples) if not s.anomalous or s.defect_type == f"{kind}_anomalies"]
        place = {i: k for k, i in enumerate(chosen)}
        values[f"image_auroc_{kind}"] = metrics.auroc([samples[i].anomalous for i in chosen], scores[chosen])
        own = [(place[i], mask, area) for i, mask, area in defects if i in place]
        areas = metrics.spro_at(own, maps[chosen], SPRO_LIMITS)
        values |= {f"auspro_{limit}_{kind}": area for limit, area in zip(SPRO_LIMITS, areas, strict=True)}
    for name in LOCO_METRICS:
        if name.endswith("_mean"):
            values[name] = sum(values[name.removesuffix("mean") + kind] for kind in LOCO_KINDS) / len(LOCO_KINDS)
    return {name: values[name] for name in LOCO_METRICS}
