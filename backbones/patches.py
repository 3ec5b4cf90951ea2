"""Locally aware patch features (SimpleNet, Eqs. 1-3): neighbourhoods of layer maps, pooled to one vector per patch."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.alignment import Alignment
from backbones.devices import kept_on_device
from backbones.float32 import full_float32
from backbones.resizing import resized

CONVOLVED = 2500  # values of a neighbourhood, above which it is unfolded


def embed_patches(
    maps: Sequence[Tensor],
    pretrain_embed_dimension: int,
    target_embed_dimension: int,
    patchsize: int = 3,
    alignment: Alignment | None = None,
) -> Tensor:
    """Turn the layer maps of B images into one embedding per patch of the first layer's grid.

    Every map is unfolded p x p with stride 1 and zero padding (p-1)//2 (the neighbourhood N_p, Eq. 1), each patch is
    averaged adaptively from C*p*p values to pretrain_embed_dimension (f_agg, Eq. 2), deeper layers are resized to the
    first layer's grid (bilinear, align_corners=False), and the stacked layers are averaged adaptively to
    target_embed_dimension (f_cat, Eq. 3). Resizing acts on space and pooling on channels, so the pooled planes are
    resized, which is the same and cheaper than resizing all C*p*p of them. Where the averaging groups tile the patches
    (the paper's dimensions do), both averages become one of shifted maps, and of few channels a convolution: nothing is
    unfolded then.

    Args:
        maps: one float tensor [B, C_l, H_l, W_l] per layer; the first gives the grid H1 x W1.
        pretrain_embed_dimension: values per patch and layer, at least 1.
        target_embed_dimension: values per patch, D, at least 1.
        patchsize: side p of the neighbourhood, at least 1; even sizes shrink the grid by one.
        alignment: resizes by where the cells of layers look, in place of even shares of the image.

    Returns:
        [B, H1*W1, D], row-major over the grid, dtype of the maps.

    Raises:
        ValueError: no maps, a map that is not 4-D, or a map smaller than the patch.
    """
    if not maps:
        raise ValueError("maps is empty: at least one layer map [B, C, H, W] is needed")
    for layer_map in maps:
        if layer_map.ndim != 4:
            raise ValueError(f"a layer map must be [B, C, H, W], not {list(layer_map.shape)}")
        height, width = layer_map.shape[-2:]
        if min(patch_grid((height, width), patchsize)) < 1:
            raise ValueError(f"patchsize {patchsize} does not fit a {height} x {width} layer map")
    channels = [layer_map.shape[1] for layer_map in maps]
    if _tiles(channels, pretrain_embed_dimension, target_embed_dimension, patchsize):
        per_layer = target_embed_dimension // len(maps)
        averaged = [_average_shifted(layer_map, per_layer, patchsize) for layer_map in maps]
        return _stack_on_first_grid(averaged, alignment)
    if max(channels) * patchsize**2 <= CONVOLVED:
        return _convolved(maps, pretrain_embed_dimension, target_embed_dimension, patchsize, alignment)
    pooled = [_pool_neighbourhoods(layer_map, pretrain_embed_dimension, patchsize) for layer_map in maps]
    return F.adaptive_avg_pool1d(_stack_on_first_grid(pooled, alignment), target_embed_dimension)


def patch_grid(map_size: tuple[int, int], patchsize: int) -> tuple[int, int]:
    """Rows and columns of patches on a map of the given height and width."""
    shrink = 2 * ((patchsize - 1) // 2) - patchsize + 1
    return map_size[0] + shrink, map_size[1] + shrink


def resize_to_first(planes: Sequence[Tensor], alignment: Alignment | None = None) -> list[Tensor]:
    """Planes [B, P_l, h_l, w_l] of layers on the grid of the first, [B, P_l, h_1, w_1], bilinear."""
    grid = planes[0].shape[-2:]
    if alignment is not None:
        return [alignment.on_first(own, layer, tuple(grid)) for layer, own in enumerate(planes)]
    return [resized(own, tuple(grid)) for own in planes]


def _stack_on_first_grid(planes: Sequence[Tensor], alignment: Alignment | None) -> Tensor:
    """Resize [B, P_l, h_l, w_l] to the first grid and stack them: [B, h*w, sum of P_l]."""
    return torch.cat([p.permute(0, 2, 3, 1) for p in resize_to_first(planes, alignment)], dim=3).flatten(1, 2)


def _pool_neighbourhoods(layer_map: Tensor, dimension: int, patchsize: int) -> Tensor:
    """[B, C, H, W] -> [B, dimension, h, w]: the mean of `dimension` adaptive groups of each C*p*p neighbourhood."""
    patches = F.unfold(layer_map, patchsize, padding=(patchsize - 1) // 2)  # [B, C*p*p, h*w]
    pooled = F.adaptive_avg_pool1d(patches.transpose(1, 2), dimension)  # [B, h*w, dimension]
    grid = patch_grid((layer_map.shape[-2], layer_map.shape[-1]), patchsize)
    return pooled.transpose(1, 2).unflatten(2, grid)


def _convolved(
    maps: Sequence[Tensor], pretrain: int, target: int, patchsize: int, alignment: Alignment | None
) -> Tensor:
    """As embed_patches, by a convolution of each layer: [B, h*w, target].

    Of few channels it takes a fraction of the time of unfolding and pooling; of many, most of its products are by zero.
    """
    planes = []
    with full_float32(maps[0].device):
        for layer, own in enumerate(maps):
            values = own.to(torch.promote_types(own.dtype, torch.float32))
            shares = _shares(own.device, own.shape[1], pretrain, target, patchsize, layer, len(maps))
            planes.append(F.conv2d(values, shares.to(values.dtype), padding=(patchsize - 1) // 2))
    averages = []
    for layer, own in enumerate(resize_to_first(planes, alignment)):
        first, end = _places(target, layer, len(maps))
        averages.append(F.pad(own.permute(0, 2, 3, 1), (first, target - end)))  # [B, h, w, target]
    return _sum(averages).flatten(1, 2).to(maps[0].dtype)


@kept_on_device
def _shares(channels: int, pretrain: int, target: int, patchsize: int, layer: int, layers: int) -> Tensor:
    """What share every value of a layer's neighbourhood has in the averages that it is part of: [n, C, p, p]."""
    values = torch.eye(channels * patchsize**2).unsqueeze(0)
    pooled = F.pad(F.adaptive_avg_pool1d(values, pretrain), (layer * pretrain, (layers - 1 - layer) * pretrain))
    first, end = _places(target, layer, layers)
    averages = F.adaptive_avg_pool1d(pooled, target)[0, :, first:end]  # [C*p*p, n]
    return averages.T.reshape(end - first, channels, patchsize, patchsize)


def _places(target: int, layer: int, layers: int) -> tuple[int, int]:
    """The first of the averages that a layer is part of, and the one behind its last."""
    return layer * target // layers, -(-(layer + 1) * target // layers)


def _tiles(channels: Sequence[int], pretrain: int, target: int, patchsize: int) -> bool:
    """Whether both poolings are plain averages of neighbours that, together, cover whole kernel rows of one layer.

    Pooling n values to d averages n/d neighbours each if d divides n.
    """
    stacked = len(channels) * pretrain
    if stacked % target or pretrain % (stacked // target):
        return False
    per_layer = target // len(channels)
    values = [c * patchsize**2 for c in channels]
    return all(v % pretrain == 0 and (v // per_layer) % patchsize == 0 for v in values)


def _average_shifted(layer_map: Tensor, planes: int, patchsize: int) -> Tensor:
    """[B, C, H, W] -> [B, planes, h, w]: means of equal groups of each C*p*p neighbourhood, in whole kernel rows.

    The values of a patch stand in the order (channel, row, column). Columns are summed first, by shifting; a group is
    then a sum of neighbours in the order (channel, row). Channels that a group has as a whole are summed before that.
    """
    height, width = patch_grid((layer_map.shape[-2], layer_map.shape[-1]), patchsize)
    group = layer_map.shape[1] * patchsize**2 // planes
    before = (patchsize - 1) // 2
    channels = layer_map.permute(0, 2, 3, 1)  # last: contiguous
    whole = group % patchsize**2 == 0
    if whole:
        channels = _sum(channels.unflatten(3, (planes, -1)).unbind(dim=-1))  # [B, H, W, planes]
    padded = F.pad(channels, (0, 0, before, before, before, before))
    rows = _sum([padded[:, :, k : k + width] for k in range(patchsize)]) / group
    shifted = [rows[:, k : k + height] for k in range(patchsize)]
    if whole:
        return _sum(shifted).permute(0, 3, 1, 2)
    groups = torch.stack(shifted, dim=-1).flatten(3).unflatten(3, (planes, group // patchsize))
    return _sum(groups.unbind(dim=-1)).permute(0, 3, 1, 2)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.add, tensors)
