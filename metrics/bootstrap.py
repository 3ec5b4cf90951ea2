"""Metrics of test sets drawn anew from the images that there are (the bootstrap), for intervals and differences."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metrics.by_image import PixelCounts
from metrics.entries import DECISION_METRICS, METRICS
from metrics.significance import Estimate

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


def estimate(value: float, deviation: NDArray[np.float64]) -> Estimate:
    """A metric, or a difference of two, less its bias, with its variance, by the deviations [B] of drawn test sets.

    A metric that is the best of many, as max-F1 is over thresholds, is higher on the images that it was found on than
    on others, and higher again on test sets drawn from these: that is the bias. NaN variance where nothing is known.
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
