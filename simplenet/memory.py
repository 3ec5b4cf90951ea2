"""Normal patches that every patch is compared with, (9) and (10) of detector.py: an option that the paper lacks."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.float32 import full_float32
from detection.coreset import coreset, projected, random_rows
from detection.neighbours import nearest

CANDIDATES = 50_000  # random patches that the memory is chosen from


@torch.no_grad()
def chosen_patches(embeddings: Iterable[Tensor], adaptor: Callable[[Tensor], Tensor], size: int, seed: int) -> Tensor:
    """o_1 ... o_K (9): few patches of normal images that lie near all others as the adaptor sees them.

    Rare kinds of patches are among them, being far from all others.

    Args:
        embeddings: batches of patch features o [..., D]; read once.
        adaptor: maps [N, D] to [N, D].
        size: K; of fewer patches all are there, the first again for those that are missing.
        seed: of the candidates, and of the random directions that stand for many dimensions.

    Returns:
        float32 [K, D].
    """
    candidates = random_rows(embeddings, CANDIDATES, seed).float()
    return candidates[coreset(projected(candidates, seed, adaptor), size).rows]


def compared(first: nn.Linear, adapted: Tensor, memory: Tensor) -> Tensor:
    """W1 [q, q - m_k, |q - m_k|] + b1 (10), with m_k the patch of the memory that is nearest to q.

    Neither the differences nor their product are made: W_b meets every patch of the memory once instead.

    Args:
        first: the layer [W_a, W_b, w_c], of 2 D + 1 inputs.
        adapted: q [N, D].
        memory: m [K, D].

    Returns:
        h [N, H].
    """
    dimension = adapted.shape[1]
    own, difference, distant = first.weight.split([dimension, dimension, 1], dim=1)  # W_a, W_b [H, D], w_c [H, 1]
    with full_float32(adapted.device):  # distances between close features need more digits
        q, m = adapted.float(), memory.float()
        k = _nearest(q.detach(), m.detach())  # [N]
        distance = torch.linalg.vector_norm(q - F.embedding(k, m), dim=1, keepdim=True)  # [N, 1]
    known = F.linear(adapted, own + difference, first.bias) - F.embedding(k, F.linear(memory, difference))
    return known + F.linear(distance.to(adapted.dtype), distant)


def _nearest(features: Tensor, centres: Tensor) -> Tensor:
    """Indices [N] of the nearest centres; a traced graph takes any N, in one block."""
    return nearest(features.unsqueeze(1 if torch.compiler.is_compiling() else 0), centres, 1).flatten()
