"""Neighbours among features: the nearest of a table, few that stand for many, and an even draw of a stream."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**24  # distances that are held at once: 64 MiB
GROUP = 64  # centres whose smallest distance stands for them in the search


@torch.no_grad()
def nearest(features: Tensor, centres: Tensor, k: int) -> Tensor:
    """Indices [B, N, k] of the k nearest centres [M, D'] of features [B, N, D'], the nearest first.

    At most BLOCK distances are held at once, or those of a patch of each image. Sorting out k of all M centres would
    take longer than the distances: the k nearest lie in the k groups of GROUP centres with the smallest minima.
    """
    padding = -len(centres) % GROUP
    norms = F.pad(centres.square().sum(dim=1), (0, padding), value=torch.inf)
    table = torch.cat([-2 * F.pad(centres, (0, 0, 0, padding)), norms.unsqueeze(1)], dim=1).T
    images = 1 if torch.compiler.is_compiling() else len(features)  # a traced graph takes any number
    rows = max(1, BLOCK // (images * len(norms)))

    def search(part: Tensor) -> Tensor:
        distances = (F.pad(part, (0, 1), value=1) @ table).unflatten(-1, (-1, GROUP))  # squared, but for |features|^2
        groups = distances.amin(dim=-1).topk(min(k, distances.shape[-2]), dim=-1, largest=False).indices
        candidates = distances.gather(-2, groups.unsqueeze(-1).expand(*groups.shape, GROUP)).flatten(-2)
        places = candidates.topk(k, dim=-1, largest=False).indices
        return groups.gather(-1, places // GROUP) * GROUP + places % GROUP

    return torch.cat([search(part) for part in features.split(rows, dim=1)], dim=1)


@torch.no_grad()
def coreset(features: Tensor, size: int, first: int = 0) -> Tensor:
    """Indices of rows that lie near all: each is the farthest from those before it (greedy k-centre, Gonzalez 1985).

    Args:
        features: [N, D], float32.
        size: how many; above N all rows are there, some again.
        first: the row to begin with.

    Returns:
        int64 [size] on the features' device.
    """
    norms = features.square().sum(1)
    distances = torch.full_like(norms, torch.inf)  # squared, to the nearest pick
    last = torch.tensor([first], device=features.device)  # never read here: a GPU need not be waited for
    picks = [last]
    for _ in range(size - 1):
        products = features @ features.index_select(0, last)[0]
        distances = torch.minimum(distances, norms - 2 * products + norms.index_select(0, last))
        distances.index_fill_(0, last, -torch.inf)  # rounding may not leave it the smallest
        last = distances.argmax(dim=0, keepdim=True)
        picks.append(last)
    return torch.cat(picks)


@torch.no_grad()
def random_rows(batches: Iterable[Tensor], count: int, seed: int) -> Tensor:
    """At most so many rows of all batches [..., D], which are read once, each as likely as any other, in random order.

    Returns:
        [count, D], or all [N, D] of fewer, of the batches' dtype and device.
    """
    generator = torch.Generator().manual_seed(seed)
    keys, rows = torch.empty(0), None  # the rows with the smallest keys are kept
    for batch in batches:
        own = batch.flatten(0, -2)
        drawn = torch.rand(len(own), generator=generator)
        new = (drawn < keys[-1]).nonzero()[:, 0] if len(keys) == count else torch.arange(len(own))
        new = own[new.to(own.device)], drawn[new]
        keys, order = torch.cat([keys, new[1]]).sort()
        keys, order = keys[:count], order[:count].to(own.device)
        rows = (new[0] if rows is None else torch.cat([rows, new[0]])).index_select(0, order)
    assert rows is not None
    return rows
