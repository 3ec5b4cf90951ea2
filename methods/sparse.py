"""Sparse coding of normal patches by a learned dictionary.

After Olshausen and Field (Nature 1996) and Mairal, Bach, Ponce and Sapiro (ICML 2009), for defects Carrera, Manganini,
Boracchi and Lanzarone (IEEE Transactions on Industrial Informatics 2017).

A dictionary is learned by which normal patches are sums of few atoms; a patch that is not, or takes more of them, is
anomalous. The equations, as numbered here, of patches p of D values:

    x = p - mean(p)                                                     patch without its own mean              (1)
    min_{A, a_i} sum_i |x_i - a_i A|^2 / 2 + lam |a_i|_1, |A_k| <= 1    dictionary A of K atoms                 (2)
    lam = sparsity * median |x|                                         on any scale                            (3)
    a(x) = argmin_a |x - a A|^2 / 2 + lam |a|_1                         code, by so many steps of FISTA:        (4)
        a' = soft(z - (z A - x) A^T / L, lam / L), z' = a' + (t - 1) / t' (a' - a)
        t' = (1 + sqrt(1 + 4 t^2)) / 2, L the largest eigenvalue of A A^T
    f(x) = (|x - a A|^2, |a|_1), with `--brightness` mean(p) too        what is unusual about a patch           (5)
    s = (f - m)^T C^-1 (f - m)                                          m, C of normal patches                  (6)
    map: at every pixel the mean of s over the windows that cover it; of layer maps Gaussian(upsample(s))       (7)

By default s is of max(0, f - m): a patch that is easier to code than others is not anomalous. A is scikit-learn's, by
online dictionary learning; m and C are of patches that A was not learned of. An image's score is the map's maximum.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.alignment import resampled
from backbones.devices import kept_on_device
from backbones.float32 import full_float32
from detection import Normal
from detection.map_patches import MapDetector, MapOptions
from detection.moments import Moments, whitening_factors
from detection.state import Sizes
from detection.variance import STILL
from options import option

BATCH, ROUNDS = 256, 10  # of online learning: patches of a step, and passes over all
UNSEEN = 5  # every so many patches drawn are not learned of, but measured
BLOCK = 2**22  # values of codes that are held at once


@dataclass(frozen=True)
class Options(MapOptions):
    """Sparse coding of normal patches by a learned dictionary; what is coded badly, or by many atoms, is anomalous."""

    atoms: int = option(128, "Of the dictionary; twice to four times a patch's values.", at_least=1, at_most=2**14)
    sparsity: float = option(0.15, "Price of a code, in shares of a normal patch's length: more, fewer atoms.", above=0)
    steps: int = option(30, "Of the search for a code.", at_least=1, at_most=1000)
    rows: int = option(
        20_000,
        "Patches that the dictionary and its errors are learned of, drawn of all images.",
        at_least=1,
        at_most=2**20,
    )
    score: Literal["one_sided", "mahalanobis", "error"] = option(
        "one_sided",
        "Of a patch. one_sided: distance by error and sparsity, where they are higher than normal; mahalanobis: where "
        "they are lower too; error: the error alone.",
    )
    brightness: bool = option(False, "A patch's own mean is looked at too: a flat spot has no error otherwise.")


class SparseCoding(MapDetector):
    """Frozen backbone or pixels, patches, and a dictionary that codes them, in float32.

    Args:
        backbone, layers, image_size, precision, seed, options: see Detector.

    Raises:
        UsageError: patches that do not fit the maps.
    """

    Options = Options

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        count = 2 + self.options.brightness
        self.register_buffer("dictionary", torch.empty(0, self.width))
        self.register_buffer("penalty", torch.tensor(1.0))
        self.register_buffer("largest", torch.tensor(1.0))
        self.register_buffer("mean", torch.zeros(1, count))
        self.register_buffer("factor", torch.zeros(1, count, count))

    @property
    def sized_by_data(self) -> Mapping[str, Sizes]:
        """Atoms that no patch takes are left out."""
        return {"dictionary": (range(1, self.options.atoms + 1), self.width)}

    def settle(self, *classes: Normal) -> Mapping[str, float]:
        """Learn the dictionary, and what is normal of codes; how many atoms a code has is watched."""
        (own,) = classes
        with full_float32(self.device):
            rows = self.sample(self.all_patches(own.train), self.options.rows)
            is_unseen = torch.arange(len(rows), device=rows.device) % UNSEEN == 0
            learned = centred(rows if len(rows) < UNSEEN else rows[~is_unseen])
            lengths = torch.linalg.vector_norm(learned, dim=1)
            scale = lengths.median()
            moves = scale > STILL * torch.linalg.vector_norm(rows, dim=1).mean()
            self.penalty.copy_(self.options.sparsity * (scale if moves else torch.ones_like(scale)))
            start = atoms_to_start(learned, lengths, self.options.atoms, self.seed)
            self._take(learn_dictionary(learned, start, self.penalty.item(), self.seed) if moves else start)
            codes = self.codes(learned)
            is_used = (codes != 0).any(dim=0)
            if is_used.any() and not is_used.all():
                self._take(self.dictionary[is_used])
                codes = self.codes(learned)
            moments = Moments(1, self.mean.shape[1], self.device)
            for part in rows[is_unseen].split(self._at_once):
                moments.add(self.described(part).unsqueeze(1))
            self.mean.copy_(moments.mean)
            self.factor.copy_(whitening_factors(moments.covariance(correction=0), moments.mean))
        return {"atoms": float(len(self.dictionary)), "active_atoms": (codes != 0).sum(dim=1).float().mean().item()}

    def _take(self, dictionary: Tensor) -> None:
        """Code by atoms [K, D]."""
        self.dictionary = dictionary.contiguous()  # as it is read again: products of another layout round otherwise
        self.largest.copy_(torch.linalg.eigvalsh((dictionary @ dictionary.T).double())[-1])

    @property
    def _at_once(self) -> int:
        """Patches that are coded at once."""
        return max(1, BLOCK // len(self.dictionary))

    def codes(self, rows: Tensor) -> Tensor:
        """a (4) of centred patches [N, D]: [N, K]."""
        parts = (
            fista(part, self.dictionary, self.penalty, self.largest, self.options.steps) for part in self._few(rows)
        )
        return torch.cat(list(parts))

    def _few(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows as many at a time as a block holds; a traced graph takes all at once."""
        return (rows,) if torch.compiler.is_compiling() else rows.split(self._at_once)

    def described(self, patches: Tensor) -> Tensor:
        """f (5) of patches [N, D]: [N, 2], or 3 with their brightness."""
        rows = centred(patches)
        codes = self.codes(rows)
        found = [(rows - codes @ self.dictionary).square().sum(dim=1), codes.abs().sum(dim=1)]
        return torch.stack([*found, patches.mean(dim=1)] if self.options.brightness else found, dim=1)

    def patch_scores(self, patches: Tensor) -> Tensor:
        """s (6) of patches [N, D]: [N]."""
        found = self.described(patches)
        if self.options.score == "error":
            return found[:, 0]
        return unusual(found, self.mean, self.factor, self.options.score == "one_sided")

    def scored(self, patches: Tensor) -> Tensor:
        """s (6) of patches [B, h, w, D]: [B, h, w]."""
        return self.patch_scores(patches.flatten(0, 2)).view(-1, *self.grid)

    def drawn(self, scores: Tensor) -> Tensor:
        """Scores [B, h, w] of patches as anomaly maps (7) [B, H, W]."""
        if not self.of_pixels:
            return super().drawn(scores)
        axes = zip(self.grid, self.image_size, strict=True)
        return resampled(
            scores, *(_covering_on(scores.device, n, size, self.patchsize, self.stride) for n, size in axes)
        )


