"""Metrics of test sets drawn anew from the images that there are (the bootstrap), for intervals and differences."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from metrics.by_image import PixelCounts
from metrics.decisions import Decided
from metrics.entries import DECISION_METRICS, LOCO_METRICS, METRICS, Kind, of_kinds
from metrics.ranking import Values, rank_sets
from metrics.significance import SURE, UNKNOWN, Estimate, Interval

DRAWS = 1000  # test sets
EDGE = 1e-4  # nearer to 0 and 1 a drawn metric says no more
AT_ONCE = 64  # of them: their pixels' counts stay in the processor's memory


def draw(labels: ArrayLike, seed: int, count: int) -> NDArray[np.int64]:
    """Test sets of as many normal and as many anomalous images, drawn with replacement: indices [count, N].

    Args:
        labels: [N], non-zero for anomalous.
        seed: the same gives the same test sets, which differences of detectors are to be found on.
    """
    generator, anomalous = np.random.default_rng(seed), np.asarray(labels).astype(bool)
    groups = (np.flatnonzero(anomalous == label) for label in (False, True))
    return np.concatenate([generator.choice(own, (count, len(own))) for own in groups if len(own)], axis=1)


def deviations(
    labels: ArrayLike,
    scores: ArrayLike,
    decisions: ArrayLike,
    pixels: PixelCounts | None,
    drawn: NDArray[np.int64],
    defect_types: ArrayLike | None = None,
) -> dict[str, NDArray[np.float64]]:
    """How far every metric of the drawn test sets lies from that of the images themselves.

    Metrics of pixels are read off their counts, of the drawn test sets and of the images themselves alike.

    Args:
        labels, scores, decisions: of the images [N].
        pixels: of their maps; None where there are none.
        drawn: [B, N], see draw.
        defect_types: of the images [N], where LOCO_METRICS are of them.

    Returns:
        By the metric's name [B], of METRICS, DECISION_METRICS and LOCO_METRICS; NaN where it does not exist or, as that
        of saturated overlaps, nothing is known of it.
    """
    anomalous, values, called = np.asarray(labels).astype(bool), np.asarray(scores), np.asarray(decisions).astype(bool)
    sets = np.concatenate([np.arange(len(anomalous))[None], drawn])
    cases = anomalous & called, anomalous & ~called, ~anomalous & called, ~anomalous & ~called
    by_image = Decided(*(own.astype(int) for own in cases))
    kinds = {} if defect_types is None else of_kinds(anomalous, defect_types)
    parts = [
        _of_sets(anomalous, values, by_image, pixels, kinds, _weights(own))
        for own in np.array_split(sets, -(-len(sets) // AT_ONCE))
    ]
    found = {name: np.concatenate([own[name] for own in parts]) for name in parts[0]}
    for name, metric in METRICS.items():
        if metric.is_of_images and metric.of_sets is None:
            found[name] = np.array([metric.function(anomalous[chosen], values[chosen]) for chosen in sets])
    for name, metric in METRICS.items():
        if metric.of_values:
            found[name] = metric.function(found)
    return {name: own[1:] - own[0] for name, own in found.items()}


def _of_sets(
    anomalous: NDArray[np.bool_],
    scores: NDArray[np.floating],
    decided: Decided,
    pixels: PixelCounts | None,
    kinds: dict[str, NDArray[np.bool_]],
    weights: NDArray[np.int64],
) -> dict[str, NDArray[np.float64]]:
    """Metrics [B] of test sets in which each image is as often as its weight [B, N] says, all at once."""
    images = rank_sets(anomalous, scores, weights)
    maps = None if pixels is None else pixels.ranked(weights)
    decided_pixels = None if pixels is None else pixels.decided
    values: dict[str, Values] = {}
    for name, metric in METRICS.items():
        if metric.of_pixels:
            values[name] = math.nan if maps is None else metric.function(maps)
        elif metric.of_sets is not None:
            values[name] = math.nan if images is None else metric.of_sets(images)
    for name, metric in DECISION_METRICS.items():
        own = decided_pixels if metric.of_pixels else decided
        values[name] = math.nan if own is None else metric.function(own.summed(weights))
    ranked = {kind: Kind(rank_sets(anomalous[own], scores[own], weights[:, own])) for kind, own in kinds.items()}
    values |= {name: metric.function(ranked) if ranked else math.nan for name, metric in LOCO_METRICS.items()}
    return {name: np.broadcast_to(value, len(weights)) for name, value in values.items()}


def interval(value: float, deviation: NDArray[np.float64]) -> Interval:
    """The 95 % interval of a metric in (0, 1), by the deviations [B] of drawn test sets.

    The percentiles of what was drawn, in the logit, less twice its bias: a metric that is the best of many, as max-F1
    is over thresholds, is higher on the images that it was found on than on others, and higher again on test sets
    drawn from these. Unknown where no drawn test set differs.
    """
    known = deviation[~np.isnan(deviation)]
    if not 0 < value < 1 or not known.any():
        return UNKNOWN
    edge = min(EDGE, value / 2, (1 - value) / 2)
    logits = logit(np.clip(value + known, edge, 1 - edge))
    ends = np.quantile(logits, [(1 - SURE) / 2, (1 + SURE) / 2]) - 2 * (logits.mean() - logit(value))
    return Interval(*expit(ends).tolist())


def estimate(value: float, deviation: NDArray[np.float64]) -> Estimate:
    """A difference of two metrics, less its bias, with its variance, by the deviations [B] of drawn test sets.

    NaN variance where nothing is known.
    """
    known = deviation[~np.isnan(deviation)]
    if not known.size:
        return Estimate(value, math.nan)
    return Estimate(float(value - known.mean()), float(known.var()))


def _weights(sets: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each image is in each set [B, N]."""
    weights = np.zeros(sets.shape, np.int64)
    np.add.at(weights, (np.arange(len(sets))[:, None], sets), 1)
    return weights
