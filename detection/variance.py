"""Values that can be computed with: finite ones, and variances to divide by, of what may never move."""

import torch
from torch import Tensor

from errors import DataError

STILL = 1e-6  # of their size, what float32 values that do not move are apart by rounding


def known_variance(variance: Tensor, mean: Tensor) -> Tensor:
    """Variances [..., D] of float32 values as they are or, where none of D moves, the mean square of their size.

    Nothing is known then of how far the values of other samples lie apart: in units of their size, what is new is far
    away and all numbers stay small.

    Args:
        variance: float64 [..., D], finite; each row of D by itself.
        mean: of the same values [..., D].

    Returns:
        [..., D], with a mean above 0; 1 where the values themselves are 0.
    """
    size = mean.double().square().mean(dim=-1, keepdim=True)
    unit = torch.where(size > 0, size, 1.0)
    return torch.where(variance.mean(dim=-1, keepdim=True) > STILL**2 * size, variance, unit)


def known_deviation(variance: Tensor, mean: Tensor) -> Tensor:
    """Standard deviations [..., D], above 0, of known_variance; some of D may never move."""
    known = known_variance(variance, mean)
    return (known + 1e-6 * known.mean(dim=-1, keepdim=True)).sqrt()


def require_finite(features: Tensor) -> None:
    """Refuse features of training images, or what is summed of them, that are not finite.

    Raises:
        DataError: they are not.
    """
    if not features.isfinite().all():
        raise DataError("the features of the training images are not finite: try --precision fp32")
