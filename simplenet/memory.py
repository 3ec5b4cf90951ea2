"""Normal patches that every patch is compared with, (9) to (14) of detector.py: an option that the paper lacks."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.float32 import full_float32
from detection.coreset import coreset, projected, random_rows
from detection.derived import Derived
from detection.neighbours import SearchTable, closest, closest_of_first, search_table
from detection.whitening import whitening

CANDIDATES = 300_000  # random patches that the memory is chosen from: of fewer, few or none show what is rare
CANDIDATES_MEMORY = 2**29  # bytes that they may take


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
        self._table: Derived[SearchTable] = Derived()

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

        Rare kinds of patches are among them, being far from all others. They are chosen from CANDIDATES, or as many as
        CANDIDATES_MEMORY holds. Of fewer patches than N all are there, the first again for those that are missing.

        Args:
            embeddings: batches of patch features o [..., D]; read once.
            seed: of the candidates, and of the random directions that stand for many dimensions.
        """
        size, dimension = self.patches.shape
        most = max(size, min(CANDIDATES, CANDIDATES_MEMORY // (4 * dimension)))
        candidates = self.seen(random_rows(embeddings, most, seed).float())
        self.patches.copy_(candidates[coreset(projected(candidates, seed), size).rows])

    @property
    def compared(self) -> Tensor:
        """u_1 ... u_K, [K, D]."""
        return self.patches[: self.size]

    def nearest(self, seen: Tensor, own: Tensor | None = None) -> Tensor:
        """k (11) of u [n, D]: int64 [n]. Of the patches that are not own, bool [N], as far as there are others."""
        return self._nearest(seen, [self.size], own)[0]

    def nearest_and_distance(self, seen: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """k (11), int64 [n], and the distance of (14), float32 [n], of u [n, D]; own as in nearest."""
        nearest, in_bank = self._nearest(seen, [self.size, len(self.patches)], own)
        with full_float32(seen.device):
            return nearest, torch.linalg.vector_norm(seen.float() - F.embedding(in_bank, self.patches), dim=1)

    def _nearest(self, seen: Tensor, counts: Sequence[int], own: Tensor | None) -> list[Tensor]:
        """For every count, the nearest of so many first patches; one search finds all where none are own."""
        if own is None:
            patches = self.patches[: max(counts)]
            return closest_of_first(seen, self._table.of([patches], lambda: search_table(patches)), counts)
        return [_nearest_other(seen, self.patches[:count], own[:count]) for count in counts]


def _nearest_other(seen: Tensor, patches: Tensor, own: Tensor) -> Tensor:
    others = own.logical_not().nonzero()[:, 0]
    return others[closest(seen, patches[others])] if len(others) else closest(seen, patches)


def difference_table(first: nn.Linear, memory: Tensor) -> Tensor:
    """W_b m_k of every k, (13): [K, H].

    Args:
        first: as in compared.
        memory: m [K, D].
    """
    return F.linear(memory, _parts(first)[1])


def compared(first: nn.Linear, adapted: Tensor, memory: Tensor, table: Tensor, nearest: Tensor) -> Tensor:
    """h (13) = W1 [q, q - m_k, |q - m_k|] + b1, with m_k the patch of the memory that q is compared with.

    Neither the differences nor their product are made: W_b meets every patch of the memory once instead.

    Args:
        first: the layer [W_a, W_b, w_c], of 2 D + 1 inputs.
        adapted: q [N, D].
        memory: m [K, D].
        table: W_b m_k, see difference_table.
        nearest: k [N].

    Returns:
        h [N, H].
    """
    own, difference, distant = _parts(first)
    with full_float32(adapted.device):  # distances between close features need more digits
        gap = F.embedding(nearest, memory.float()).sub_(adapted)
        distance = torch.linalg.vector_norm(gap, dim=1, keepdim=True)  # [N, 1]
    if torch.is_grad_enabled():  # few digits would lose the gradients' sum at a patch that is the nearest of thousands
        table = table.float()
    known = F.linear(adapted, own + difference, first.bias)
    compared_with = F.embedding(nearest, table).to(known.dtype)  # [N, H]
    return known.sub_(compared_with).add_(F.linear(distance.to(known.dtype), distant))


def _parts(first: nn.Linear) -> tuple[Tensor, ...]:
    """W_a, W_b [H, D] and w_c [H, 1]."""
    dimension = first.in_features // 2
    return first.weight.split([dimension, dimension, 1], dim=1)
