"""Image-level ranking metrics, and the one curve from which every metric of this package is read.

Metrics change only where a positive crosses the threshold, so the sorted negatives are counted at the distinct scores
of the positives, and no curve over all pixels is built.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

PART = 5_000_000  # scores that are sorted at once


class Crossings(NamedTuple):
    """Counts at the distinct scores of the positives, highest first, as the threshold falls.

    Attributes:
        above: negatives above each score [T].
        at_or_above: negatives at or above it [T]; more than `above` where they tie with positives.
        hits: positives at or above it [T].
        negatives: number of negatives N.
    """

    above: NDArray[np.number]
    at_or_above: NDArray[np.number]
    hits: NDArray[np.float64]
    negatives: float

    def area(self, curve: NDArray[np.float64], max_fpr: float = 1.0) -> float:
        """Area under a curve [T] over the false-positive rate up to max_fpr, divided by max_fpr.

        Tied positives and negatives cross together, which draws a straight segment; the last one is interpolated.
        """
        x = np.stack([self.above, self.at_or_above], axis=1).ravel() / self.negatives
        y = np.stack([np.concatenate([[0.0], curve[:-1]]), curve], axis=1).ravel()
        x, y = np.concatenate([[0.0], x, [1.0]]), np.concatenate([[0.0], y, [curve[-1]]])
        inside = int(np.searchsorted(x, max_fpr, side="right"))
        last = np.interp(max_fpr, x[inside - 1 : inside + 1], y[inside - 1 : inside + 1])
        return float(np.trapezoid(np.append(y[:inside], last), np.append(x[:inside], max_fpr)) / max_fpr)


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
    ranked = _ranked(labels, scores)
    return roc_area(ranked) if ranked else float("nan")


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision: sum over thresholds of (recall gained) x precision, without interpolation.

    Arguments, range and errors as in auroc.
    """
    ranked = _ranked(labels, scores)
    return precision_sum(ranked) if ranked else float("nan")


def f1_max(labels: ArrayLike, scores: ArrayLike) -> float:
    """The highest F1 = 2 TP / (TP + FP + P) of any threshold.

    Arguments, range and errors as in auroc.
    """
    ranked = _ranked(labels, scores)
    return best_f1(ranked) if ranked else float("nan")


def roc_area(ranked: Crossings) -> float:
    return ranked.area(ranked.hits / ranked.hits[-1])


def precision_sum(ranked: Crossings) -> float:
    hits = ranked.hits
    gained = np.diff(hits, prepend=0.0) / hits[-1]
    return float(np.sum(gained * hits / (hits + ranked.at_or_above)))


def best_f1(ranked: Crossings) -> float:
    hits = ranked.hits
    return float(np.max(2 * hits / (hits + ranked.at_or_above + hits[-1])))


def _ranked(labels: ArrayLike, scores: ArrayLike) -> Crossings | None:
    """Anomalous among normal scores, or None where either is missing."""
    anomalous, values = np.asarray(labels).astype(bool), np.asarray(scores)
    if anomalous.ndim != 1 or anomalous.shape != values.shape:
        raise ValueError(f"labels {list(anomalous.shape)} and scores {list(values.shape)} must both be [N]")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    if anomalous.all() or not anomalous.any():
        return None
    return crossings(values, anomalous, values[anomalous])[0]
