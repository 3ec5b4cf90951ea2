"""The affine map that whitens features: a start for what is learned on them that no feature's scale decides."""

from collections.abc import Iterable

import torch
from torch import Tensor

from backbones.float32 import full_float32
from detection.variance import known_deviation, require_finite


@torch.no_grad()
def whitening(features: Iterable[Tensor], shrinkage: float) -> tuple[Tensor, Tensor]:
    """Weight [D, D] and bias [D] of the affine map that whitens normal features.

    q = L^-1 diag(1/std) (o - mean), where L L^T = R + shrinkage * I is the Cholesky factor of the features' correlation
    matrix R. A layer that starts with it, in place of random weights, gives features of zero mean and about unit
    covariance, no dimension of which noise of one size swamps or misses (Kessy, Lewin and Strimmer: Optimal whitening
    and decorrelation, 2018).

    Args:
        features: batches of patch embeddings [..., D]; read once.
        shrinkage: above 0; how far R is drawn to the identity (`--whiten`), which bounds what rare directions gain.

    Returns:
        float32, on the features' device.

    Raises:
        DataError: features that are not finite.
    """
    count, total, products = 0, 0.0, 0.0
    origin: Tensor | None = None
    for batch in features:
        rows = batch.flatten(0, -2).float()
        origin = rows.mean(0) if origin is None else origin  # near the mean: sums of squares lose no digits
        rows = rows - origin
        count += len(rows)
        total = total + rows.sum(0).double()
        with full_float32(rows.device):
            products = products + (rows.T @ rows).double()
    shift = total / count
    covariance = products / count - shift.outer(shift)
    require_finite(covariance)
    mean = origin.double() + shift
    std = known_deviation(covariance.diagonal(), mean)
    correlation = covariance / std.outer(std)
    weight = torch.linalg.solve_triangular(_factor(correlation, shrinkage), torch.diag(1 / std), upper=False)
    return weight.float(), (-weight @ mean).float()


def _factor(correlation: Tensor, shrinkage: float) -> Tensor:
    """L of R + shrinkage * I; of R's eigenvalues, rounding has left some of those that are 0 below it."""
    identity = torch.eye(len(correlation), dtype=correlation.dtype, device=correlation.device)
    factor, failed = torch.linalg.cholesky_ex(correlation + shrinkage * identity)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(correlation)
    root = (values.clamp(min=0) + shrinkage).sqrt().unsqueeze(1) * vectors.T  # root^T root = R + shrinkage * I
    return torch.linalg.qr(root).R.T
