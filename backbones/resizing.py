"""Bilinear resizing of maps to another grid, whose gradients are the same every time."""

import torch.nn.functional as F
from torch import Tensor

from backbones.alignment import PIXELS, interpolation_on, resampled
from backbones.centres import middle


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
