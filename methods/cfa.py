"""CFA: coupled-hypersphere-based feature adaptation (Lee, Lee and Song, 2022, arXiv 2206.04325).

A descriptor learns to draw the patches of normal images to the nearest centres of a memory bank, whose size does not
depend on the number of images; a patch that stays far from them is anomalous. The equations, as numbered here:

    p = [pool(F_1), resize(pool(F_2)), ...]                             patch features of D dimensions             (1)
    phi(p) = W [p, y, x] + b                                            descriptor, D / gamma_d dimensions         (2)
    C = k-means of the mean of phi(p) over the images                   memory bank, H1 W1 / gamma_c centres       (3)
    L_att = mean_t mean_k max(0, |phi(p_t) - c_k|^2 - r^2)              c_1 ... c_K the nearest centres of patch t (4)
    L_rep = mean_t mean_j max(0, r^2 - |phi(p_t) - c_K+j|^2 - alpha)    c_K+1 ... c_K+J the next nearest           (5)
    L = (L_att + L_rep) / nu                                                                                       (6)
    s_t = d_1 exp(-d_1) / sum_k exp(-d_k)                               patch score, d_k = |phi(p_t) - c_k|, k <= K (7)

The anomaly map is s upsampled and smoothed, the image score its maximum. As in the authors' program, r is learned and
the centres are not.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import Alignment, Features, Masked
from backbones.float32 import full_float32
from backbones.patches import resize_to_first
from detection import Detector, EndOfPass, Normal, Passes, Prediction, learn
from detection.anomaly_map import align_maps, highest
from detection.interest import calm, cells_inside, rows_inside, unmasked
from detection.light import Matching, match_light
from detection.neighbours import k_means, nearest, squared_distances
from detection.state import Sizes
from detection.variance import require_finite
from detection.whitening import whitening
from errors import DataError, UsageError
from options import WIDEST, option


@dataclass(frozen=True)
class Options:
    """CFA: a descriptor that draws patches to a memory bank of normal ones, and the distance that remains."""

    align_maps: bool = align_maps(decides_features=True)
    match_light: Matching = match_light()
    gamma_d: int = option(1, "Patches are described by so many times fewer values.", at_least=1, at_most=WIDEST)
    gamma_c: int = option(
        1, "Centres of the memory bank: so many times fewer than patches.", at_least=1, at_most=WIDEST
    )
    k_nearest: int = option(3, "Nearest centres that attract a patch, and that score it.", at_least=1)
    j_hard: int = option(3, "Next nearest centres, which repel it.", at_least=1)
    radius: float = option(1e-5, "Radius of the hyperspheres at the start; it is learned.", at_least=0)
    alpha: float = option(0.1, "Margin of the repulsion.", at_least=0)
    nu: float = option(1e-3, "1 / nu weighs the loss.", above=0)
    lr: float = option(1e-3, "Learning rate of AdamW with amsgrad.", above=0)
    weight_decay: float = option(5e-4, "Its weight decay.", at_least=0)
    epochs: int = option(30, "Passes over the training images; each is evaluated.", at_least=1)
    whiten: float = option(
        0.0,
        "Above 0: the descriptor starts as a whitening of this shrinkage; 0.1 shrinks well. For backbones whose "
        "features have another scale than WideResNet50's.",
        at_least=0,
    )


class CFA(Detector):
    """Frozen backbone, patch features, descriptor and memory bank.

    Args:
        backbone, layers, image_size, precision, seed, options: see Detector. The descriptor computes in float32 always.
            As a whitening, it starts at about unit distances, instead of at random: distances as long as some
            backbones' leave the softmin of the score nothing but its largest term. It costs a pass over the images.

    Raises:
        UsageError: gamma_d or gamma_c leaves too little.
    """

    Options = Options
    DATASET_DEFAULTS: ClassVar = {"batch_size": 4}  # the authors'

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        own = self.options
        infos = self.backbone.layer_info(self.layers, self.image_size)
        dimension, (height, width) = sum(info.channels for info in infos), infos[0].grid
        if own.gamma_d > dimension:
            raise UsageError(f"--gamma_d {own.gamma_d} must be from 1 to {dimension}, the dimensions of these layers")
        self.centres, self.needed = height * width // own.gamma_c, own.k_nearest + own.j_hard
        if self.centres < self.needed:
            raise UsageError(
                f"--gamma_c {own.gamma_c} leaves {self.centres} centres of {height} x {width} patches, fewer than "
                f"--k_nearest {own.k_nearest} and --j_hard {own.j_hard} need: lower it"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.descriptor = Descriptor(dimension, dimension // own.gamma_d)
        self.radius = nn.Parameter(torch.tensor(float(own.radius)))
        self.register_buffer("memory", torch.zeros(self.centres, dimension // own.gamma_d))

    def passes_of(self, has_held_out: bool) -> Passes:
        """One per epoch, and before them one for the memory bank and one for whitening."""
        return Passes(before=1 + (self.options.whiten > 0))

    def features(self, images: Tensor) -> Tensor:
        """Patch features p (1), [B, H1, W1, D]."""
        return patch_features(self.backbone(images, self.layers), self.alignment)

    def begin(self, *classes: Normal) -> None:
        """Make the memory bank, of a descriptor that whitens where that is wanted."""
        (own,) = classes
        if self.options.whiten > 0:
            rows = (rows_inside(*one) if isinstance(one, Masked) else one for one in own.train)
            self.descriptor.start_as(*whitening(rows, self.options.whiten))
        self.memory = memory_bank(map(self.described, own.train), self.centres, self.seed)
        if len(self.memory) < self.needed:
            raise DataError(
                f"the masks of interest leave {len(self.memory)} centres, fewer than --k_nearest "
                f"{self.options.k_nearest} and --j_hard {self.options.j_hard} need: lower them"
            )

    def described(self, features: Features) -> Tensor | Masked:
        """phi(p) (2) of patch features, and which patches are of interest, bool [B, H1, W1], where they are Masked."""
        own, interest = unmasked(features)
        found = self.descriptor(own)
        return found if interest is None else Masked(found, cells_inside(interest, found.shape[1:3]))

    def learned_from(self, masked: Masked) -> Masked:
        """As in Detector: patches of no interest are left out once they are described, by their place too."""
        return masked

    @property
    def sized_by_data(self) -> Mapping[str, Sizes]:
        """The memory bank, of the places that are of interest."""
        return {"memory": (range(self.needed, self.centres + 1), self.memory.shape[1])}

    def trainer(self, *classes: Normal) -> "_Trainer":
        """As in Detector."""
        return _Trainer(self)

    def forward(self, embeddings: Tensor, interest: Tensor | None = None) -> Prediction:
        """Maps of the patch scores (7), and their maxima."""
        k = self.options.k_nearest
        with full_float32(embeddings.device):
            features = self.descriptor(embeddings.float()).flatten(1, 2)
            distances = squared_distances(features, self.memory, nearest(features, self.memory, k)).sqrt()
            maps = self.drawn(calm(patch_scores(distances).view(embeddings.shape[:3]), interest))
        return Prediction(highest(maps, interest), maps)

    def half(self) -> "CFA":
        """As in nn.Module, of the backbone alone: distances between close features need more digits."""
        self.backbone.half()
        return self


class Descriptor(nn.Linear):
    """phi (2): a 1 x 1 convolution of features and their coordinates (CoordConv, Liu et al., NeurIPS 2018)."""

    def __init__(self, dimension: int, out: int) -> None:
        super().__init__(dimension + 2, out)

    def forward(self, features: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D / gamma_d], float32; rows and columns run from -1 to 1."""
        height, width = features.shape[1:3]
        rows, columns = (torch.linspace(-1, 1, n, device=self.weight.device) for n in (height, width))
        where = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        with full_float32(features.device):
            return F.linear(features.float(), self.weight[:, :-2]) + F.linear(where, self.weight[:, -2:], self.bias)

    @torch.no_grad()
    def start_as(self, weight: Tensor, bias: Tensor) -> None:
        """Begin with an affine map of D features that are then of unit variance, of D / gamma_d rotated dimensions."""
        rotation = torch.linalg.qr(self.weight[:, :-2].T)[0].T / len(self.weight) ** 0.5
        self.weight.zero_()
        with full_float32(weight.device):
            self.weight[:, :-2] = rotation @ weight
            self.bias.copy_(rotation @ bias)


