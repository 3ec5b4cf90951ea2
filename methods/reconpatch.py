"""ReConPatch: contrastive patch representation learning (Hyun et al., WACV 2024, arXiv 2305.16713).

A linear map of PatchCore's patch features learns to draw patches together as far as a slow copy of it takes them for
alike, by their distance and by the neighbours they share; then all is PatchCore's. The equations, as numbered here, of
the N patches p_i of a batch, distances Euclidean among the z_bar for (2) to (7):

    z_i = g(f(p_i)), z_bar_i = g_bar(f_bar(p_i))                f, g linear with bias; f_bar, g_bar follow them    (1)
    w_pair_ij = exp(-|z_bar_i - z_bar_j|^2 / sigma)                                                                (2)
    N_k(i) = the k nearest of i, itself the first; R_k(i) = those j of them that i is one of the k nearest of      (3)
    w~_ij = |N_k(i) and N_k(j)| / k if j in N_k(i), else 0                                                         (4)
    w^_ij = mean over l in R_k/2(i) of w~_lj                    k/2 rounded to even                                (5)
    w_ctx_ij = (w^_ij + w^_ji) / 2                                                                                 (6)
    omega = alpha w_pair + (1 - alpha) w_ctx                                                                       (7)
    delta_ij = |z_i - z_j| / ((1/N) sum_n |z_i - z_n|)                                                             (8)
    L = (1/N) sum_ij omega_ij delta_ij^2 + (1/N) sum_ij (1 - omega_ij) max(0, m - delta_ij)^2                      (9)
    theta_bar <- gamma theta_bar + (1 - gamma) theta            after every step                                  (10)

The memory bank is of f(p), and what is not near it is anomalous: methods/patchcore.py has the equations. Image scores
are those of PatchCore's paper, (6) there. The text says neither how batches are made nor whether a patch is among its
own neighbours. Here the patches of a batch of images are mixed and split into batches of about `--rows`.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from backbones.float32 import full_float32
from backbones.patches import patch_grid
from detection import EndOfPass, Normal, Passes, learn
from detection.memory_bank import MemoryBank
from errors import UsageError
from methods.patchcore import MemoryOptions, PatchCore
from options import option, redefined


@dataclass(frozen=True)
class Options(MemoryOptions):
    """ReConPatch: a memory bank of patches that a linear map has drawn together as far as they are alike."""

    percentage: float = redefined(MemoryOptions, "percentage", 0.01)
    reweight: int = redefined(MemoryOptions, "reweight", 9)
    modulated_dim: int = option(512, "Values of a patch after f, which the bank keeps.", at_least=1, at_most=2**14)
    projected_dim: int = option(128, "Values of a patch after g, in training.", at_least=1, at_most=2**14)
    k_nearest: int = option(5, "Neighbours that patches may share, each itself among its own.", at_least=1)
    alpha: float = option(
        0.5, "Share of the similarity that is of distances; the rest is of shared neighbours.", at_least=0, at_most=1
    )
    sigma: float = option(
        0.0,
        "Squared distance at which that similarity is 1/e; 0: the median of every batch, since 1, the paper's, suits "
        "few backbones' features.",
        at_least=0,
    )
    margin: float = option(1.0, "How far patches that are not alike are driven, in mean distances.", at_least=0)
    gamma: float = option(0.9, "What the slow copies keep of themselves at every step.", at_least=0, below=1)
    rows: int = option(512, "Patches of a step, about.", at_least=2, at_most=2**14)
    lr: float = option(1e-5, "Learning rate of AdamP; it falls as a cosine from epoch to epoch.", above=0)
    weight_decay: float = option(1e-2, "Its weight decay.", at_least=0)
    epochs: int = option(120, "Passes over the training images; each is evaluated, see --eval_every.", at_least=1)


class ReConPatch(PatchCore):
    """Frozen backbone, patch features, a linear map f that is trained on them, and a memory bank of f's values.

    Args:
        backbone, layers, image_size, precision, seed, options: see PatchCore. Whitening, where it is asked for, comes
            before f.

    Raises:
        UsageError: options of the bank that do not go together, or batches with too few patches for --k_nearest.
    """

    Options = Options

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        own = self.options
        if own.k_nearest > own.rows // 2:
            raise UsageError(
                f"--k_nearest {own.k_nearest} needs steps of more patches: raise --rows to {2 * own.k_nearest} or more"
            )
        self.bank = MemoryBank(own, own.modulated_dim, self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.modulation = nn.Linear(own.target_embed_dimension, own.modulated_dim)
            self.projection = nn.Linear(own.modulated_dim, own.projected_dim)
        self.slow_modulation, self.slow_projection = (
            copy.deepcopy(one).requires_grad_(False) for one in (self.modulation, self.projection)
        )

    def check(self) -> None:
        """As in PatchCore, and where an image has fewer patches than --k_nearest."""
        super().check()
        info, k = self.backbone.layer_info(self.layers, self.image_size)[0], self.options.k_nearest
        height, width = patch_grid(info.grid, self.options.patchsize)
        if k > height * width:
            raise UsageError(f"--k_nearest {k} is more than the {height} x {width} patches of an image: lower it")

    def passes_of(self, has_held_out: bool) -> Passes:
        """One in every epoch and one for the bank after it, and before all one for whitening."""
        return Passes(before=int(self.options.whiten > 0), steps=1, settling=1)

    def begin(self, *classes: Normal) -> None:
        """Whiten, where that is asked for."""
        (own,) = classes
        self.whiten(own.train)

    def trainer(self, *classes: Normal) -> "Trainer":
        """As in Detector."""
        return Trainer(self)

    def settle(self, *classes: Normal) -> Mapping[str, float]:
        """Fill the bank."""
        (own,) = classes
        with full_float32(self.device):
            return self.bank.fill(own.train, self.compared)

    def compared(self, features: Tensor) -> Tensor:
        """f of features [..., D], whitened where that is asked for: float32 [..., D']."""
        return self.modulation(self.whitened(features))


class Step(NamedTuple):
    """What one step says of itself: L, and the means of w_pair and w_ctx, which tell whether sigma fits."""

    loss: Tensor
    pairwise: Tensor
    contextual: Tensor


class Trainer:
    """AdamP on f and g, with a rate that falls from epoch to epoch as a cosine."""

    def __init__(self, detector: ReConPatch) -> None:
        from timm.optim import AdamP  # late: predicting needs none

        own = detector.options
        self.detector = detector
        learned = [*detector.modulation.parameters(), *detector.projection.parameters()]
        self.optimizer = AdamP(learned, lr=own.lr, weight_decay=own.weight_decay)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, own.epochs)
        self.generator = torch.Generator().manual_seed(detector.seed)

    def steps(self, batches: Iterable[Tensor]) -> Iterator[Step]:
        """A step per about `--rows` patches of a batch of images' embeddings [B, ..., D]."""
        for batch in batches:
            rows = batch.flatten(0, -2)
            order = torch.randperm(len(rows), generator=self.generator).to(rows.device)
            for chosen in order.tensor_split(-(-len(rows) // self.detector.options.rows)):
                yield self._step(rows[chosen])

    def _step(self, patches: Tensor) -> Step:
        own, options = self.detector, self.detector.options
        with full_float32(patches.device):
            patches = own.whitened(patches)
            with torch.no_grad():
                squared = squared_distances(own.slow_projection(own.slow_modulation(patches)))
                pairwise = pairwise_similarity(squared, options.sigma or median(squared))
                contextual = contextual_similarity(squared, options.k_nearest)
                omega = options.alpha * pairwise + (1 - options.alpha) * contextual
            loss = relaxed_contrastive_loss(own.projection(own.modulation(patches)), omega, options.margin)
        learn(loss, [self.optimizer], torch.float32)
        follow([own.slow_modulation, own.slow_projection], [own.modulation, own.projection], options.gamma)
        return Step(loss.detach(), pairwise.mean(), contextual.mean())

    def end_pass(self) -> EndOfPass:
        """Lower the rate."""
        self.schedule.step()
        return EndOfPass()

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])


