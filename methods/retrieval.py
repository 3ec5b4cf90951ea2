"""Retrieval in CPR's cascade: whole images by what stands where, then places near the same place in them.

Equations are numbered as in methods/cpr.py.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCKS = 5  # along each side of a map
KEPT = 0.8  # of the blocks, those that differ least
TINY = 1e-8
EQUAL = 1e-4


def codes(maps: Tensor, centres: Tensor) -> Tensor:
    """The nearest of centres [M, C] of every cell of maps [B, C, h, w]: int64 [B, h, w]."""
    products = torch.einsum("bchw,mc->bmhw", maps.float(), centres)
    return (centres.square().sum(dim=1)[:, None, None] - 2 * products).argmin(dim=1)


def histograms(codes: Tensor, words: int) -> Tensor:
    """Histograms (1) of codes [B, h, w] in 0 ... words - 1: [B, 25, 1 + words], the sum of every block 1.

    Bin 0 counts the cells outside the map: all that its sides lack to multiples of BLOCKS stands before it.
    """
    rows, columns = (-(-side // BLOCKS) for side in codes.shape[1:])  # of a block
    padded = F.pad(codes + 1, (columns * BLOCKS - codes.shape[2], 0, rows * BLOCKS - codes.shape[1], 0))
    blocks = padded.unflatten(1, (BLOCKS, rows)).unflatten(3, (BLOCKS, columns))  # [B, 5, rows, 5, columns]
    counts = [(blocks == word).sum(dim=(2, 4)) for word in range(words + 1)]
    return torch.stack(counts, dim=-1).flatten(1, 2) / (rows * columns)


def divergences(query: Tensor, reference: Tensor) -> Tensor:
    """D (2) of the histograms of B images, [B, 25, bins], and N references, [N, 25, bins]: [B, N]."""
    blocks = block_divergences(query, reference)
    kept = int(BLOCKS**2 * KEPT)
    return blocks.topk(kept, dim=2, largest=False).values.sum(dim=2)


def block_divergences(query: Tensor, reference: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of every block, as of divergences: [B, N, 25]; TINY is added to both sides.

    log(q + TINY) - log(r + TINY) is taken of multiples of TINY: optimisers of exports take an addition of it for none.
    """
    own = (query * (query / TINY + 1).log()).sum(dim=-1)  # [B, 25]
    return own.unsqueeze(1) - torch.einsum("buk,nuk->bnu", query, (reference / TINY + 1).log())


def nearest_images(divergences: Tensor, k: int) -> Tensor:
    """The k references of the smallest divergences [B, N], the smallest first, ties by index: int64 [B, k].

    Divergences less than EQUAL apart are a tie: else rounding would decide, which devices do in ways of their own.
    """
    order = torch.arange(divergences.shape[1], device=divergences.device) / (2 * divergences.shape[1])  # below 1/2
    return ((divergences.double() / EQUAL).round() + order).topk(k, dim=1, largest=False).indices


def local_distances(query: Tensor, references: Iterator[Tensor], region: int) -> Tensor:
    """A (3): how far each place of unit features [B, d, h, w] is from all near the same place of its references.

    Args:
        query: features of the images.
        references: unit features [B, d, h, w], one tensor for every rank of reference.
        region: side of the square of places that are near.

    Returns:
        1 - cosine, float32 [B, h, w]; places outside the map do not count.
    """
    best: Tensor | None = None
    height, width = query.shape[2:]
    around = (region // 2,) * 4
    outside = F.pad(torch.zeros(1, height, width, device=query.device), around, value=-torch.inf)
    for reference in references:
        padded = F.pad(reference, around)
        for row in range(region):
            for column in range(region):
                area = slice(row, row + height), slice(column, column + width)
                cosines = (query * padded[(..., *area)]).sum(dim=1) + outside[(..., *area)]
                best = cosines if best is None else torch.maximum(best, cosines)
    assert best is not None
    return 1 - best