def centred(patches: Tensor) -> Tensor:
    """x (1) of patches [N, D]."""
    return patches - patches.mean(dim=1, keepdim=True)


def fista(rows: Tensor, dictionary: Tensor, penalty: Tensor | float, largest: Tensor | float, steps: int) -> Tensor:
    """Codes (4) after so many steps of FISTA (Beck and Teboulle 2009) from 0.

    Args:
        rows: x, [N, D].
        dictionary: A, [K, D].
        penalty: lam.
        largest: L.

    Returns:
        [N, K].
    """
    products, soft = rows @ dictionary.T / largest, penalty / largest
    onward = torch.eye(len(dictionary), dtype=rows.dtype, device=rows.device) - dictionary @ dictionary.T / largest
    ahead = code = torch.zeros_like(products)
    t = 1.0
    for _ in range(steps):
        moved = torch.addmm(products, ahead, onward)  # z - (z A - x) A^T / L
        new = moved - moved.clamp(-soft, soft)
        t_next = (1 + (1 + 4 * t * t) ** 0.5) / 2
        ahead = new + (t - 1) / t_next * (new - code)
        code, t = new, t_next
    return code


def unusual(found: Tensor, mean: Tensor, factor: Tensor, one_sided: bool) -> Tensor:
    """s (6) of f [N, n], by m [1, n] and P [1, n, n] with P^T P = C^-1: [N]; one-sided in error and sparsity."""
    apart = found - mean
    if one_sided:
        apart = torch.cat([apart[:, :2].clamp(min=0), apart[:, 2:]], dim=1)
    return (apart @ factor[0].T).square().sum(dim=1)


def atoms_to_start(rows: Tensor, lengths: Tensor, count: int, seed: int) -> Tensor:
    """Atoms [count, D] of length 1: the first rows [N, D] that have a length, and random directions."""
    generator = torch.Generator().manual_seed(seed)
    own = rows[lengths > STILL * lengths.amax()][:count] if lengths.amax() > 0 else rows[:0]
    more = torch.randn(count - len(own), rows.shape[1], generator=generator).to(rows)
    return F.normalize(torch.cat([own, centred(more)]), dim=1)


def learn_dictionary(rows: Tensor, start: Tensor, penalty: float, seed: int) -> Tensor:
    """A (2) of rows [N, D] from atoms [K, D]: [K, D], atoms of length 1."""
    from sklearn.decomposition import MiniBatchDictionaryLearning  # late: other commands need not wait for it
    from sklearn.exceptions import ConvergenceWarning

    model = MiniBatchDictionaryLearning(
        len(start),
        alpha=penalty,
        batch_size=BATCH,
        max_iter=ROUNDS,
        fit_algorithm="cd",
        transform_algorithm="lasso_cd",
        dict_init=start.double().cpu().numpy(),
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # codes on the way need not be exact
        model.fit(rows.double().cpu().numpy())
    return F.normalize(torch.from_numpy(model.components_), dim=1).to(rows)


def covering(cells: int, length: int, side: int, stride: int) -> Tensor:
    """Shares [length, cells] of windows in the pixels of an axis: all that cover a pixel alike, or the nearest one."""
    pixels, first = torch.arange(length).unsqueeze(1), torch.arange(cells) * stride
    covers = ((first <= pixels) & (pixels < first + side)).float()
    nearest = (pixels - first - (side - 1) / 2).abs().argmin(dim=1)
    lone = F.one_hot(nearest, cells).float()
    covers = torch.where(covers.sum(dim=1, keepdim=True) > 0, covers, lone)
    return covers / covers.sum(dim=1, keepdim=True)


_covering_on = kept_on_device(covering)
