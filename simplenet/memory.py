"""Normal patches that every patch is compared with, (9) to (12) of detector.py: an option that the paper lacks."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.float32 import full_float32
from detection.coreset import coreset, projected, random_rows
from detection.neighbours import closest

CANDIDATES = 30_000  # random patches that the memory is chosen from


class Memory(nn.Module):
    """o_1 ... o_K (9), and what finds the nearest of them for all members alike.

    Args:
        size: K.
        dimension: D.
        sight: G_0 (10), a copy of an adaptor; it is not trained.
    """

    def __init__(self, size: int, dimension: int, sight: nn.Module) -> None:
        super().__init__()
        self.register_buffer("patches", torch.zeros(size, dimension))
        self.sight = sight.requires_grad_(False)

    @torch.no_grad()
    def choose(self, embeddings: Iterable[Tensor], adaptor: nn.Module, seed: int) -> None:
        """Take in K patches of normal images that lie near all others, as the adaptor sees them before training.

        Rare kinds of patches are among them, being far from all others. Of fewer patches than K all are there, the
        first again for those that are missing.

        Args:
            embeddings: batches of patch features o [..., D]; read once.
            adaptor: maps [N, D] to [N, D].
            seed: of the candidates, and of the random directions that stand for many dimensions.
        """
        self.sight.load_state_dict(adaptor.state_dict())
        candidates = random_rows(embeddings, CANDIDATES, seed).float()
        seen = projected(candidates, seed, self.sight)
        self.patches.copy_(candidates[coreset(seen, len(self.patches)).rows])

    @torch.no_grad()
    def nearest(self, features: Tensor) -> Tensor:
        """k (10) of features o [N, D]: int64 [N]."""
        return closest(self.sight(features), self.sight(self.patches))


def compared(first: nn.Linear, adapted: Tensor, memory: Tensor, nearest: Tensor) -> Tensor:
    """h (12) = W1 [q, q - m_k, |q - m_k|] + b1, with m_k the patch of the memory that q is compared with.

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
    known = F.linear(adapted, own + difference, first.bias) - F.embedding(nearest, F.linear(memory, difference))
    return known + F.linear(distance.to(adapted.dtype), distant)
