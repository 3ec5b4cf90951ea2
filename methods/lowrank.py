"""Low rank and sparse: an image as what repeats, of few directions, and what is added in few places.

A regular texture is a matrix of low rank, and so are aligned images side by side; a defect is sparse. The equations, as
numbered here, of grey pixels from 0 to 1, an image D of m x n of them (Candes, Li, Ma and Wright, J. ACM 2011):

    min |A|_* + l |E|_1 with A + E = D, l = c / sqrt(max(m, n))                 of the image, no training images    (1)
    min_b |x - U b|_1, U the first r left singular vectors of the normal images, E = x - U b   of training images   (2)
    anomaly map = Gaussian(|E|), image score = mean of its T largest values                                         (3)

(1) is solved by the inexact augmented Lagrange multiplier method (Lin, Chen and Ma 2010, arXiv 1009.5055), with
S_t(X) = sign(X) max(|X| - t, 0) of values, and D_t of singular values:

    E = S_{l/mu}(D - A + Y/mu), A = D_{1/mu}(D - E + Y/mu), Y += mu (D - A - E), mu *= 1.1                          (4)

whose mu grows slower than the authors' 1.5, by which small matrices end far from the optimum. (2) is what (1) is of
normal images and x as columns, if the images' own rank is known; STEPS times, from u = 0 and b = U^T x:

    E = S_{1/mu}(x - U b + u), b = U^T (x - E + u), u += x - U b - E, 1/mu = mean |x - U U^T x|                     (5)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from detection import Normal, Passes, Prediction
from detection.interest import calm
from detection.pixels import PixelDetector, PixelOptions, smaller
from options import option

GROWTH = 1.1  # of mu
MOST_GROWTH = 1e7
TOLERANCE = 1e-7  # of |D - A - E| / |D|
MOST_STEPS = 500
STEPS = 50
STILL = 1e-6  # of the largest, singular values that float32 pixels may have by rounding
TINY = 1e-12
COLUMNS = 2**16  # of images, whose products are summed at once


@dataclass(frozen=True)
class Options(PixelOptions):
    """Low rank and sparse: what an image adds in few places to what repeats in it, or to normal images."""

    of: Literal["training", "image"] = option(
        "training",
        "What repeats. training: directions of the normal images, which must be aligned; image: rows and columns of "
        "the image itself, a regular texture, without training images.",
    )
    rank: int = option(20, "Directions of the normal images.", at_least=1, at_most=10_000)
    weight: float = option(
        1.0, "c, of --of image: 1 in theory, up to 2 for noisy images; more finds fewer and larger anomalies.", above=0
    )
    side: int = option(128, "Of --of image: larger images are made smaller to so many pixels.", at_least=8)


class LowRank(PixelDetector):
    """Directions of normal images, or none.

    Args:
        backbone, layers, image_size, precision, seed, options: see PixelDetector. (4) is computed in float64.
    """

    Options = Options

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        learns = self.options.of == "training"
        self.register_buffer("basis", torch.zeros(self.options.rank, *self.image_size) if learns else None)

    @property
    def not_exported(self) -> str:
        """Singular values are no operation of ONNX."""
        return "" if self.options.of == "training" else "--of image decomposes matrices, which exports cannot"

    @property
    def not_masked(self) -> str:
        """As in Detector: the edge of a mask is nothing that repeats in rows and columns."""
        return super().not_masked or (
            "" if self.options.of == "training" else "--of image decomposes whole images: give --of training"
        )

    def passes_of(self, has_held_out: bool) -> Passes:
        """One over training images whose directions are learned; else none."""
        return Passes(steps=0, settling=int(self.options.of == "training"))

    def settle(self, *classes: Normal) -> Mapping[str, float]:
        """Learn U (2); where there are fewer images than directions, the others are 0."""
        if self.basis is None:
            return {}
        (own,) = classes
        found, left = directions(self.drawn_evenly(own.train).flatten(1), self.options.rank)
        self.basis.zero_()
        self.basis[: len(found)] = found.unflatten(1, self.image_size)
        return {"left": left}

    def forward(self, embeddings: Tensor, interest: Tensor | None = None) -> Prediction:
        """Image scores [B] and anomaly maps [B, H, W] (3)."""
        if self.basis is not None:
            sparse = added(embeddings.flatten(1), self.basis.flatten(1)).view_as(embeddings)
        else:
            images = smaller(embeddings, self.options.side)
            sparse = torch.stack([decomposed(own.double(), self.options.weight).sparse for own in images]).float()
        return self.predicted(self.smoothed(calm(sparse.abs(), interest)), interest)


class Parts(NamedTuple):
    """A and E [m, n] of a matrix, and how many steps were made."""

    low_rank: Tensor
    sparse: Tensor
    steps: int


def decomposed(matrix: Tensor, weight: float, growth: float = GROWTH, most: int = MOST_STEPS) -> Parts:
    """Solve (1) by steps (4).

    Args:
        matrix: D, float64 [m, n].
        weight: c.
        growth: of mu at each step, above 1.
        most: so many steps, if the tolerance is not met before.
    """
    if matrix.shape[0] > matrix.shape[1]:  # singular values are those of the smaller side
        found = decomposed(matrix.T, weight, growth, most)
        return Parts(found.low_rank.T, found.sparse.T, found.steps)
    per_value = weight / max(matrix.shape) ** 0.5
    length = torch.linalg.matrix_norm(matrix).clamp(min=TINY)
    largest = torch.linalg.eigvalsh(matrix @ matrix.T)[-1].clamp(min=TINY**2).sqrt()  # |D|_2
    multiplier = matrix / torch.maximum(largest, matrix.abs().max() / per_value)
    mu, limit = 1.25 / largest, 1.25 * MOST_GROWTH / largest
    low_rank = torch.zeros_like(matrix)
    steps, is_met = 0, False
    while steps < most and not is_met:
        steps += 1
        sparse = shrunk(matrix - low_rank + multiplier / mu, per_value / mu)
        low_rank = of_lower_rank(matrix - sparse + multiplier / mu, 1 / mu)
        left = matrix - low_rank - sparse
        is_met = bool(torch.linalg.matrix_norm(left) < TOLERANCE * length)
        multiplier = multiplier + mu * left
        mu = torch.minimum(growth * mu, limit)
    return Parts(low_rank, sparse, steps)


def shrunk(values: Tensor, by: Tensor) -> Tensor:
    """S: values nearer to 0."""
    return values - torch.minimum(torch.maximum(values, -by), by)


def of_lower_rank(matrix: Tensor, by: Tensor) -> Tensor:
    """D: a matrix [m, n], m at most n, with singular values that are nearer to 0.

    They are the roots of the eigenvalues of X X^T, which is smaller and quicker, and those that are as small as its
    rounding become 0.
    """
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    kept = 1 - by / values.clamp(min=TINY**2).sqrt().clamp(min=by)
    return (vectors * kept) @ (vectors.T @ matrix)


def directions(images: Tensor, rank: int) -> tuple[Tensor, float]:
    """At most so many first singular vectors of images [N, D], of which float32 [r, D], and the share they leave.

    The images' mean is not taken out: it is about the first of them.
    """
    gram = sum(part @ part.T for part in _columns(images))
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    count = min(rank, int((values > STILL**2 * values[0]).sum()))
    weights = (vectors[:, :count] / values[:count].sqrt()).T
    found = torch.cat([(weights @ part).float() for part in _columns(images)], dim=1)
    return found, (values[count:].sum() / values.sum().clamp(min=TINY)).item()


def _columns(images: Tensor) -> Iterator[Tensor]:
    return map(Tensor.double, images.split(COLUMNS, dim=1))


def added(images: Tensor, basis: Tensor, steps: int = STEPS) -> Tensor:
    """E (2) of images [B, D] and directions [r, D], some of which may be 0: float32 [B, D]."""
    seen = images @ basis.T  # b
    left = images - seen @ basis
    by = left.abs().mean(dim=1, keepdim=True)
    scaled = torch.zeros_like(images)  # u
    for _ in range(steps):
        sparse = shrunk(left + scaled, by)
        seen = (images - sparse + scaled) @ basis.T
        left = images - seen @ basis
        scaled = scaled + left - sparse
    return left
