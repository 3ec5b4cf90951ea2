"""Means and covariances of rows at many places, in one pass, and how far Ledoit and Wolf would shrink them."""

import torch
from torch import Tensor

from detection.variance import known_variance, require_finite

TINY = 1e-10  # of the mean variance, below which rounding decides


class Moments:
    """Sums of what is added to it, in float64, about an origin near the mean: no digits are lost.

    Args:
        places: P, of which each has its own mean and covariance.
        dimension: d.
        device: of what is added.
    """

    def __init__(self, places: int, dimension: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.count: int | Tensor = 0  # of rows; [P] where not all places have all
        self.origin: Tensor | None = None
        self.total = zeros(places, dimension)
        self.products = zeros(places, dimension, dimension)
        self.cubes = zeros(places, dimension)  # sum |y|^2 y
        self.fourths = zeros(places)  # sum |y|^4

    @torch.no_grad()
    def add(self, rows: Tensor, inside: Tensor | None = None) -> None:
        """Take in rows [n, P, d], float, at least one; where inside, bool [n, P], is given, those that it marks."""
        rows = rows.double()
        if self.origin is None:
            self.origin = rows.mean(dim=0)
        own = (rows - self.origin).transpose(0, 1)  # y, [P, n, d]
        if inside is not None:
            own = own * inside.T.unsqueeze(2)
        squares = own.square().sum(dim=2)
        self.count = self.count + (len(rows) if inside is None else inside.sum(dim=0))
        self.total += own.sum(dim=1)
        self.products.baddbmm_(own.mT, own)
        self.cubes += (squares.unsqueeze(1) @ own).squeeze(1)
        self.fourths += squares.square().sum(dim=1)

    @property
    def mean(self) -> Tensor:
        """[P, d], float64."""
        return self.origin + self.total / self._counts.unsqueeze(1)

    @property
    def _counts(self) -> Tensor:
        """Of rows, at least 1: float64 [P], or [1] of all places."""
        return torch.as_tensor(self.count, dtype=torch.float64, device=self.total.device).clamp(min=1).view(-1)

    def covariance(self, correction: int = 1) -> Tensor:
        """[P, d, d], float64: sums over count - correction; 0 of a single row.

        Raises:
            DataError: rows that are not finite.
        """
        count = self._counts[:, None, None]
        shift = self.total / count[:, 0]
        found = self.products / count - shift.unsqueeze(2) * shift.unsqueeze(1)
        require_finite(found)
        return found * (count / (count - correction).clamp(min=1))

    def shrinkage(self) -> Tensor:
        """How far each covariance is to be drawn to a multiple of the identity, [P] from 0 to 1 (Ledoit and Wolf 2004).

        Two rows say nothing of the error of their covariance, by which they shrink it: it is shrunk by half.
        """
        covariance, n = self.covariance(0), self._counts
        d = covariance.shape[1]
        shift = self.total / n.unsqueeze(1)
        lengths = self.products.diagonal(dim1=1, dim2=2).sum(dim=1)  # sum |y|^2
        own = shift.square().sum(dim=1)
        fourths = (  # sum |y - shift|^4
            self.fourths
            + 4 * torch.einsum("pd,pde,pe->p", shift, self.products, shift)
            - 4 * (self.cubes * shift).sum(dim=1)
            + 2 * own * lengths
            - 3 * n * own.square()
        )
        size = covariance.diagonal(dim1=1, dim2=2).mean(dim=1)
        squares = covariance.square().sum(dim=(1, 2))
        distance = (squares - d * size.square()) / d
        error = (fourths / n - squares) / (d * n)
        share = torch.where(distance > 0, error.clamp(min=0) / distance.clamp(min=torch.finfo(distance.dtype).tiny), 1)
        return torch.where(n > 2, share.clamp(max=1), 0.5)


def shrunk(covariance: Tensor, shrinkage: Tensor) -> Tensor:
    """Covariances [P, d, d] drawn to multiples of the identity by shares [P]."""
    size = covariance.diagonal(dim1=1, dim2=2).mean(dim=1)
    drawn = (1 - shrinkage)[:, None, None] * covariance
    drawn.diagonal(dim1=1, dim2=2).add_((shrinkage * size).unsqueeze(1))
    return drawn


def whitening_factors(covariance: Tensor, mean: Tensor) -> Tensor:
    """L^-1 of covariances L L^T, lower triangles float64 [P, d, d]: |L^-1 (x - m)| is the Mahalanobis distance.

    Args:
        covariance: [P, d, d], float64; changed where nothing moves, see known_variance.
        mean: of the same, [P, d].
    """
    variance = covariance.diagonal(dim1=1, dim2=2)
    variance.copy_(known_variance(variance, mean))
    variance.add_(TINY * variance.mean(dim=1, keepdim=True))
    identity = torch.eye(covariance.shape[1], dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), identity, upper=False)
