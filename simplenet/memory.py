"""Normal patches that every patch is compared with, (9) to (14) of detector.py: an option that the paper lacks."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.float32 import full_float32
from detection.coreset import coreset, projected, random_rows
from detection.neighbours import closest
from detection.whitening import whitening

CANDIDATES = 30_000  # random patches that the memory is chosen from


class Memory(nn.Module):
    """u_1 ... u_N (10), what they are seen through (9), and what finds the nearest of them for all members alike.

    Args:
        size: K, of the first patches, which discriminators compare with.
        dimension: D.
        whitens: whether V and v (9) are learned; else features are seen as they are.
        bank_size: N, of all patches, to which the distance (14) is; K where it is less.
    """

    def __init__(self, size: int, dimension: int, whitens: bool = False, bank_size: int = 0) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("patches", torch.zeros(max(size, bank_size), dimension))
        self.register_buffer("weight", torch.eye(dimension) if whitens else None)
        self.register_buffer("bias", torch.zeros(dimension) if whitens else None)

    @torch.no_grad()
    def whiten(self, embeddings: Iterable[Tensor], shrinkage: float) -> None:
        """Learn V and v of batches of patch features o [..., D]; read once.

        Raises:
            DataError: as whitening.
        """
        weight, bias = whitening(embeddings, shrinkage)
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def seen(self, features: Tensor) -> Tensor:
        """u (9) of features o [..., D]: float32, whose digits the features' mean would take up in fewer."""
        if self.weight is None:
            return features
        with full_float32(features.device):
            return F.linear(features.float(), self.weight, self.bias)

    @torch.no_grad()
    def choose(self, embeddings: Iterable[Tensor], seed: int) -> None:
        """Take in N patches of normal images that lie near all others, and so do the first K of them.

        Rare kinds of patches are among them, being far from all others. Of fewer patches than N all are there, the
        first again for those that are missing.

        Args:
            embeddings: batches of patch features o [..., D]; read once.
            seed: of the candidates, and of the random directions that stand for many dimensions.
        """
        candidates = self.seen(random_rows(embeddings, CANDIDATES, seed).float())
        self.patches.copy_(candidates[coreset(projected(candidates, seed), len(self.patches)).rows])

    @property
    def compared(self) -> Tensor:
        """u_1 ... u_K, [K, D]."""
        return self.patches[: self.size]

    def nearest(self, seen: Tensor, own: Tensor | None = None) -> Tensor:
        """k (11) of u [n, D]: int64 [n]. Of the patches that are not own, bool [N], as far as there are others."""
        return _nearest(seen, self.compared, own)

    def distances(self, seen: Tensor, own: Tensor | None = None) -> Tensor:
        """The distance of (14) of u [n, D]: float32 [n]. Own patches are left out as in nearest."""
        nearest = _nearest(seen, self.patches, own)
        with full_float32(seen.device):
            return torch.linalg.vector_norm(seen.float() - F.embedding(nearest, self.patches), dim=1)


@torch.no_grad()
def _nearest(seen: Tensor, patches: Tensor, own: Tensor | None) -> Tensor:
    if own is None:
        return closest(seen, patches)
    others = own[: len(patches)].logical_not().nonzero()[:, 0]
    return others[closest(seen, patches[others])] if len(others) else closest(seen, patches)


def compared(first: nn.Linear, adapted: Tensor, memory: Tensor, nearest: Tensor) -> Tensor:
    """h (13) = W1 [q, q - m_k, |q - m_k|] + b1, with m_k the patch of the memory that q is compared with.

    Neither the differences nor their product are made: W_b meets every patch of the memory once instead.

    Args:
        first: the layer [W_a, W_b, w_c], of 2 D + 1 inputs.
        adapted: q [N, D].
        memory: m [K, D].
        nearest: k [N].

    Returns:
        h [N, H].
    """
    dimension = adapted.shape[1]
    own, difference, distant = first.weight.split([dimension, dimension, 1], dim=1)  # W_a, W_b [H, D], w_c [H, 1]
    with full_float32(adapted.device):  # distances between close features need more digits
        gap = adapted.float() - F.embedding(nearest, memory.float())
        distance = torch.linalg.vector_norm(gap, dim=1, keepdim=True)  # [N, 1]
    # Of a patch that is the nearest of thousands, few digits would lose the sum of the gradients.
    compared_with = F.embedding(nearest, F.linear(memory, difference).float())  # W_b m_k: [N, H]
    known = F.linear(adapted, own + difference, first.bias)
    return known - compared_with.to(known.dtype) + F.linear(distance.to(known.dtype), distant)
