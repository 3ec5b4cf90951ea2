"""The loss that teaches CPR's local branch which pairs of places are alike, as numbered in methods/cpr.py (6, 7)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

POSITIVE, NEGATIVE = 0.8, -0.2  # margins of the cosines
POWER = 3


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


def pair_loss(features: Sequence[Tensor], maps: Sequence[Tensor], pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The two terms of L (6): of places that shall be alike, and of those that shall not.

    Args:
        features: of the local branch, a tensor [2 B, d, h, w] per layer: the queries, then their references.
        maps: of the backbone likewise, [2 B, C, h, w].
        pairs: of which.

    Returns:
        Two scalars.
    """
    alike = unlike = torch.zeros((), device=features[0].device)
    for own, seen in zip(features, maps, strict=True):
        query, reference = own.chunk(2)
        same = _cosines(query, pairs.same, reference, pairs.same)
        alike = alike + _weighted((POSITIVE - same).clamp(min=0), pairs.same_weight)
        cosines = torch.cat(
            [
                _cosines(query, pairs.distant, reference, pairs.distant_reference),
                _cosines(query, pairs.defect, reference, pairs.defect),
            ],
            dim=1,
        )
        weights = torch.cat([distant_weights(seen, pairs), pairs.defect_weight], dim=1)
        unlike = unlike + _weighted((cosines - NEGATIVE).clamp(min=0), weights)
    return alike, unlike


@torch.no_grad()
def distant_weights(maps: Tensor, pairs: Pairs) -> Tensor:
    """Weights (7) of distant pairs [B, P] by a backbone's maps [2 B, C, h, w] of the queries and their references."""
    query, reference = maps.float().chunk(2)
    difference = _at(query, pairs.distant) - _at(reference, pairs.distant_reference)
    weights = difference.square().sum(dim=-1) * pairs.distant_weight
    number = (pairs.distant_weight > 0).sum(dim=1, keepdim=True)
    return weights * number / weights.sum(dim=1, keepdim=True).clamp(min=1e-8)


def _weighted(errors: Tensor, weights: Tensor) -> Tensor:
    """The sum of weighted powers over the number of pairs that have a weight."""
    return (errors * weights).pow(POWER).sum() / (weights > 0).sum().clamp(min=1)


def _cosines(query: Tensor, places: Tensor, reference: Tensor, others: Tensor) -> Tensor:
    return F.cosine_similarity(_at(query, places), _at(reference, others), dim=-1)


def _at(maps: Tensor, places: Tensor) -> Tensor:
    """Maps [B, C, h, w] at places [B, P, 2], bilinear: [B, P, C]."""
    return F.grid_sample(maps, places.unsqueeze(1), align_corners=False)[:, :, 0].transpose(1, 2)
