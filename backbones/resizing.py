"""Resizing of maps to another grid, bilinear or by means, whose gradients are the same every time."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.alignment import PIXELS, interpolation_on, resampled
from backbones.centres import middle
from backbones.devices import kept_on_device


def resized(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps [B, C, h, w] on another grid, [B, C, *grid], as cells that share the same image evenly.

    A CPU has F.interpolate. Elsewhere its gradients are added up in any order, or by a slow way around: there two small
    matrices do it, A_h M A_w^T, which differs from it by rounding.
    """
    if tuple(maps.shape[-2:]) == tuple(grid):
        return maps
    if maps.device.type == "cpu":
        return F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
    return by_matrices(maps, grid)


def by_matrices(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """`resized` by matrices, on any device."""
    rows, columns = (
        interpolation_on(maps.device, PIXELS, n, middle(count, n), count)
        for n, count in zip(maps.shape[-2:], grid, strict=True)
    )
    return resampled(maps, rows, columns).to(maps.dtype)


def averaged(planes: Tensor, grid: Sequence[int]) -> Tensor:
    """Planes [..., h, w] by the means of their cells in each of a coarser grid's: float32 [..., *grid]."""
    return resampled(
        planes, *(_means(planes.device, n, cells) for n, cells in zip(planes.shape[-2:], grid, strict=True))
    )


@kept_on_device
def _means(n: int, cells: int) -> Tensor:
    """[cells, n], on a device given before the rest: along an axis, the mean of what lies in each cell."""
    return F.adaptive_avg_pool1d(torch.eye(n).unsqueeze(0), cells)[0].T
