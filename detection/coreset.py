"""Few rows that stand for many: coresets, the projections they are chosen in, and an even draw of a stream."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from backbones.float32 import full_float32
from detection.neighbours import BLOCK, held_at_once

DIMENSIONS = 128  # that rows of many more are chosen in, as in PatchCore (Roth et al., CVPR 2022)
WINDOW = 4096  # rows that a round of picks is made from: they stay in a processor's cache
COLUMNS = 32  # that are put into another order at once
STARTING_POINTS = 10  # of distances_from_some, as in PatchCore's program


class Picks(NamedTuple):
    """Rows that were chosen, int64 [size], and the farthest that any other lies from its nearest of them."""

    rows: Tensor
    radius: float


@torch.no_grad()
def coreset(features: Tensor, size: int, start: Tensor | None = None) -> Picks:
    """Rows that lie near all: each is the farthest from those before it (greedy k-centre, Gonzalez 1985).

    Distances to the nearest pick only fall, so that of what was the farthest a while ago those that are the farthest
    now can be told without looking at the others: picks are made among the WINDOW farthest rows until none of them is
    as far as the rest was. Then all rows meet these picks at once, in one product per block.

    Args:
        features: [N, D], float32.
        size: how many; above N all rows are there, some again.
        start: [N] squared distances to begin with, float32, in place of infinite ones, which begin with row 0.

    Returns:
        The first of rows that are equally far is taken first.
    """
    features = features - features.mean(dim=0)  # near the origin: norms lose no digits
    norms = features.square().sum(dim=1)
    covered = torch.full_like(norms, torch.inf)  # squared distances to the nearest pick
    distances = covered.clone() if start is None else start.clone()  # the same, but for where they begin
    picks: list[Tensor] = []
    missing = size
    while missing > 0:
        new = _picks_of_window(features, norms, distances, missing)
        centres, own = -2 * features[new], norms[new].unsqueeze(1)
        rows = max(1, held_at_once(features) // len(new))
        blocks = zip(*(whole.split(rows) for whole in (features, norms, distances, covered)), strict=True)
        for part, length, left, true in blocks:
            to_picks = torch.addmm(own, centres, part.T).amin(dim=0) + length
            for nearest_pick in (left, true):
                torch.minimum(nearest_pick, to_picks, out=nearest_pick)
        distances[new] = -torch.inf  # rounding may not leave them the smallest
        picks.append(new)
        missing -= len(new)
    return Picks(torch.cat(picks), max(covered.max().item(), 0.0) ** 0.5)


def _picks_of_window(features: Tensor, norms: Tensor, distances: Tensor, most: int) -> Tensor:
    """The next picks, at least one and at most so many, in their order."""
    below = -torch.inf  # the farthest of the rows that are left out
    window, own = torch.arange(len(norms), device=norms.device), distances.clone()
    if len(norms) > WINDOW:
        farthest = distances.topk(WINDOW + 1)
        below = farthest.values[-1].item()
        window = farthest.indices[:-1].sort().values
        own = distances[window]
    rows, lengths = features[window], norms[window]
    picks: list[int] = []
    while len(picks) < most:
        farthest_now, place = own.max(dim=0)
        if not farthest_now.item() > below:
            break
        picks.append(int(place))
        to_pick = torch.addmv(lengths, rows, rows[picks[-1]], alpha=-2) + lengths[picks[-1]]
        torch.minimum(own, to_pick, out=own)
        own[picks[-1]] = -torch.inf
    return window[picks] if picks else distances.argmax().unsqueeze(0)  # of rows that are equally far, the first


@torch.no_grad()
def distances_from_all(features: Tensor) -> Tensor:
    """The sum of each row's squared distances from all rows, [N] of [N, D]: what PatchCore's exact coreset starts from.

    Its program makes all N x N distances for it; their sums need none: sum |x - y|^2 = N |x - mean|^2 + constant.
    """
    norms = (features - features.mean(dim=0)).square().sum(dim=1)
    return len(features) * norms + norms.sum()


@torch.no_grad()
def distances_from_some(features: Tensor, points: Tensor) -> Tensor:
    """The squared mean of each row's distances from a few rows, [N] of [N, D]: what its approximate one starts from."""
    means = torch.zeros(len(features), device=features.device)
    for point in features[points]:
        means += torch.linalg.vector_norm(features - point, dim=1)
    return (means / len(points)).square()


def chosen_in(dimension: int) -> int:
    """In how many dimensions rows of so many are chosen: in all where fewer would save little and lose some digits."""
    return dimension if dimension <= 2 * DIMENSIONS else DIMENSIONS


@torch.no_grad()
def projected(rows: Tensor, seed: int, transform: Callable[[Tensor], Tensor] = Tensor.float) -> Tensor:
    """Rows in few random dimensions that keep distances about as they are, for choosing among them.

    Args:
        rows: [N, D].
        seed: of the dimensions.
        transform: what becomes of rows [n, D] before.

    Returns:
        [N, chosen_in(D)].
    """
    parts = []
    directions: Tensor | None = None
    for part in rows.split(max(1, BLOCK // rows.shape[1])):
        part = transform(part)
        if chosen_in(part.shape[1]) < part.shape[1]:
            if directions is None:
                generator = torch.Generator().manual_seed(seed)
                directions = torch.randn(part.shape[1], DIMENSIONS, generator=generator).to(part) / DIMENSIONS**0.5
            with full_float32(part.device):
                part = part @ directions
        parts.append(part)
    return torch.cat(parts)


@torch.no_grad()
def random_rows(batches: Iterable[Tensor], count: int, seed: int) -> Tensor:
    """At most so many rows of all batches [..., D], which are read once, each as likely as any other, in random order.

    No more than these rows are held, and a batch.

    Returns:
        [count, D], or all [N, D] of fewer, of the batches' dtype and device.
    """
    generator = torch.Generator().manual_seed(seed)
    held: list[Tensor] = []
    keys = torch.empty(0)  # the rows with the smallest keys are kept
    for batch in batches:
        own = batch.flatten(0, -2)
        drawn = torch.rand(len(own), generator=generator)
        if len(keys) < count:
            held.append(own)
            keys = torch.cat([keys, drawn])
            if len(keys) < count:
                continue
            rows, held = _joined(held), []
            own, drawn, rows, keys = rows[count:], keys[count:], rows[:count], keys[:count]
        left_out = torch.cat([keys, drawn]).topk(len(drawn)).indices
        outgoing = left_out[left_out < count]
        is_kept = torch.ones(len(drawn), dtype=torch.bool).index_fill_(0, left_out[left_out >= count] - count, False)
        incoming = is_kept.nonzero()[:, 0]
        rows[outgoing.to(rows.device)] = own[incoming.to(own.device)]
        keys[outgoing] = drawn[incoming]
    if held:
        rows = _joined(held)
    order = keys.argsort().to(rows.device)
    for part in rows.split(COLUMNS, dim=1):
        part.copy_(part[order])
    return rows


def _joined(parts: list[Tensor]) -> Tensor:
    """Rows one after another, in memory of their own; the list is emptied on the way, so that they are there once."""
    rows = parts[0].new_empty(sum(map(len, parts)), parts[0].shape[1])
    end = len(rows)
    while parts:
        part = parts.pop()
        rows[end - len(part) : end] = part
        end -= len(part)
        del part
    return rows
