"""One-class machines on normal patches: a surface in feature space that holds most of them.

OC-SVM (Schoelkopf et al., Neural Computation 2001) parts them from the origin by a hyperplane, SVDD (Tax and Duin,
Machine Learning 2004) wraps them in the smallest sphere. The equations, as numbered here, of N patches drawn from all
images:

    x = W [pool(F_1), resize(pool(F_2)), ...] + b                       patch, whitened or standardised         (1)
    min_{w,rho,xi} |w|^2 / 2 - rho + sum xi_i / (nu N),                 OC-SVM                                  (2)
        <w, phi(x_i)> >= rho - xi_i, xi_i >= 0
    g(x) = sum_i alpha_i k(x_i, x) - rho                                0 <= alpha_i <= 1, sum alpha_i = nu N   (3)
    k(x, y) = <x, y>, or exp(-gamma |x - y|^2)                          linear, and Gaussian kernel             (4)
    phi(x) = M k(landmarks, x), g(x) = <w, phi(x)> - rho                Gaussian kernel by Nystroem             (5)
    min_{R,c,xi} R^2 + sum xi_i / (nu N),                               SVDD                                    (6)
        |x_i - c|^2 <= R^2 + xi_i, xi_i >= 0
    s = -g(x), and |x - c| - R of SVDD                                  patch score                             (7)
    anomaly map = Gaussian(upsample(s)), image score = its maximum                                              (8)

With a Gaussian kernel (2) and (6) are one machine; it is called `gaussian` here, and `svdd` is a sphere among the
patches themselves. Its g never falls below -rho, however far a patch is, so that s is log rho - log(g + rho) of it, of
the same order. libsvm, by scikit-learn, solves the duals of (2) and (6): that of SVDD is that of an OC-SVM whose kernel
is -|x - y|^2 / 2. (5) is scikit-learn's Nystroem and SGDOneClassSVM, with the centres of k-means as landmarks; M^T w
makes (3) of it. There, linear, patches are not centred: the origin is what they are parted from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.bank import free_on
from backbones.float32 import full_float32
from detection import Normal
from detection.map_patches import MapDetector, MapOptions
from detection.memory_bank import WORKING_MEMORY
from detection.neighbours import k_means
from detection.state import Sizes
from detection.variance import known_deviation
from detection.whitening import whitening
from errors import UsageError
from options import option

SCALED = 50_000  # patches that W and b are learned of
MANY, FEW = 100_000, 5000  # that a machine is learned of: by Nystroem, and exactly
CLUSTERED = 20_000  # that landmarks are chosen by
SEEN = 2**14  # patches that are seen from landmarks at once
COMPARED = 2000  # whose distances gamma is of
BLOCK = 2**24  # values of kernels that are held at once
LEAST = 0.1  # of that for each of D values, where scaled rows of unit variance have about 2: many may be alike
TOLERANCE = 1e-6  # of the solvers


@dataclass(frozen=True)
class Options(MapOptions):
    """One-class machines on normal patches: OC-SVM with a linear or Gaussian kernel, and SVDD."""

    machine: Literal["nystroem", "gaussian", "linear", "svdd"] = option(
        "nystroem",
        "nystroem: OC-SVM with a Gaussian kernel, seen from landmarks, of many patches; gaussian: the same without "
        "landmarks, of few; linear: a hyperplane; svdd: a sphere.",
    )
    nu: float = option(0.05, "Share of the normal patches that may lie outside.", above=0, at_most=1)
    gamma: float | None = option(
        None, "Of the Gaussian kernel.", shown="1 / the median squared distance of normal patches", above=0
    )
    landmarks: int = option(500, "Patches that nystroem sees others from.", at_least=1, at_most=2**16)
    rows: int | None = option(
        None,
        "Patches that a machine is learned of, drawn of all images.",
        shown=f"{MANY}; {FEW} without landmarks",
        at_least=1,
        at_most=2**20,
    )
    whiten: float = option(
        0.1, "Patches are whitened with this shrinkage; 0: each of their values is standardised.", at_least=0
    )


class OneClass(MapDetector):
    """Frozen backbone or pixels, patches, and a machine that holds most of them, computed in float32.

    Args:
        backbone, layers, image_size, precision, seed, options: see Detector.

    Raises:
        UsageError: patches that do not fit the maps.
    """

    Options = Options

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        own = self.options
        self.has_landmarks = own.machine == "nystroem"
        self.has_kernel = own.machine in ("nystroem", "gaussian")
        self.rows = own.rows or (MANY if self.has_landmarks else FEW)
        self.register_buffer(
            "weight", torch.zeros(self.width, self.width) if own.whiten > 0 else torch.ones(self.width)
        )
        self.register_buffer("bias", torch.zeros(self.width))
        self.register_buffer("centres", torch.empty(0, self.width))
        self.register_buffer("weights", torch.empty(0))
        self.register_buffer("offset", torch.tensor(0.0))
        self.register_buffer("gamma", torch.tensor(1.0))

    @property
    def sized_by_data(self) -> Mapping[str, Sizes]:
        """What patches are compared with: landmarks, support vectors, or one vector."""
        most = (self.options.landmarks if self.has_landmarks else self.rows) if self.has_kernel else 1
        return {"centres": (range(1, most + 1), self.width), "weights": (range(1, most + 1),)}

    def check(self) -> None:
        """As in Detector.

        Raises:
            UsageError: memory has no room for the kernel of all pairs of patches.
        """
        needed, free = 0 if self.has_landmarks else 3 * 8 * self.rows**2, free_on(torch.device("cpu"))
        if needed > free:
            raise UsageError(
                f"--machine {self.options.machine} of --rows {self.rows} takes {needed / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB are free: lower --rows, or choose --machine nystroem"
            )

    def settle(self, *classes: Normal) -> Mapping[str, float]:
        """Learn the machine of patches drawn of all images; the share of these that lie outside is watched."""
        (own,) = classes
        with full_float32(self.device):
            count = min(max(SCALED, self.rows), WORKING_MEMORY // (4 * self.width))
            drawn = self.sample(self.all_patches(own.train), count)
            self._scale(drawn)
            rows = self.scaled(drawn[: self.rows]).unique(dim=0)  # of equal ones, one
            found = self._machine(rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))])
            self.centres, self.weights = found.centres.float(), found.weights.float()
            self.offset.copy_(found.offset)
            outside = torch.cat([self.patch_scores(part) > 0 for part in rows.split(1024)])
        return {"outside": outside.float().mean().item()}

    def _scale(self, rows: Tensor) -> None:
        """Learn W and b (1) of patches [N, D]."""
        if self.options.whiten > 0:
            weight, bias = whitening([rows], self.options.whiten)
        else:
            weight, bias = standardisation(rows)
        self.weight.copy_(weight)
        self.bias.copy_(torch.zeros_like(bias) if self.options.machine == "linear" else bias)

    def _machine(self, rows: Tensor) -> "Machine":
        """The machine of scaled patches [N, D] in random order."""
        own = self.options
        if own.machine == "svdd":
            return sphere(rows.double(), own.nu)
        if own.machine == "linear":
            return hyperplane(rows.double(), own.nu)
        self.gamma.copy_(width_of(rows) if own.gamma is None else torch.tensor(own.gamma))
        gamma = self.gamma.item()
        if not self.has_landmarks:
            return support_vectors(rows.double(), own.nu, gamma)
        return nystroem(rows, landmarks(rows, own.landmarks, self.seed), own.nu, gamma, self.seed)

    def scaled(self, patches: Tensor) -> Tensor:
        """x (1) of patches [..., D], float32."""
        if self.weight.ndim == 1:
            return patches * self.weight + self.bias
        return F.linear(patches, self.weight, self.bias)

    def scored(self, patches: Tensor) -> Tensor:
        """s (7) of patches [B, h, w, D], as many at a time as a block holds: [B, h, w]."""
        patches = self.scaled(patches)
        if torch.compiler.is_compiling():
            return self.patch_scores(patches)
        rows = patches.flatten(0, 2).split(max(1, BLOCK // len(self.centres)))
        return torch.cat([self.patch_scores(part) for part in rows]).view(patches.shape[:3])

    def patch_scores(self, patches: Tensor) -> Tensor:
        """s (7) of scaled patches [..., D]: [...]."""
        machine = self.options.machine
        if machine == "linear":
            return self.offset - patches @ self.centres[0]
        if machine == "svdd":
            return torch.linalg.vector_norm(patches - self.centres[0], dim=-1) - self.offset.clamp(min=0).sqrt()
        exponents = -self.gamma * squared_distances(patches, self.centres)
        if machine == "nystroem":
            return self.offset - exponents.exp() @ self.weights
        return self.offset.log() - (exponents + self.weights.log()).logsumexp(dim=-1)


class Machine(NamedTuple):
    """What patches are compared with: vectors [M, D], their weights [M], and rho or R^2 []."""

    centres: Tensor
    weights: Tensor
    offset: Tensor


def squared_distances(rows: Tensor, centres: Tensor) -> Tensor:
    """|x - y|^2 of all pairs of rows [..., D] and centres [M, D]: [..., M]."""
    lengths = rows.square().sum(dim=-1, keepdim=True) + centres.square().sum(dim=-1)
    return (lengths - 2 * rows @ centres.T).clamp(min=0)


def support_vectors(rows: Tensor, nu: float, gamma: float) -> Machine:
    """g (3) of rows [N, D], float64, with a Gaussian kernel: support vectors, alpha and rho."""
    chosen, alpha, rho = _solved((-gamma * squared_distances(rows, rows)).exp(), nu)
    return Machine(rows[chosen], alpha, rho)


def hyperplane(rows: Tensor, nu: float) -> Machine:
    """g (3) of rows [N, D], float64, with a linear kernel: w [1, D], of weight 1, and rho."""
    chosen, alpha, rho = _solved(rows @ rows.T, nu)
    return Machine((alpha @ rows[chosen]).unsqueeze(0), alpha.new_ones(1), rho)


def sphere(rows: Tensor, nu: float) -> Machine:
    """SVDD (6) of rows [N, D], float64: the centre c [1, D], of weight 1, and R^2.

    With beta = alpha / (nu N) and V = sum beta_i |x_i - c|^2, g is -nu N / 2 (|x - c|^2 + V) - rho.
    """
    chosen, alpha, rho = _solved(-squared_distances(rows, rows) / 2, nu)
    beta = alpha / alpha.sum()
    centre = beta @ rows[chosen]
    spread = beta @ (rows[chosen] - centre).square().sum(dim=1)
    return Machine(centre.unsqueeze(0), beta.new_ones(1), -2 * rho / alpha.sum() - spread)


def nystroem(rows: Tensor, landmarks: Tensor, nu: float, gamma: float, seed: int) -> Machine:
    """g (5) of rows [N, D] seen from landmarks [M, D] as (3): landmarks, M^T w and rho, of the rows' type."""
    from sklearn.kernel_approximation import Nystroem  # late: other commands need not wait for it
    from sklearn.linear_model import SGDOneClassSVM

    seen = Nystroem(gamma=gamma, n_components=len(landmarks), random_state=seed).fit(landmarks.double().cpu().numpy())
    parts = [seen.transform(part.double().cpu().numpy()) for part in rows.split(SEEN)]
    model = SGDOneClassSVM(nu=nu, random_state=seed, tol=TOLERANCE).fit(np.concatenate(parts))
    weights = seen.normalization_.T @ model.coef_.ravel()
    found = torch.from_numpy(seen.components_), torch.from_numpy(weights), torch.from_numpy(model.offset_)[0]
    return Machine(*(one.to(rows) for one in found))


