"""Metrics of decisions: what was called anomalous, against what is.

All take Decided and give a share in [0, 1]; NaN for a share of nothing.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Count = int | NDArray[np.number]
Share = float | NDArray[np.float64]


class Decided(NamedTuple):
    """How many images or pixels were decided how: numbers, or arrays of one shape.

    Attributes:
        hits: anomalous, and called so.
        misses: anomalous, and called normal.
        alarms: normal, and called anomalous.
        rests: normal, and called so.
    """

    hits: Count
    misses: Count
    alarms: Count
    rests: Count

    @classmethod
    def of(cls, labels: ArrayLike, decisions: ArrayLike) -> "Decided":
        """Of labels and decisions of any one shape, non-zero for anomalous, and called so."""
        anomalous, called = (np.asarray(own).astype(bool, copy=False) for own in (labels, decisions))
        hits, of_called, of_anomalous = (np.count_nonzero(own) for own in (anomalous & called, called, anomalous))
        misses, alarms = of_anomalous - hits, of_called - hits
        return cls(hits, misses, alarms, anomalous.size - hits - misses - alarms)

    def summed(self, weights: ArrayLike) -> "Decided":
        """Those [B] of several sets, of those of every image [N], and of how often it is in each set [B, N]."""
        return Decided(*(np.asarray(weights) @ own for own in self))


def precision(own: Decided) -> Share:
    """Of what is called anomalous, the share that is."""
    return _share(own.hits, own.hits + own.alarms)


def recall(own: Decided) -> Share:
    """Of what is anomalous, the share that was called so."""
    return _share(own.hits, own.hits + own.misses)


def f1(own: Decided) -> Share:
    """The harmonic mean of precision and recall, 0 where both are."""
    return _share(2 * own.hits, 2 * own.hits + own.misses + own.alarms)


def accuracy(own: Decided) -> Share:
    """The share that was called what it is."""
    return _share(own.hits + own.rests, sum(own))


def _share(part: Count, whole: Count) -> Share:
    if np.ndim(whole) == 0:
        return float(part / whole) if whole else math.nan
    with np.errstate(invalid="ignore"):
        return np.divide(part, whole)
