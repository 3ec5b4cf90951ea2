"""The affine map that whitens features: a start for what is learned on them that no feature's scale decides."""

from collections.abc import Iterable

import torch
from torch import Tensor

from backbones.float32 import full_float32


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
        float32, on the features' device; not finite where features are not.
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
    variance = covariance.diagonal()
    std = (variance + 1e-6 * variance.mean()).clamp(min=torch.finfo(torch.float32).tiny).sqrt()  # some never move
    correlation = covariance / std.outer(std)
    identity = torch.eye(len(std), dtype=std.dtype, device=std.device)
    factor, _ = torch.linalg.cholesky_ex(correlation + shrinkage * identity)
    weight = torch.linalg.solve_triangular(factor, torch.diag(1 / std), upper=False)
    return weight.float(), (-weight @ (origin.double() + shift)).float()
