"""Metrics of test sets drawn anew from the images that there are (the bootstrap), for intervals and differences."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metrics.by_image import PixelCounts
from metrics.entries import DECISION_METRICS, METRICS
from metrics.significance import SURE, UNKNOWN, Interval

DRAWS = 1000  # test sets


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
) -> dict[str, NDArray[np.float64]]:
    """How far every metric of the drawn test sets lies from that of the images themselves.

    Those of METRICS, and of DECISION_METRICS but for those of pixels. Metrics of pixels are read off their counts, of
    the drawn test sets and of the images themselves alike.

    Args:
        labels, scores, decisions: of the images [N].
        pixels: of their maps; None where there are none.
        drawn: [B, N], see draw.

    Returns:
        By the metric's name [B], NaN where it does not exist.
    """
    anomalous, values, called = np.asarray(labels).astype(bool), np.asarray(scores), np.asarray(decisions).astype(bool)
    sets = np.concatenate([np.arange(len(anomalous))[None], drawn])
    found: dict[str, NDArray[np.float64]] = {}
    for table, given in ((METRICS, values), (DECISION_METRICS, called)):
        own = {name: metric.function for name, metric in table.items() if metric.is_of_images}
        for name, function in own.items():
            found[name] = np.array([function(anomalous[chosen], given[chosen]) for chosen in sets])
    of_pixels = {name: metric.function for name, metric in METRICS.items() if metric.of_pixels}
    found |= {name: np.full(len(sets), math.nan) for name in of_pixels}
    if pixels is not None:
        for i, ranked in enumerate(pixels.ranked(_weights(sets))):
            for name, function in of_pixels.items() if ranked is not None else ():
                found[name][i] = function(ranked)
    for name, metric in METRICS.items():
        if metric.of_values:
            found[name] = metric.function(found)
    return {name: own[1:] - own[0] for name, own in found.items()}


def interval(value: float, deviation: NDArray[np.float64]) -> Interval:
    """The 95 % interval of a metric by the quantiles of its deviations [B]; unknown where it never deviates."""
    known = deviation[~np.isnan(deviation)]
    if not known.size or not np.ptp(known):
        return UNKNOWN
    low, high = np.quantile(known, [(1 - SURE) / 2, (1 + SURE) / 2])
    return Interval(float(value + low), float(value + high))


def p_value(value: float, deviation: NDArray[np.float64]) -> float:
    """Of a difference that would be 0 but for chance: twice the share of test sets [B] in which it is turned round."""
    known = deviation[~np.isnan(deviation)]
    if not known.size:
        return math.nan
    drawn = value + known
    turned = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    return min(1.0, 2 * (turned + 1) / (len(known) + 1))


def _weights(sets: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each image is in each set [B, N]."""
    weights = np.zeros(sets.shape, np.int64)
    np.add.at(weights, (np.arange(len(sets))[:, None], sets), 1)
    return weights
