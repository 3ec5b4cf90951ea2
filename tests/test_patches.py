"""Patch embeddings against the golden arrays and against unfold + pooling written plainly."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones import embed_patches, patches
from backbones.patches import patch_grid

GOLDEN = np.load(Path(__file__).parent / "golden" / "simplenet_golden.npz")
META = json.loads(GOLDEN["meta"].tobytes())


@pytest.mark.parametrize("i", range(len(META["cases"])))
def test_golden_embeddings(i):
    case = META["cases"][i]
    maps = [torch.from_numpy(GOLDEN[f"maps.{layer}"]) for layer in case["layers"]]
    found = embed_patches(maps, case["pretrain_embed_dimension"], case["target_embed_dimension"], case["patchsize"])
    rows, columns = case["patch_grid"]
    assert found.shape == (len(maps[0]), rows * columns, case["target_embed_dimension"])
    assert patch_grid(maps[0].shape[-2:], case["patchsize"]) == (rows, columns)
    np.testing.assert_allclose(found.flatten(0, 1).numpy(), GOLDEN[f"embed.{i}"], atol=1e-5, rtol=0)


def plain_embedding(maps, pretrain, target, p):
    """Unfold, resize every (channel, row, column) plane, pool each patch, pool the stack: no shortcuts."""
    pooled = []
    shrink = p - 1 - 2 * ((p - 1) // 2)
    first_grid = (maps[0].shape[-2] - shrink, maps[0].shape[-1] - shrink)
    for layer_map in maps:
        batch, channels, height, width = layer_map.shape
        pad = (p - 1) // 2
        grid = (height + 2 * pad - p + 1, width + 2 * pad - p + 1)
        planes = F.unfold(layer_map, p, padding=pad).reshape(batch, channels * p * p, *grid)
        if pooled:
            planes = F.interpolate(planes, size=first_grid, mode="bilinear", align_corners=False)
        patches = planes.flatten(2).transpose(1, 2).reshape(-1, 1, channels * p * p)
        pooled.append(F.adaptive_avg_pool1d(patches, pretrain)[:, 0])
    stack = torch.stack(pooled, dim=1).reshape(len(pooled[0]), 1, -1)
    return F.adaptive_avg_pool1d(stack, target)[:, 0]


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(3, 8), st.integers(3, 8)), min_size=1, max_size=3),
    pretrain=st.integers(1, 40),
    target=st.integers(1, 40),
    p=st.integers(1, 5),
    few=st.booleans(),
    seed=st.integers(0, 9),
)
def test_equals_unfold_and_pooling(batch, shapes, pretrain, target, p, few, seed):
    """Few channels, which are convolved, and many, which are unfolded."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(batch, *shape, generator=generator) for shape in shapes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "CONVOLVED", 9 * 5**2 if few else 0)
        patch.setattr(patches, "_pool_neighbourhoods" if few else "_convolved", None)
        found = embed_patches(maps, pretrain, target, p).flatten(0, 1)
    torch.testing.assert_close(found, plain_embedding(maps, pretrain, target, p), atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(1, 3),
    per_layer=st.integers(1, 4),
    rows=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    pooled=st.integers(1, 3),
    p=st.integers(1, 5),
    sizes=st.lists(st.tuples(st.integers(3, 8), st.integers(3, 8)), min_size=3, max_size=3),
)
def test_tiled_dimensions_equal_unfold_and_pooling(layers, per_layer, rows, pooled, p, sizes):
    """Channels so that every group is whole kernel rows of one layer, or more; nothing may be unfolded then."""
    pretrain, target = per_layer * pooled * p, layers * per_layer * p
    channels = [per_layer * pooled * r for r in rows[:layers]]
    maps = [torch.randn(2, c, *size) for c, size in zip(channels, sizes, strict=False)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "_pool_neighbourhoods", None)
        patch.setattr(patches, "_convolved", None)
        found = embed_patches(maps, pretrain, target, p).flatten(0, 1)
    torch.testing.assert_close(found, plain_embedding(maps, pretrain, target, p), atol=1e-5, rtol=0)


def test_papers_dimensions_tile():
    assert patches._tiles([512, 1024], 1536, 1536, 3)
    assert not patches._tiles([512, 1024], 1024, 1024, 3)


def test_memory_format_does_not_matter():
    maps = [torch.randn(2, 8, 6, 6), torch.randn(2, 12, 3, 3)]
    last = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    torch.testing.assert_close(embed_patches(last, 8, 8), embed_patches(maps, 8, 8))


@pytest.mark.parametrize(
    ("maps", "patchsize", "words"),
    [
        ([], 3, "maps is empty"),
        ([torch.zeros(2, 3, 4)], 3, r"\[2, 3, 4\]"),
        ([torch.zeros(1, 3, 1, 1)], 2, "patchsize 2 does not fit a 1 x 1"),
    ],
)
def test_bad_maps_are_named(maps, patchsize, words):
    with pytest.raises(ValueError, match=words):
        embed_patches(maps, 4, 4, patchsize)