class StepStats(NamedTuple):
    """What one step says of itself: the loss, and r."""

    loss: Tensor
    radius: Tensor


class _Trainer:
    """AdamW with amsgrad on the descriptor and r."""

    def __init__(self, detector: CFA) -> None:
        self.detector = detector
        learned, own = [*detector.descriptor.parameters(), detector.radius], detector.options
        self.optimizer = torch.optim.AdamW(learned, lr=own.lr, weight_decay=own.weight_decay, amsgrad=True, fused=True)

    def steps(self, batches: Iterable[Tensor]) -> Iterator[StepStats]:
        """A step per batch of patch features [B, H1, W1, D]."""
        own, options = self.detector, self.detector.options
        for batch in batches:
            found, inside = unmasked(own.described(batch))
            features = found.flatten(1, 2) if inside is None else found[inside].unsqueeze(0)
            with full_float32(own.device):
                loss = coupled_hypersphere_loss(
                    features, own.memory, own.radius, options.k_nearest, options.j_hard, options.alpha, options.nu
                )
            learn(loss, [self.optimizer], torch.float32)
            yield StepStats(loss.detach(), own.radius.detach().clone())

    def end_pass(self) -> EndOfPass:
        """The learning rate stays."""
        return EndOfPass()

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


def patch_features(maps: Sequence[Tensor], alignment: Alignment | None = None) -> Tensor:
    """Patch features (1): 3 x 3 means of every map, resized to the first map's grid and put side by side.

    Args:
        maps: one float tensor [B, C_l, H_l, W_l] per layer. Padding with zeros counts in the means.
        alignment: as of embed_patches.

    Returns:
        [B, H1, W1, D], D the sum of the C_l.
    """
    pooled = [F.avg_pool2d(one, 3, stride=1, padding=1) for one in maps]
    return torch.cat(resize_to_first(pooled, alignment), dim=1).permute(0, 2, 3, 1)


