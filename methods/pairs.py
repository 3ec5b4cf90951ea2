"""Pairs of places that CPR's local branch learns from, and their loss; equations as numbered in methods/cpr.py."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

ALIKE, UNLIKE = 0.8, -0.2  # margins of the cosines
POWER = 3
APART = 4 * 2**0.5  # pixels, of distant places


class Pairs(NamedTuple):
    """Pairs of places in each query and its reference, as columns and rows from -1 to 1, [B, P, 2]; weights are [B, P].

    Attributes:
        same, same_weight: places that look alike in both.
        distant, distant_reference, distant_weight: a place in the query, and another in the reference.
        defect, defect_weight: places where the query has a defect.
    """

    same: Tensor
    same_weight: Tensor
    distant: Tensor
    distant_reference: Tensor
    distant_weight: Tensor
    defect: Tensor
    defect_weight: Tensor


def draw_pairs(
    defect: NDArray[np.bool_], foreground: NDArray[np.floating] | None, count: int, rng: np.random.Generator
) -> Pairs:
    """Pairs of one query and its reference, of every kind `count`; those that cannot be had have no weight.

    Args:
        defect: bool [H, W], where the query has one.
        foreground: [H, W], how likely a place without a defect is drawn; None where all of the image is of interest:
            then there are no distant pairs.
        count: P.
        rng: draws same places, defective ones, and distant ones.

    Returns:
        As Pairs, without the batch.
    """
    likely = (~defect).astype(float) * (1 if foreground is None else foreground)
    total = likely.sum()
    same = rng.choice(likely.size, count, p=(likely / total).ravel()) if total else np.zeros(count, int)
    found = np.flatnonzero(defect)
    found = rng.choice(found, min(count, len(found)), replace=False)
    first, second = rng.integers(defect.size, size=(2, count))
    width = defect.shape[1]
    apart = np.hypot(first // width - second // width, first % width - second % width)
    is_distant = (apart > APART) & (foreground is not None)
    weights = np.full(count, total > 0), is_distant, np.arange(count) < len(found)
    places = same, first, second, np.pad(found, (0, count - len(found)))
    same, first, second, found = (_scaled(own, defect.shape) for own in places)
    of_same, of_distant, of_defect = (torch.from_numpy(own.astype(np.float32)) for own in weights)
    return Pairs(same, of_same, first, second, of_distant, found, of_defect)


def pair_loss(features: Sequence[Tensor], maps: Sequence[Tensor], pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The two terms of L (6): of places that shall be alike, and of those that shall not; scalars.

    Args:
        features: of the local branches, a tensor [2 B, d, h, w] per layer: the queries, then their references.
        maps: of the backbone likewise, [2 B, C, h, w].
        pairs: of which.
    """
    alike = unlike = torch.zeros((), device=features[0].device)
    for own, seen in zip(features, maps, strict=True):
        query, reference = own.chunk(2)
        same = _cosines(query, pairs.same, reference, pairs.same)
        distant = _cosines(query, pairs.distant, reference, pairs.distant_reference)
        defective = _cosines(query, pairs.defect, reference, pairs.defect)
        weights = torch.cat([distant_weights(seen, pairs), pairs.defect_weight], dim=1)
        alike = alike + _weighted(ALIKE - same, pairs.same_weight)
        unlike = unlike + _weighted(torch.cat([distant, defective], dim=1) - UNLIKE, weights)
    return alike, unlike


@torch.no_grad()
def distant_weights(maps: Tensor, pairs: Pairs) -> Tensor:
    """Weights (7) of distant pairs [B, P] by a backbone's maps [2 B, C, h, w] of the queries and their references."""
    query, reference = maps.chunk(2)
    difference = read_at(query, pairs.distant) - read_at(reference, pairs.distant_reference)
    weights = difference.square().sum(dim=-1) * pairs.distant_weight
    number = (pairs.distant_weight > 0).sum(dim=1, keepdim=True)
    return weights * number / weights.sum(dim=1, keepdim=True).clamp(min=1e-8)


def _weighted(errors: Tensor, weights: Tensor) -> Tensor:
    """The sum of weighted powers of what is above 0, over the number of pairs that have a weight."""
    return (errors.clamp(min=0) * weights).pow(POWER).sum() / (weights > 0).sum().clamp(min=1)


def _cosines(query: Tensor, places: Tensor, reference: Tensor, others: Tensor) -> Tensor:
    return F.cosine_similarity(read_at(query, places), read_at(reference, others), dim=-1)


def read_at(maps: Tensor, places: Tensor) -> Tensor:
    """Maps [B, C, h, w] at places [B, P, 2], bilinear, 0 outside: [B, P, C].

    As F.grid_sample, whose gradients on a GPU are added up in any order.
    """
    size = torch.tensor(maps.shape[:1:-1], device=places.device)  # w, h
    cells = ((places + 1) * size - 1) / 2
    first = cells.floor()
    image = torch.arange(len(maps), device=places.device).unsqueeze(1)
    values: Tensor | float = 0.0
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        own = first + torch.tensor(corner, device=places.device)
        is_inside = ((own >= 0) & (own < size)).all(dim=-1)
        weight = (1 - (cells - own).abs()).prod(dim=-1) * is_inside
        columns, rows = own.long().clamp(min=0).minimum(size - 1).unbind(dim=-1)
        values = values + weight.unsqueeze(-1) * maps[image, :, rows, columns]
    return values


def _scaled(indices: NDArray[np.integer], size: tuple[int, int]) -> Tensor:
    """Pixels of an image as columns and rows from -1 to 1: float32 [P, 2]."""
    height, width = size
    columns, rows = indices % width / max(1, width - 1), indices // width / max(1, height - 1)
    return torch.from_numpy(np.stack([columns, rows], axis=1).astype(np.float32)) * 2 - 1
