"""Locally aware patch features (SimpleNet, Eqs. 1-3): neighbourhoods of layer maps, pooled to one vector per patch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def embed_patches(
    maps: Sequence[Tensor], pretrain_embed_dimension: int, target_embed_dimension: int, patchsize: int = 3
) -> Tensor:
    """Turn the layer maps of B images into one embedding per patch of the first layer's grid.

    Every map is unfolded p x p with stride 1 and zero padding (p-1)//2 (the neighbourhood N_p, Eq. 1), each patch is
    averaged adaptively from C*p*p values to pretrain_embed_dimension (f_agg, Eq. 2), deeper layers are resized to the
    first layer's grid (bilinear, align_corners=False), and the stacked layers are averaged adaptively to
    target_embed_dimension (f_cat, Eq. 3). Resizing acts on space and pooling on channels, so the pooled planes are
    resized, which is the same and cheaper than resizing all C*p*p of them.

    Args:
        maps: one float tensor [B, C_l, H_l, W_l] per layer; the first gives the grid H1 x W1.
        pretrain_embed_dimension: values per patch and layer, at least 1.
        target_embed_dimension: values per patch, D, at least 1.
        patchsize: side p of the neighbourhood, at least 1; even sizes shrink the grid by one.

    Returns:
        [B, H1*W1, D], row-major over the grid, dtype of the maps.

    Raises:
        ValueError: no maps, a map that is not 4-D, or a map smaller than the patch.
    """
    if not maps:
        raise ValueError("maps is empty: at least one layer map [B, C, H, W] is needed")
    pooled: list[Tensor] = []
    for layer_map in maps:
        if layer_map.ndim != 4:
            raise ValueError(f"a layer map must be [B, C, H, W], not {list(layer_map.shape)}")
        planes = _pool_neighbourhoods(layer_map, pretrain_embed_dimension, patchsize)
        if pooled and planes.shape[-2:] != pooled[0].shape[-2:]:
            planes = F.interpolate(planes, size=pooled[0].shape[-2:], mode="bilinear", align_corners=False)
        pooled.append(planes)
    stacked = torch.cat(pooled, dim=1).flatten(2).transpose(1, 2)  # [B, H1*W1, layers*P]
    return F.adaptive_avg_pool1d(stacked, target_embed_dimension)


def patch_grid(map_size: tuple[int, int], patchsize: int) -> tuple[int, int]:
    """Rows and columns of patches on a map of the given height and width."""
    shrink = 2 * ((patchsize - 1) // 2) - patchsize + 1
    return map_size[0] + shrink, map_size[1] + shrink


def _pool_neighbourhoods(layer_map: Tensor, dimension: int, patchsize: int) -> Tensor:
    """[B, C, H, W] -> [B, dimension, h, w]: the mean of `dimension` adaptive groups of each C*p*p neighbourhood."""
    height, width = patch_grid((layer_map.shape[-2], layer_map.shape[-1]), patchsize)
    if height < 1 or width < 1:
        raise ValueError(
            f"patchsize {patchsize} does not fit a {layer_map.shape[-2]} x {layer_map.shape[-1]} layer map"
        )
    patches = F.unfold(layer_map, patchsize, padding=(patchsize - 1) // 2)  # [B, C*p*p, h*w]
    pooled = F.adaptive_avg_pool1d(patches.transpose(1, 2), dimension)  # [B, h*w, dimension]
    return pooled.transpose(1, 2).unflatten(2, (height, width))
