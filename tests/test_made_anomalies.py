"""Made anomalies: masks of Perlin noise by the golden arrays, filters, textures, and what is pasted."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.assembly.photographs import REGIONS
from detection.filters import FILTERS, filtered
from detection.pasting import LEAST, kept_parts, pasted, shuffled
from detection.perlin import perlin_mask, perlin_noise
from detection.textures import PHOTOGRAPHS, Textures
from errors import DataError, UsageError

ARRAYS = np.load(Path(__file__).parent / "golden" / "perlin.npz")
CASES = json.loads(bytes(ARRAYS["meta"]))["cases"]


@pytest.fixture
def pixels():
    return np.random.default_rng(1).integers(0, 256, (40, 56, 3)).astype(np.uint8)


@pytest.mark.parametrize("i", range(len(CASES)))
def test_noise(i):
    found = perlin_noise(ARRAYS[f"case{i}_uniform"], tuple(CASES[i][0]))
    np.testing.assert_allclose(found, ARRAYS[f"case{i}_noise"], atol=1e-12)
    np.testing.assert_array_equal(found > 0.5, ARRAYS[f"case{i}_mask"])


@pytest.mark.parametrize("size", [(40, 50), (3, 2), (1, 1)])
def test_masks_of_any_size_are_the_generators_alone(size):
    first, same = ([perlin_mask(size, np.random.default_rng(i)) for i in range(20)] for _ in range(2))
    np.testing.assert_array_equal(first, same)
    assert 0 <= np.mean(first) < 0.2
    assert np.any(first) == (size == (40, 50))


@pytest.mark.parametrize("own", FILTERS)
def test_a_filter_changes_an_image_and_leaves_the_given_one(own, pixels):
    before = pixels.copy()
    found = [own(pixels, np.random.default_rng(i)) for i in range(4)]
    np.testing.assert_array_equal(pixels, before)
    assert {(one.shape, one.dtype) for one in found} == {(pixels.shape, pixels.dtype)}
    assert any((one != pixels).any() for one in found)


def test_three_filters_are_drawn_without_return(monkeypatch, pixels):
    drawn = []
    named = [lambda image, rng, i=i: drawn.append(i) or image for i in range(10)]
    monkeypatch.setattr("detection.filters.FILTERS", named)
    for i in range(20):
        filtered(pixels, np.random.default_rng(i))
        assert len(set(drawn[-3:])) == 3
    assert len(drawn) == 60
    assert set(drawn) == set(range(10))


def test_photographs_are_none_of_assembly():
    assert not {*PHOTOGRAPHS} & {"coins", *(name for name, *_ in REGIONS.values())}


def test_textures_of_photographs():
    cuts = [Textures().cut((20, 30), np.random.default_rng(i)) for i in range(12)]
    assert {(one.shape, one.dtype.name) for one in cuts} == {((20, 30, 3), "uint8")}
    assert len({one.tobytes() for one in cuts}) == 12


def test_textures_of_a_folder(tmp_path):
    (tmp_path / "below").mkdir()
    Image.new("RGB", (9, 5), (10, 20, 30)).save(tmp_path / "below" / "a.png")
    assert np.unique(Textures(str(tmp_path)).cut((8, 8), np.random.default_rng(0)).reshape(-1, 3), axis=0).tolist() == [
        [10, 20, 30]
    ]
    (tmp_path / "below" / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"a\.png"):
        Textures(str(tmp_path)).cut((8, 8), np.random.default_rng(0))


def test_a_folder_without_textures(tmp_path):
    with pytest.raises(UsageError, match="no image in this folder or below it"):
        Textures(str(tmp_path))
    with pytest.raises(UsageError, match="no such folder"):
        Textures(str(tmp_path / "x"))


def test_small_parts_and_those_elsewhere_are_left_out():
    mask, allowed = np.zeros((2, 50, 50), bool)
    mask[2:6, 2:6] = mask[20, 20] = mask[40:45, 40:45] = True
    mask[30, 30:32] = mask[31, 32] = True  # joined at a corner: 3 of 2500 pixels
    allowed[:40, :] = True
    expected = mask.copy()
    expected[40:45, 40:45] = expected[20, 20] = False
    assert 1 < LEAST * mask.size < 3
    np.testing.assert_array_equal(kept_parts(mask, allowed), expected)


def test_shuffling_moves_tiles_and_loses_nothing():
    pixels = np.arange(35 * 48 * 3).reshape(35, 48, 3).astype(np.int64)
    found = shuffled(pixels, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(found, axis=None), np.sort(pixels, axis=None))
    assert (found[0, 1:3] - found[0, :2] == 3).all()  # tiles of 2 x 3 stay whole
    assert (found[:34] != pixels[:34]).mean() > 0.9
    np.testing.assert_array_equal(found[34], pixels[34])


@pytest.mark.parametrize("own_share", [0, 1])
def test_a_pasted_defect_is_where_its_mask_is(pixels, own_share):
    allowed = np.zeros(pixels.shape[:2], bool)
    allowed[:, :20] = True
    for i in range(5):
        found = pasted(pixels, allowed, Textures(), own_share, np.random.default_rng(i))
        np.testing.assert_array_equal(found.pixels[~found.mask], pixels[~found.mask])
        assert (found.pixels != pixels).any(axis=2)[found.mask].mean() > 0.8
        assert (found.mask & allowed).any()


def test_where_nothing_is_allowed_an_image_stays_as_it_is(pixels):
    found = pasted(pixels, np.zeros(pixels.shape[:2], bool), Textures(), 0.5, np.random.default_rng(0))
    assert not found.mask.any()
    np.testing.assert_array_equal(found.pixels, pixels)