def pairwise_similarity(squared: Tensor, sigma: float | Tensor) -> Tensor:
    """w_pair (2) of squared distances [N, N]: [N, N]."""
    return (-squared / sigma).exp()


def contextual_similarity(squared: Tensor, k: int) -> Tensor:
    """w_ctx (6) of squared distances [N, N]: [N, N] in [0, 1]; of patches equally far, the first is nearer."""
    ranked = squared.clone().fill_diagonal_(-1)  # a patch is its own first neighbour
    nearest = ranked.topk(min(k, len(ranked)), dim=1, largest=False).values
    near, nearer = (_nearest(ranked, nearest[:, :count]) for count in (k, max(1, round(k / 2))))
    shared = near @ near.T / k * near  # (4)
    mutual = nearer * nearer.T
    expanded = mutual @ shared / mutual.sum(dim=1, keepdim=True)  # (5)
    return (expanded + expanded.T) / 2


def relaxed_contrastive_loss(z: Tensor, omega: Tensor, margin: float) -> Tensor:
    """L (9) of projected patches [N, q] and how alike they shall be, [N, N]; a scalar."""
    squared = squared_distances(z)
    is_apart = squared > 0
    distances = torch.where(is_apart, torch.where(is_apart, squared, 1).sqrt(), 0)  # the root has no gradient at 0
    delta = distances / distances.mean(dim=1, keepdim=True).clamp(min=1e-12)
    return (omega * delta.square() + (1 - omega) * (margin - delta).clamp(min=0).square()).sum() / len(z)


def squared_distances(z: Tensor) -> Tensor:
    """|z_i - z_j|^2 of rows [N, q]: [N, N], 0 on the diagonal."""
    centred = z - z.detach().mean(dim=0)  # large products would lose the digits of small distances
    norms = centred.square().sum(dim=1)
    squared = norms.unsqueeze(1) + norms - 2 * centred @ centred.T
    return squared.clamp(min=0) * (1 - torch.eye(len(z), dtype=z.dtype, device=z.device))


def median(squared: Tensor) -> Tensor:
    """The median of squared distances [N, N] between different patches, above 0; a scalar."""
    n = len(squared)
    others = squared.flatten()[1:].view(n - 1, n + 1)[:, :-1] if n > 1 else squared  # without the diagonal
    return others.flatten().median().clamp(min=1e-12)


@torch.no_grad()
def follow(slow: Iterable[nn.Module], trained: Iterable[nn.Module], gamma: float) -> None:
    """Let slow copies follow what is trained by a step (10)."""
    averages, weights = ([own for module in modules for own in module.parameters()] for modules in (slow, trained))
    torch._foreach_lerp_(averages, weights, 1 - gamma)


def _nearest(distances: Tensor, nearest: Tensor) -> Tensor:
    """1 where j is one of the c nearest of i, whose distances are [N, c] in order, else 0: [N, N]. Of those that are as
    far as the last of them, the first are nearer."""
    last = nearest[:, -1:]
    is_nearer, is_as_far = distances < last, distances == last
    room = nearest.shape[1] - is_nearer.sum(dim=1, keepdim=True)
    return (is_nearer | (is_as_far & (is_as_far.cumsum(dim=1) <= room))).to(distances)