def landmarks(rows: Tensor, count: int, seed: int) -> Tensor:
    """Centres of k-means of rows [N, D] that differ, or all rows where they are no more: [count or N, D]."""
    return rows if len(rows) <= count else k_means(rows[: max(CLUSTERED, count)], count, seed)


def width_of(rows: Tensor) -> Tensor:
    """1 / the median squared distance of scaled rows [N, D] from each other, which is at least LEAST D."""
    own = rows[:COMPARED].double()
    least = LEAST * rows.shape[1]
    above = torch.ones(len(own), len(own), dtype=torch.bool, device=own.device).triu(1)
    found = squared_distances(own, own)[above]
    return 1 / (found.median() if len(found) else found.new_zeros(())).clamp(min=least)


def standardisation(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias [D] that give rows [N, D] zero mean and unit variance; float32."""
    own = rows.double()
    mean = own.mean(dim=0)
    weight = 1 / known_deviation(own.var(dim=0, correction=0), mean)
    return weight.float(), (-weight * mean).float()


def _solved(kernel: Tensor, nu: float) -> tuple[Tensor, Tensor, Tensor]:
    """The dual of (2) for kernels [N, N]: the indices of support vectors, their alpha, and rho; alpha sums to nu N."""
    from sklearn.svm import OneClassSVM  # late: other commands need not wait for it

    model = OneClassSVM(kernel="precomputed", nu=nu, tol=TOLERANCE).fit(kernel.cpu().numpy())
    found = model.support_.astype("int64"), model.dual_coef_[0], model.offset_[0]
    chosen, alpha, rho = (torch.as_tensor(one) for one in found)
    return chosen.to(kernel.device), alpha.to(kernel), rho.to(kernel)
