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
from detection.normal_scores import normal_scores
from errors import DataError
from experiment.train.embeddings import Predictions


@dataclass(frozen=True)
class Evaluation:
    """What a detector says of the test images.

    Attributes:
        scores: image scores [N] in the order of the samples.
        terms: what the scores are made of, [N] each, by name.
        map_range: the lowest and the highest pixel score of all maps; None without maps.
        metrics: the value of every one of metrics.METRICS (NaN: does not exist), and of LOCO_METRICS where they apply.
        maps, masks: of all images [N, H, W]; None without maps or masks. Maps are NaN where nothing is of interest.
        regions: of all defective pixels, as evaluate was given them.
    """

    scores: NDArray[np.float32]
    terms: dict[str, NDArray[np.float32]]
    map_range: tuple[float, float] | None
    metrics: dict[str, float]
    maps: NDArray[np.float32] | None = None
    masks: NDArray[np.bool_] | None = None
    regions: NDArray[np.integer] | None = None


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
    terms: dict[str, list[NDArray[np.float32]]] = {}
    maps: NDArray[np.float32] | None = None
    masks: NDArray[np.bool_] | None = None
    map_range: tuple[float, float] | None = None
    done = 0
    for prediction, batch_masks in predictions:
        scores.append(prediction.scores.cpu().numpy())
        for name, term in prediction.terms.items():
            terms.setdefault(name, []).append(term.cpu().numpy())
        if prediction.maps is not None:
            batch_maps = prediction.maps.cpu().numpy()
            ends = [float(np.nanmin(batch_maps)), float(np.nanmax(batch_maps)), *(map_range or ())]
            map_range = min(ends), max(ends)
            if has_masks:
                if maps is None:
                    shape = (len(samples), *batch_maps.shape[1:])
                    maps = beside_bank(shape, prediction.maps.dtype, on_disk).numpy()
                    masks = beside_bank(shape, torch.bool, on_disk).numpy()
                maps[done : done + len(batch_maps)] = batch_maps
                masks[done : done + len(batch_maps)] = batch_masks
        done += len(scores[-1])
        bar.update()
    all_scores = np.concatenate(scores)
    if not np.isfinite(all_scores).all():
        raise DataError(
            "training diverged: scores are not finite; lower the learning rate or the noise, or look for extreme images"
        )
    values = dict.fromkeys(metrics.METRICS, math.nan)
    values |= metrics.image_metrics([sample.anomalous for sample in samples], all_scores)
    if maps is not None:
        values |= metrics.map_metrics(masks, maps, regions)
    if defects:
        values |= metrics.loco_metrics(_by_kind(samples, all_scores, maps, defects))
    values |= metrics.combined_metrics(values)
    joined = {name: np.concatenate(own) for name, own in terms.items()}
    return Evaluation(all_scores, joined, map_range, values, maps, masks, regions)


def image_scores(predictions: Predictions) -> NDArray[np.float32]:
    """The image scores [N] of all predictions."""
    return np.concatenate([prediction.scores.cpu().numpy() for prediction, _ in predictions])


def normal_thresholds(predictions: Predictions, quantile: float) -> tuple[float, float | None]:
    """Scores that a share of normal images, and of their pixels, stay at or below: thresholds of an image and a pixel.

    Without maps there is none of a pixel.

    Args:
        predictions: of normal images.
        quantile: the share, in [0, 1]; the next higher score is taken where it falls between two.
    """
    scores, pixel = scores_of(predictions, quantile)
    return image_threshold(scores, quantile), pixel


def scores_of(predictions: Predictions, quantile: float) -> tuple[NDArray[np.float32], float | None]:
    """The scores [N] of normal images, and the threshold of a pixel; see normal_thresholds."""
    return normal_scores((prediction for prediction, _ in predictions), len(predictions.dataset), quantile)


def image_threshold(scores: NDArray[np.float32], quantile: float) -> float:
    """The threshold of an image by the scores [N] of normal ones; see normal_thresholds."""
    return float(np.quantile(scores, quantile, method="higher"))


def _by_kind(
    samples: Sequence[Sample], scores: NDArray[np.float32], maps: NDArray[np.float32] | None, defects: Sequence[Defect]
) -> dict[str, metrics.Kind]:
    """The anomalies of every kind among all normal images."""
    kinds: dict[str, metrics.Kind] = {}
    anomalous = np.array([sample.anomalous for sample in samples])
    for kind, is_of_kind in metrics.of_kinds(anomalous, [sample.defect_type for sample in samples]).items():
        chosen = np.flatnonzero(is_of_kind)
        place = {i: k for k, i in enumerate(chosen.tolist())}
        own = [(place[i], mask, area) for i, mask, area in defects if i in place]
        pixels = None if maps is None else metrics.rank_defects(own, maps[chosen])
        kinds[kind] = metrics.Kind(metrics.rank_images(anomalous[chosen], scores[chosen]), pixels)
    return kinds
