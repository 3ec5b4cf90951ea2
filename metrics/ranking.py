"""Image-level ranking metrics, and the one curve from which every metric of this package is read.

Metrics change only where a positive crosses the threshold, so the sorted negatives are counted at the distinct scores
of the positives, and no curve over all pixels is built.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

PART = 5_000_000  # scores that are sorted at once
TINY = np.finfo(float).tiny


Values = float | NDArray[np.float64]  # of one set of images, or of each of several


class Crossings(NamedTuple):
    """Counts at the distinct scores of the positives, highest first, as the threshold falls.

    Of several sets of images all have leading axes, [..., T] and [...], and so have the metrics that are read off them;
    scores are then those of all sets.

    Attributes:
        above: negatives above each score [T].
        at_or_above: negatives at or above it [T]; more than `above` where they tie with positives.
        hits: positives at or above it [T].
        negatives: number of negatives N.
    """

    above: NDArray[np.number]
    at_or_above: NDArray[np.number]
    hits: NDArray[np.float64]
    negatives: float | NDArray[np.number]

    def area(self, curve: NDArray[np.float64], max_fpr: float = 1.0) -> Values:
        """Area under a curve [T] over the false-positive rate up to max_fpr, divided by max_fpr.

        Tied positives and negatives cross together, which draws a straight segment; the last one is interpolated.
        """
        zero, end = np.zeros_like(curve[..., :1]), curve[..., -1:]
        one = np.ones_like(zero)
        x = _alternating(self.above, self.at_or_above) / np.asarray(self.negatives)[..., None]
        y = _alternating(np.concatenate([zero, curve[..., :-1]], axis=-1), curve)
        x, y = np.concatenate([zero, x, one, one], axis=-1), np.concatenate([zero, y, end, end], axis=-1)
        inside = np.minimum(np.count_nonzero(x <= max_fpr, axis=-1, keepdims=True), x.shape[-1] - 1)
        (x0, y0), (x1, y1) = ([np.take_along_axis(own, i, -1) for own in (x, y)] for i in (inside - 1, inside))
        last = (y1 - y0) / np.maximum(x1 - x0, TINY) * (max_fpr - x0) + y0
        x, y = (own[..., : int(inside.max()) + 1] for own in (x, y))
        is_inside = np.arange(x.shape[-1]) < inside
        x, y = np.where(is_inside, x, max_fpr), np.where(is_inside, y, last)
        return np.trapezoid(y, x, axis=-1) / max_fpr


def crossings(
    scores: NDArray[np.floating], positive: NDArray[np.bool_], positives: NDArray[np.floating]
) -> tuple[Crossings, NDArray[np.int64]]:
    """Rank positives among negatives; with it the index of every positive's score among the distinct ones [P].

    Parts of bounded size are sorted side by side and their counts added: beyond what is given, the memory taken grows
    with the positives only.

    Args:
        scores: [N, ...]; may be a mapped file. NaN does not count.
        positive: the shape of scores; False where a score is a negative.
        positives: 1-D, of the dtype of scores.
    """
    ascending, group = np.unique(positives, return_inverse=True)
    count = 1 + scores.size // max(PART, len(positives))
    workers = min(os.cpu_count() or 1, count)
    parts = np.array_split(np.arange(len(scores)), min(len(scores), -(-count // workers) * workers))

    def counts(worker: int) -> NDArray[np.int64]:
        """Of a share of the parts: negatives above, and at or above, each of the ascending scores, and all of them."""
        total = np.zeros((3, len(ascending)), np.int64)
        for part in parts[worker::workers]:
            rows = slice(part[0], part[-1] + 1)
            negatives = scores[rows][~positive[rows]]
            negatives.sort()
            negatives = negatives[: np.searchsorted(negatives, np.inf, side="right")]  # NaN is sorted behind all
            total += len(negatives)
            total[0] -= np.searchsorted(negatives, ascending, side="right")
            total[1] -= np.searchsorted(negatives, ascending, side="left")
        return total

    if workers == 1:
        above, at_or_above, every = counts(0)
    else:
        with ThreadPoolExecutor(workers) as threads:
            above, at_or_above, every = sum(threads.map(counts, range(workers)))
    group = len(ascending) - 1 - group
    return Crossings(above[::-1], at_or_above[::-1], reached(group), int(every[0])), group


def rank_sets(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike) -> Crossings | None:
    """Anomalous among normal images, in several sets of images; None where either is missing.

    Args:
        labels: [N], non-zero for anomalous.
        scores: finite [N].
        weights: how often each image is in each set [..., N].

    Returns:
        Hits of NaN, so that every metric is, of a set that has not both.
    """
    anomalous, values, counts = np.asarray(labels).astype(bool), np.asarray(scores), np.asarray(weights)
    if anomalous.all() or not anomalous.any():
        return None
    falling = -np.unique(-values[anomalous])

    def reaching(chosen: NDArray[np.bool_], side: Literal["left", "right"]) -> NDArray[np.float64]:
        """The weight of the chosen images above each score (left), or at or above it (right)."""
        order = np.argsort(-values[chosen], kind="stable")
        total = np.cumsum(counts[..., chosen][..., order], axis=-1, dtype=np.float64)
        total = np.concatenate([np.zeros_like(total[..., :1]), total], axis=-1)
        return total[..., np.searchsorted(-values[chosen][order], -falling, side)]

    above, at_or_above = (reaching(~anomalous, side) for side in ("left", "right"))
    negatives, hits = counts[..., ~anomalous].sum(axis=-1), reaching(anomalous, "right")
    exists = (hits[..., -1] > 0) & (negatives > 0)
    negatives = np.where(exists, negatives, np.nan)
    return Crossings(above, at_or_above, np.where(exists[..., None], hits, np.nan), negatives)


def reached(group: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Sum of the positives' weights (1 each if None) at or above each distinct score [T], which group [P] names."""
    return np.cumsum(np.bincount(group, weights), dtype=np.float64)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the chance that an anomalous image scores above a normal one, ties counting half.

    Args:
        labels: [N], non-zero or True for anomalous.
        scores: finite [N], higher is more anomalous.

    Returns:
        In [0, 1]; NaN where only one label occurs, since the metric is then undefined.

    Raises:
        ValueError: shapes that differ, or scores that are not finite.
    """
    ranked = rank_images(labels, scores)
    return float(roc_area(ranked)) if ranked else float("nan")


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision: sum over thresholds of (recall gained) x precision, without interpolation.

    Arguments, range and errors as in auroc.
    """
    ranked = rank_images(labels, scores)
    return float(precision_sum(ranked)) if ranked else float("nan")


