"""Metrics of decisions: which images were called anomalous, against which are.

All take labels and decisions, both bool [N], and give a share in [0, 1]; NaN for a share of nothing.
"""

import math

import numpy as np
from numpy.typing import NDArray


def precision(labels: NDArray[np.bool_], decisions: NDArray[np.bool_]) -> float:
    """Of the images called anomalous, the share that is."""
    return _share((labels & decisions).sum(), decisions.sum())


def recall(labels: NDArray[np.bool_], decisions: NDArray[np.bool_]) -> float:
    """Of the anomalous images, the share that was called so."""
    return _share((labels & decisions).sum(), labels.sum())


def f1(labels: NDArray[np.bool_], decisions: NDArray[np.bool_]) -> float:
    """The harmonic mean of precision and recall, 0 where both are."""
    return _share(2 * (labels & decisions).sum(), labels.sum() + decisions.sum())


def accuracy(labels: NDArray[np.bool_], decisions: NDArray[np.bool_]) -> float:
    """The share of all images that was called what it is."""
    return _share((labels == decisions).sum(), len(labels))


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else math.nan
