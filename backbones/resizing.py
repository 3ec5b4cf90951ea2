"""Bilinear resizing of maps to another grid, whose gradients are the same every time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.alignment import interpolation
from backbones.centres import Centres, middle
from backbones.devices import kept_on_device
from backbones.float32 import full_float32

CELLS = Centres(0.0, 1.0)


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
    rows, columns = (_weights(maps.device, n, count) for n, count in zip(maps.shape[-2:], grid, strict=True))
    with full_float32(maps.device):
        return (rows @ maps.float() @ columns.T).to(maps.dtype)


@kept_on_device
def _weights(cells: int, count: int) -> Tensor:
    """float32 [count, cells]."""
    return interpolation(CELLS, cells, middle(count, cells), count).to(torch.float32)