def f1_max(labels: ArrayLike, scores: ArrayLike) -> float:
    """The highest F1 = 2 TP / (TP + FP + P) of any threshold.

    Arguments, range and errors as in auroc.
    """
    ranked = rank_images(labels, scores)
    return float(best_f1(ranked)) if ranked else float("nan")


def roc_area(ranked: Crossings) -> Values:
    return ranked.area(ranked.hits / ranked.hits[..., -1:])


def precision_sum(ranked: Crossings) -> Values:
    hits = ranked.hits
    gained = np.diff(hits, prepend=0.0, axis=-1) / hits[..., -1:]
    return np.sum(gained * hits / np.maximum(hits + ranked.at_or_above, TINY), axis=-1)  # nothing adds nothing


def best_f1(ranked: Crossings) -> Values:
    hits = ranked.hits
    return np.max(2 * hits / (hits + ranked.at_or_above + hits[..., -1:]), axis=-1)


def rank_images(labels: ArrayLike, scores: ArrayLike) -> Crossings | None:
    """Anomalous among normal images, or None where either is missing. Arguments and errors as in auroc."""
    anomalous, values = np.asarray(labels).astype(bool), np.asarray(scores)
    if anomalous.ndim != 1 or anomalous.shape != values.shape:
        raise ValueError(f"labels {list(anomalous.shape)} and scores {list(values.shape)} must both be [N]")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    if anomalous.all() or not anomalous.any():
        return None
    return crossings(values, anomalous, values[anomalous])[0]


def _alternating(first: NDArray[np.number], second: NDArray[np.number]) -> NDArray[np.number]:
    """One of the first, one of the second, and so on: [..., 2 T] of [..., T] each."""
    return np.stack([first, second], axis=-1).reshape(*first.shape[:-1], -1)
