"""Gaussians of normal patches: one for every place (PaDiM: Defard et al., ICPR workshops 2021, arXiv 2011.08785), one
for all of them, or a mixture.

Nothing is trained: means and covariances of normal patches are taken, and a patch that is improbable is anomalous. The
equations, as numbered here, of layer maps F_l and N images:

    x_ij = [F_1, repeat(F_2), repeat(F_3)]_ij, d of its D values        patch, on the grid of F_1               (1)
    m_ij = mean_n x_ij,  S_ij = 1/(N-1) sum_n (x - m)(x - m)^T + eps I  Gaussian of a place                     (2)
    m, S   likewise, of all patches of all images                       Gaussian of patches, `--of patches`     (3)
    S = (1 - s) C + s tr(C) / d I                                       with 1/N and s by Ledoit and Wolf       (4)
    a = sqrt((x - m)^T S^-1 (x - m)) = |P (x - m)|                      P = L^-1, S = L L^T: patch score        (5)
    a = -log sum_k pi_k N(x; m_k, S_k)                                  that of a mixture of K Gaussians        (6)
    anomaly map = Gaussian(upsample(a)), image score = its maximum                                              (7)

The d values are random ones, as in the paper, or directions of all patches: those of the largest variance, or of the
smallest, in which what is new shows (Rippel, Mertens and Merhof, ICPR 2021). (2) to (4) are summed in float64
(detection/moments.py), for as many places at once as there is room for; (6) is learned by EM (scikit-learn).
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from backbones.bank import free_on
from backbones.float32 import full_float32
from detection import Normal, Passes
from detection.detector import LARGEST_EXPORT
from detection.map_patches import MapDetector, MapOptions, patchsize
from detection.moments import Moments, shrunk, whitening_factors
from detection.state import Sizes
from errors import UsageError
from options import WIDEST, option

CELLS = 1  # of a layer map, along a patch's side
DIMENSIONS = 100  # of ResNet18 in the paper
DIRECTIONS, MIXED = 50_000, 20_000  # patches that directions and a mixture are learned of, at most
REGULARISATION = 1e-4  # of the mean variance, added to those of a mixture
ROUNDING = 1e-6  # of the values' mean square, which it is at least: what 8 bits leave unknown
STARTS = 3
WORKING_MEMORY = 2**30  # bytes of sums that are held at once
FACTORED = 2**23  # values of covariances that are factorised at once


@dataclass(frozen=True)
class Options(MapOptions):
    """Gaussians of normal patches: of every place (PaDiM), of all patches, or a mixture; nothing is trained."""

    of: Literal["position", "patches"] = option(
        "position",
        "What a Gaussian is of. position: all images at one place, for aligned parts (PaDiM); patches: all patches, "
        "for textures.",
    )
    patchsize: int | None = patchsize(CELLS)
    dimensions: int | None = option(
        None,
        "Values of a patch that are looked at.",
        shown=f"{DIMENSIONS}; all for one Gaussian of patches",
        at_least=1,
        at_most=WIDEST,
    )
    choose: Literal["random", "largest", "smallest"] = option(
        "random",
        "Which those are. random: any of them; largest, smallest: directions in which normal patches differ most, or "
        "least (PCA).",
    )
    shrinkage: Literal["constant", "ledoit_wolf"] = option(
        "constant",
        "How covariances are kept from being singular. constant: by --eps; ledoit_wolf: as far as few images ask for.",
    )
    eps: float = option(0.01, "Added to all variances.", above=0)
    components: int = option(1, "Gaussians of a mixture, of patches.", at_least=1, at_most=1000)


class Gaussian(MapDetector):
    """Frozen backbone or pixels, patches, and Gaussians of them, computed in float32.

    Args:
        backbone, layers, image_size, precision, seed, options: see Detector.

    Raises:
        UsageError: patches that do not fit the maps.
    """

    Options = Options
    DATASET_DEFAULTS: ClassVar = {"train_val_split": 0.9}  # few images lie near their own Gaussians
    CELLS: ClassVar = CELLS
    NEAREST: ClassVar = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        own = self.options
        self.of_places = own.of == "position"
        self.is_mixture = not self.of_places and own.components > 1
        default = DIMENSIONS if self.of_places or self.is_mixture else self.width
        self.dimensions = min(own.dimensions or default, self.width)
        self.places = self.grid[0] * self.grid[1] if self.of_places else 1
        order = torch.randperm(self.width, generator=torch.Generator().manual_seed(self.seed))
        is_random = own.choose == "random"
        self.register_buffer("chosen", order[: self.dimensions].sort().values if is_random else None)
        self.register_buffer("directions", None if is_random else torch.zeros(self.width, self.dimensions))
        self.register_buffer("mean", torch.empty(0, self.dimensions))
        self.register_buffer("factor", torch.empty(0, self.dimensions, self.dimensions))
        self.register_buffer("log_weight", torch.empty(0) if self.is_mixture else None)

    @property
    def sized_by_data(self) -> Mapping[str, Sizes]:
        """The Gaussians: there may be fewer patches that differ than components of a mixture."""
        count = range(1, self.options.components + 1) if self.is_mixture else self.places
        d = self.dimensions
        sizes: dict[str, Sizes] = {"mean": (count, d), "factor": (count, d, d)}
        return sizes | ({"log_weight": (count,)} if self.is_mixture else {})

    @property
    def not_exported(self) -> str:
        """Its Gaussians may be more than a file of ONNX holds."""
        size = 4 * self.factor.numel()
        if size < LARGEST_EXPORT:
            return ""
        return f"its {len(self.factor)} Gaussians take {size / 2**30:.1f} GiB, and an export holds 2"

    def check(self) -> None:
        """As in Detector.

        Raises:
            UsageError: memory has no room for the Gaussians.
        """
        size = self.places * self.dimensions**2
        needed, free = 4 * size + min(8 * size, WORKING_MEMORY), free_on(torch.device("cpu"))
        if needed > free:
            raise UsageError(
                f"Gaussians of {self.dimensions} values at {self.places} places take {4 * size / 2**30:.1f} GiB, "
                f"{needed / 2**30:.1f} GiB while they are learned, and {free / 2**30:.1f} GiB are free: lower "
                "--dimensions, raise --stride or read no layer as fine as the first"
            )

    def passes_of(self, has_held_out: bool) -> Passes:
        """One for the sums of every block of places, and before them one for directions."""
        return Passes(steps=0, settling=(self.directions is not None) + math.ceil(self.places / self._at_once))

    def settle(self, *classes: Normal) -> Mapping[str, float]:
        """Choose directions, and take means and covariances; of Ledoit and Wolf's shares the mean is watched."""
        (own,) = classes

        def looked_at() -> Iterator[Tensor]:
            return map(self.looked_at, self.all_patches(own.train))

        with full_float32(self.device):
            unknown = 0.0  # in directions in which normal patches do not move at all, rounding is all that does
            if self.directions is not None:
                rows = self.sample(self.all_patches(own.train), DIRECTIONS)
                self.directions.copy_(directions(rows, self.dimensions, self.options.choose == "largest"))
                unknown = ROUNDING * rows.square().mean().item()
            if self.is_mixture:
                rows = self.sample(looked_at(), MIXED)
                self.mean, self.factor, self.log_weight = mixture(rows, self.options.components, self.seed)
                return {"components": float(len(self.mean))}
            self.mean = self.mean.new_empty(self.places, self.dimensions)
            self.factor = self.factor.new_empty(self.places, self.dimensions, self.dimensions)
            shares = []
            for start in range(0, self.places, self._at_once):
                block = slice(start, min(start + self._at_once, self.places))
                moments = Moments(block.stop - start, self.dimensions, self.device)
                if self.of_places:
                    for patches, inside in self.patches_and_cells(own.train):
                        rows = self.looked_at(patches).flatten(1, 2)[:, block]
                        moments.add(rows, None if inside is None else inside.flatten(1)[:, block])
                for found in () if self.of_places else looked_at():
                    moments.add(found.flatten(0, -2).unsqueeze(1))
                shares.append(self._take(block, moments, unknown))
        return {} if self.options.shrinkage == "constant" else {"shrinkage": torch.cat(shares).mean().item()}

    @property
    def _at_once(self) -> int:
        """Places whose sums are held at once."""
        return max(1, WORKING_MEMORY // (8 * self.dimensions**2))

    def _take(self, block: slice, moments: Moments, unknown: float) -> Tensor:
        """Keep means and covariances (2) to (4) of a block of places; how far they were shrunk, [places].

        `unknown` is the least variance of a value where the shrinkage is Ledoit and Wolf's, which may add none.
        """
        is_shrunk = self.options.shrinkage == "ledoit_wolf"
        covariance = moments.covariance(correction=0 if is_shrunk else 1)
        shares, mean = moments.shrinkage() if is_shrunk else covariance.new_zeros(len(covariance)), moments.mean
        self.mean[block] = mean.float()
        few = max(1, FACTORED // self.dimensions**2)
        for i in range(0, len(mean), few):
            part = slice(i, i + few)
            own = shrunk(covariance[part], shares[part])
            own.diagonal(dim1=1, dim2=2).add_(unknown if is_shrunk else self.options.eps)
            self.factor[block][part] = whitening_factors(own, mean[part]).float()
        return shares

    def looked_at(self, patches: Tensor) -> Tensor:
        """The d values (1) of patches [..., D]: [..., d]."""
        if self.directions is not None:
            return patches @ self.directions
        return patches if self.dimensions == self.width else patches.index_select(-1, self.chosen)

    def scored(self, patches: Tensor) -> Tensor:
        """a (5) or (6) of patches [B, h, w, D]: [B, h, w]."""
        return self.patch_scores(self.looked_at(patches))

    def patch_scores(self, patches: Tensor) -> Tensor:
        """a (5) or (6) of patches [B, h, w, d]: [B, h, w]."""
        rows = patches.flatten(1, 2)
        if self.of_places:
            scores = distances(rows.transpose(0, 1), self.mean, self.factor).T
        elif self.is_mixture:
            scores = improbability(rows, self.mean, self.factor, self.log_weight)
        else:
            scores = distances(rows, self.mean, self.factor)
        return scores.unflatten(1, self.grid)


def distances(rows: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """a (5) of rows [P, n, d] by P Gaussians, or all by one: [P, n].

    Args:
        mean: m, [P or 1, d].
        factor: P, lower triangles [P or 1, d, d].
    """
    return torch.linalg.vector_norm((rows - mean.unsqueeze(1)) @ factor.mT, dim=2)


def improbability(rows: Tensor, mean: Tensor, factor: Tensor, log_weight: Tensor) -> Tensor:
    """a (6) of rows [..., d] by means [K, d], factors [K, d, d] and log pi [K]: [...]."""
    constant = (
        log_weight + factor.diagonal(dim1=1, dim2=2).log().sum(dim=1) - math.log(2 * math.pi) * rows.shape[-1] / 2
    )
    parts = [
        weight - ((rows - m) @ own.T).square().sum(dim=-1) / 2
        for weight, m, own in zip(constant.unbind(), mean.unbind(), factor.unbind(), strict=True)
    ]
    return -torch.stack(parts).logsumexp(dim=0)


def directions(rows: Tensor, count: int, largest: bool) -> Tensor:
    """The directions [D, count] in which rows [N, D] differ most, or least; orthonormal, float32."""
    moments = Moments(1, rows.shape[1], rows.device)
    moments.add(rows.unsqueeze(1))
    vectors = torch.linalg.eigh(moments.covariance()[0]).eigenvectors  # by variance, the smallest first
    return (vectors[:, -count:] if largest else vectors[:, :count]).float()


def mixture(rows: Tensor, components: int, seed: int, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Means [K, d], factors [K, d, d] and log weights [K] of a mixture (6) of rows [N, d], of their type.

    K is less than `components` where fewer rows differ. `more` are further arguments of its program.
    """
    from sklearn.exceptions import ConvergenceWarning  # late: other commands need not wait for it
    from sklearn.mixture import GaussianMixture

    own = rows.double().cpu()
    least = max(REGULARISATION * own.var(dim=0, correction=0).mean(), ROUNDING * own.square().mean()).item()
    k = min(components, len(own.unique(dim=0)))
    options = {"n_init": STARTS, "reg_covar": least or 1.0, "random_state": seed} | more
    model = GaussianMixture(k, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what it has found by then describes the patches
        model.fit(own.numpy() if len(own) > 1 else own.repeat(2, 1).numpy())  # it wants two
    factor = torch.from_numpy(model.precisions_cholesky_).mT  # S^-1 = U U^T, U upper: the same triangle, turned
    log_weight = torch.from_numpy(model.weights_).log()
    return tuple(one.to(rows).contiguous() for one in (torch.from_numpy(model.means_), factor, log_weight))
