"""The flow of MSFlow that lets layers see each other: one coupling of all of them, in which both halves are changed.

Of maps y_l [C_l, h_l, w_l] whose channels are put in an order that is drawn once; x1 are the first C_l / 2 of every
layer and x2 the others:

    y1 = e(s2) x1 + t2,  (s2, t2) = N2(x2);     y2 = e(s1) x2 + t1,  (s1, t1) = N1(y1)                       (1a)
    log e(s) = alpha 0.636 atan(s / alpha)                                                                   (1b)
    z = [y1, y2], at most 1e6;  log|det| = sum over layers, channels and cells of log e(s1) + log e(s2)      (1c)

N takes all layers: averaged to the coarsest grid and side by side, S channels, they go through Conv 3 x 3 S -> S // 4,
LayerNorm over channels, ReLU, Conv 3 x 3 S // 4 -> S and ReLU; what comes out is interpolated to each layer's grid,
corners on corners, and added to the layer; a Conv 3 x 3 of the sum gives s and t.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.alignment import PIXELS, interpolation_on, resampled
from backbones.centres import Centres
from backbones.resizing import averaged

ALPHA = 1.9
SHARE = 0.636  # of a right angle's inverse: alpha is the limit of log e
LARGEST = 1e6
NARROWER = 4  # in the middle of N

Grid = tuple[int, int]


class Fusion(nn.Module):
    """(1a) to (1c).

    Args:
        channels: C_l, even.
        grids: rows and columns of the layers.
    """

    def __init__(self, channels: Sequence[int], grids: Sequence[Grid]) -> None:
        super().__init__()
        for layer, count in enumerate(channels):
            self.register_buffer(f"order_{layer}", torch.randperm(count))
        halves = [count // 2 for count in channels]
        self.first, self.second = Cross(halves, grids), Cross(halves, grids)  # N1, N2

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """z and log|det|, float32 [B], of maps, float32 [B, C_l, h_l, w_l]."""
        ordered = [own.index_select(1, order) for own, order in zip(maps, self._orders, strict=True)]
        x1, x2 = zip(*(own.chunk(2, dim=1) for own in ordered), strict=True)
        y1, logdet = _changed(x1, self.second(x2))
        y2, more = _changed(x2, self.first(y1))
        z = [torch.cat(both, dim=1).clamp(-LARGEST, LARGEST) for both in zip(y1, y2, strict=True)]
        return z, logdet + more

    def inverse(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The maps that z comes from, and log|det| of that; shapes as of forward."""
        y1, y2 = zip(*(own.chunk(2, dim=1) for own in maps), strict=True)
        x2, logdet = _changed_back(y2, self.first(y1))
        x1, more = _changed_back(y1, self.second(x2))
        halves = zip(x1, x2, self._orders, strict=True)
        return [torch.cat([a, b], dim=1).index_select(1, order.argsort()) for a, b, order in halves], logdet + more

    @property
    def _orders(self) -> list[Tensor]:
        return [getattr(self, f"order_{layer}") for layer in range(len(self.first.to_s_and_t))]


class Cross(nn.Module):
    """N: s and t of every layer, by all layers.

    Args:
        channels: of the halves that it reads, and of s and t.
        grids: rows and columns of the layers.
    """

    def __init__(self, channels: Sequence[int], grids: Sequence[Grid]) -> None:
        super().__init__()
        self.channels = list(channels)
        self.grids = list(grids)
        total, narrow = sum(channels), max(1, sum(channels) // NARROWER)
        self.narrow = nn.Conv2d(total, narrow, 3, padding=1)
        self.norm = nn.LayerNorm(narrow)
        self.wide = nn.Conv2d(narrow, total, 3, padding=1)
        self.to_s_and_t = nn.ModuleList(nn.Conv2d(count, 2 * count, 3, padding=1) for count in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """s and t side by side, float32 [B, 2 C, h_l, w_l], of maps [B, C, h_l, w_l]."""
        return [conv(own).float() for conv, own in zip(self.to_s_and_t, self.crossed(maps), strict=True)]

    def crossed(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Each layer and what it gets of the others, float32 [B, C, h_l, w_l]."""
        coarsest = min(self.grids)
        together = torch.cat([averaged(own, coarsest) for own in maps], dim=1)  # [B, S, h, w]
        narrow = F.relu(over_channels(self.norm, self.narrow(together)))
        shares = F.relu(self.wide(narrow)).split(self.channels, dim=1)
        return [own + _interpolated(share, own.shape[2:]) for own, share in zip(maps, shares, strict=True)]


def over_channels(norm: nn.LayerNorm, maps: Tensor) -> Tensor:
    """LayerNorm over the channels of every cell of maps [B, C, h, w]."""
    return norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def corners(cells: int, length: int) -> Centres:
    """Of so many cells on an axis of so many pixels, the outermost on the outermost."""
    return Centres(0.0, max(length - 1, 1) / max(cells - 1, 1))


def _changed(x: Sequence[Tensor], s_and_t: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """e(s) x + t of layers, and log|det| [B]."""
    logs, shifts = _logs_and_shifts(s_and_t)
    changed = [torch.addcmul(t, own, log.exp()) for own, log, t in zip(x, logs, shifts, strict=True)]
    return changed, torch.stack([log.sum(dim=(1, 2, 3)) for log in logs]).sum(dim=0)


def _changed_back(y: Sequence[Tensor], s_and_t: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """x of _changed, and log|det| of that."""
    logs, shifts = _logs_and_shifts(s_and_t)
    back = [(own - t) * (-log).exp() for own, log, t in zip(y, logs, shifts, strict=True)]
    return back, -torch.stack([log.sum(dim=(1, 2, 3)) for log in logs]).sum(dim=0)


def _logs_and_shifts(s_and_t: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """log e(s) (1b), and t."""
    pairs = [own.chunk(2, dim=1) for own in s_and_t]
    return [ALPHA * SHARE * (s / ALPHA).atan() for s, _ in pairs], [t for _, t in pairs]


def _interpolated(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """Maps [B, C, h, w] on a finer grid, bilinear, corners on corners; gradients are the same always."""
    if tuple(maps.shape[2:]) == tuple(grid):
        return maps.float()
    weights = (
        interpolation_on(maps.device, corners(n, count), n, PIXELS, count)
        for n, count in zip(maps.shape[2:], grid, strict=True)
    )
    return resampled(maps, *weights)
