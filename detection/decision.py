"""The decision, in one place: whoever compares scores with a threshold does it here."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def is_anomalous(scores: float | NDArray[np.floating] | Tensor, threshold: float) -> bool | NDArray[np.bool_] | Tensor:
    """Whether scores are above a threshold; one that equals it is of a normal image, as in Thresholds.

    Args:
        scores: a number, or an array or tensor of any shape.
        threshold: such as TrainedModel.thresholds.image, or thresholds.pixel of a map.

    Returns:
        A bool, or bools of the same shape.
    """
    return scores > threshold
