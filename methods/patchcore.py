"""PatchCore: distances to a memory bank of normal patches (Roth et al., CVPR 2022, arXiv 2106.08265).

Nothing is trained: patch features of normal images are kept, thinned to few that lie near all, and a patch that is far
from them is anomalous. The equations, as numbered here (the paper's in brackets):

    o = pool([patches(F_1), resize(patches(F_2)), ...])                 patch features of D dimensions      (1) [1-3]
    M = union of o over all normal images                               memory bank                         (2) [4]
    M_C = argmin_{M_C in M} max_{m in M} min_{n in M_C} |m - n|         its coreset, found greedily         (3) [5]
    s_t = mean of the k smallest |o_t - m|^2, m in M_C                  patch score                         (4)
    S = max_t s_t, anomaly map = Gaussian(upsample(s))                  image score, and where              (5) [6]

That is the authors' program, whose distances are squared. With `--reweight B` it is the paper's own reading: distances
are not squared, and an image's score is less where the bank itself is sparse. Of its most distant patch o*, the nearest
m* of the bank and N_B(m*), the B patches of the bank that are nearest to m*, itself among them:

    S = (1 - exp|o* - m*| / sum_{m in N_B(m*)} exp|o* - m|) max_t s_t   image score                         (6) [7]

With `--whiten` all distances are those of whitened features, W o + b in place of o (detection/whitening.py).

(1) is computed in detection/patch_features.py; (3) in detection/coreset.py, of more than 256 dimensions in 128 random
ones; (4) and (6) in detection/memory_bank.py.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.float32 import full_float32
from detection import Normal, Passes, Prediction
from detection.memory_bank import BankOptions, MemoryBank
from detection.patch_features import PatchDetector, PatchOptions
from detection.whitening import whitening
from options import option


@dataclass(frozen=True)
class Options(BankOptions, PatchOptions):
    """PatchCore: distances to a memory bank of normal patches; nothing is trained."""

    whiten: float = option(
        0.0, "Above 0: distances are of features whitened with this shrinkage; 0.1 shrinks well.", at_least=0
    )


class PatchCore(PatchDetector):
    """Frozen backbone, patch features, and a memory bank of them.

    Args:
        backbone, layers, image_size, precision, seed, options: see Detector. Distances are computed in float32 always.
            Whitening costs a pass over the images.

    Raises:
        UsageError: options of the bank that do not go together.
    """

    Options = Options

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        dimension = self.options.target_embed_dimension
        self.bank = MemoryBank(self.options, dimension, self.seed)
        whitens = self.options.whiten > 0
        self.register_buffer("weight", torch.zeros(dimension, dimension) if whitens else None)
        self.register_buffer("bias", torch.zeros(dimension) if whitens else None)

    @property
    def sized_by_data(self) -> Mapping[str, Sequence[int | range]]:
        """The bank."""
        return {"bank.memory": self.bank.shape}

    def passes_of(self, has_held_out: bool) -> Passes:
        """One for the bank, and before it one for whitening."""
        return Passes(steps=0, settling=1 + (self.options.whiten > 0))

    def settle(self, *classes: Normal) -> Mapping[str, float]:
        """Whiten, and fill the bank."""
        (own,) = classes
        self.whiten(own.train)
        with full_float32(self.device):
            return self.bank.fill(own.train, self.compared)

    def whiten(self, embeddings: Collection[Tensor]) -> None:
        """Learn to whiten embeddings, where that is asked for; they are read once then."""
        if self.options.whiten > 0:
            weight, bias = whitening(embeddings, self.options.whiten)
            self.weight.copy_(weight)
            self.bias.copy_(bias)

    def extend(self, embeddings: Collection[Tensor]) -> None:
        """As in Extensible; the whitening stays."""
        with full_float32(self.device):
            self.bank.extend(embeddings, self.compared)

    def forward(self, embeddings: Tensor) -> Prediction:
        """Image scores [B] and anomaly maps [B, H, W]."""
        with full_float32(embeddings.device):
            scores = self.bank(self.compared(embeddings).flatten(1, 2))
            return Prediction(scores.images, self.drawn(scores.patches.view(embeddings.shape[:3])))

    def compared(self, features: Tensor) -> Tensor:
        """What distances are of, of features [..., D]: float32 [..., D]."""
        return self.whitened(features)

    def whitened(self, features: Tensor) -> Tensor:
        """Features [..., D] in float32, whitened where that is asked for."""
        features = features.float()
        return features if self.weight is None else F.linear(features, self.weight, self.bias)

    def half(self) -> "PatchCore":
        """As in nn.Module, of the backbone alone: distances between close features need more digits."""
        self.backbone.half()
        return self