@torch.no_grad()
def memory_bank(features: Iterable[Tensor | Masked], centres: int, seed: int) -> Tensor:
    """The centres C (3) of batches of described patches [B, H, W, D'] of normal images, read once: [centres, D'].

    They are the means over the images at every place and, where fewer are wanted, of those the k-means clusters. Of
    Masked patches, whose mask is of patches, means are of those of interest, and places without any are left out.

    Raises:
        DataError: features that are not finite.
    """
    count, total = 0, 0.0
    for batch in features:
        own, inside = unmasked(batch)
        count = count + (len(own) if inside is None else inside.sum(0).unsqueeze(-1))
        total = total + (own if inside is None else own * inside.unsqueeze(-1)).sum(0, dtype=torch.float64)
    means = (total / count).flatten(0, 1).float()
    if isinstance(count, Tensor):
        means = means[count.flatten() > 0]
    require_finite(means)
    if centres >= len(means):
        return means
    return k_means(means, centres, seed)


def coupled_hypersphere_loss(
    features: Tensor, centres: Tensor, radius: Tensor, k_nearest: int, j_hard: int, alpha: float, nu: float
) -> Tensor:
    """L (6) of described patches [B, N, D'] among centres [M, D']; a scalar."""
    chosen = nearest(features.detach(), centres, k_nearest + j_hard)
    distances = _SquaredDistances.apply(features, centres, chosen)
    attraction = (distances[..., :k_nearest] - radius**2).clamp(min=0).mean()
    repulsion = (radius**2 - distances[..., k_nearest:] - alpha).clamp(min=0).mean()
    return (attraction + repulsion) / nu


def patch_scores(distances: Tensor) -> Tensor:
    """s (7) of the distances to the nearest centres [..., K]; [...]."""
    first = distances.amin(dim=-1)
    return first / (first.unsqueeze(-1) - distances).exp().sum(dim=-1)


class _SquaredDistances(torch.autograd.Function):
    """squared_distances, whose gradient takes the differences again: keeping them would need k times the memory."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, centres: Tensor, chosen: Tensor) -> Tensor:
        ctx.save_for_backward(features, centres, chosen)
        return squared_distances(features, centres, chosen)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        features, centres, chosen = ctx.saved_tensors
        total = torch.zeros_like(features)
        for one, weight in zip(chosen.unbind(dim=-1), gradient.unbind(dim=-1), strict=True):
            total.addcmul_(centres[one].sub_(features), weight.unsqueeze(-1), value=-2)
        return total, None, None
