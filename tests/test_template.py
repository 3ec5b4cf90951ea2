"""Template matching against the arrays of OpenCV and NumPy, and registration where it can fail."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import backbones
from errors import UsageError
from methods import registration
from methods.template import Template, central, correlation, deviation, nearest

FILE = np.load(Path(__file__).parent / "golden" / "template.npz")
META = json.loads(str(FILE["meta"]))
GOLDEN = {name: torch.from_numpy(FILE[name]) for name in FILE.files if name != "meta"}
IMAGE, MEAN = FILE["test"], np.float32(FILE["mean"])
TRUE_X, TRUE_Y = META["true_shift_xy"]


def seeded():
    return torch.Generator().manual_seed(0)


def built(**options):
    size = tuple(GOLDEN["test"].shape)
    return Template(backbones.load("pixels"), ["input"], size, **{"align": "none", "centre": "mean", **options})


def fitted(images=None, **options):
    detector = built(**options)
    detector.fit_embeddings((GOLDEN["normal"] if images is None else images).split(2))
    return detector


def test_template_and_spread():
    for found in (central(GOLDEN["normal"], "mean"), [fitted().template, fitted().spread]):
        for own, name in zip(found, ("mean", "std"), strict=True):
            torch.testing.assert_close(own.double(), GOLDEN[name], rtol=0, atol=1e-5)


def test_median_and_its_spread():
    images = np.random.default_rng(0).random((6, 5, 7), np.float32)
    middle = np.median(images, axis=0)
    expected = [middle, 1.4826 * np.median(abs(images - middle), axis=0)]
    for own, value in zip(central(torch.from_numpy(images), "median"), expected, strict=True):
        np.testing.assert_allclose(own, value, rtol=1e-6)


def test_maps_of_an_aligned_image():
    """By the program's warp: the map is that of the arrays, and so is the nearest normal image's."""
    aligned, seen = registration.warped(IMAGE, FILE["warp_ecc"])
    np.testing.assert_allclose(aligned, FILE["aligned"], atol=1e-5)
    assert np.array_equal(seen, FILE["valid"])
    image = torch.from_numpy(aligned).unsqueeze(0)
    found = deviation(image, GOLDEN["mean"].float(), GOLDEN["std"].float(), 0.02)[0] * GOLDEN["valid"]
    torch.testing.assert_close(found.double(), GOLDEN["z_map"], rtol=0, atol=1e-3)
    torch.testing.assert_close(nearest(image, GOLDEN["normal"])[0], GOLDEN["nearest_map"], rtol=0, atol=1e-5)


def test_registration():
    x, y = registration.shift(IMAGE, MEAN)[:, 2]
    assert (x, y) == pytest.approx(FILE["phase_shift"], abs=0.05)
    for motion, name in (("translation", "warp_ecc_translation"), ("euclidean", "warp_ecc")):
        warp = registration.register(IMAGE, MEAN, motion)
        assert warp[:, 2] == pytest.approx(FILE[name][:, 2], abs=0.05)
        assert warp[:, :2] == pytest.approx(FILE[name][:, :2], abs=1e-3)
    assert warp[:, 2] == pytest.approx((TRUE_X, TRUE_Y), abs=0.1)


def test_correlation_is_that_of_opencv():
    """Of a template at every place of a larger picture: the window around its middle holds all of it."""
    template = GOLDEN["mean"][10:42, 12:44].float()
    windows = GOLDEN["big"].unfold(0, 32, 1).unfold(1, 32, 1)[::6, ::6]
    found = correlation(windows.flatten(0, 1), template, window=63, least=0.0)[:, 16, 16]
    torch.testing.assert_close(found.view(windows.shape[:2]), GOLDEN["ncc"][::6, ::6], rtol=0, atol=1e-4)


def test_windows_that_are_flat_in_both_are_alike():
    flat, (textured, unlike) = torch.full((1, 20, 20), 0.3), torch.rand(2, 1, 20, 20, generator=seeded())
    assert correlation(flat + 0.2, flat[0], 5, 0.02).min() > 0.999
    assert correlation(textured, flat[0], 5, 0.02).max() < 0.5
    assert correlation(2 * textured, textured[0], 5, 1e-3).min() > 0.99
    other = correlation(textured, unlike[0], 5, 0.02)
    assert other.abs().max() < 1 and not torch.equal(other, correlation(textured, unlike[0], 7, 0.02))


@pytest.mark.parametrize("score", ["deviation", "nearest", "correlation"])
def test_what_moves_less_than_is_searched_is_normal(score):
    """Two pixels to the right; one is not enough. The edge is where something came into view."""
    image = GOLDEN["normal"][:1]
    scores = []
    for search in (0, 1, 2):
        detector = fitted(image, score=score, search=search)
        moved = F.pad(image, (2, 0))[..., :-2]
        scores.append(detector.deviations(moved)[..., 8:-8, 8:-8].max())
    assert scores[0] > scores[1] > scores[2]
    assert scores[2] < 1e-3 * scores[0]


@pytest.mark.parametrize("align", ["translation", "euclidean", "affine"])
def test_alignment_finds_the_spot_where_it_is_in_the_image(align):
    """What moves takes its map along; without alignment all edges deviate."""
    (row, column, height, width), images = META["spot"], GOLDEN["test"].unsqueeze(0)
    aligned, unaligned = fitted(align=align), fitted()
    maps = aligned.score(images).maps[0]
    assert maps.argmax() // maps.shape[1] == pytest.approx(row + TRUE_Y + height / 2, abs=height)
    assert maps.argmax() % maps.shape[1] == pytest.approx(column + TRUE_X + width / 2, abs=width)
    normal = torch.from_numpy(registration.warped(FILE["normal"][0], np.float32([[1, 0, 3], [0, 1, -2]])).image)
    ratio = [one.score(images).scores / one.score(normal.unsqueeze(0)).scores for one in (aligned, unaligned)]
    assert ratio[0] > 1.5 * ratio[1]
    assert "OpenCV" in aligned.not_exported and not unaligned.not_exported


def test_what_is_hardly_in_view_does_not_count():
    """The image has moved by 3 columns and 2 rows, whose neighbours in view were drawn from beyond its border."""
    (maps,) = fitted(align="translation", sigma=0.1).score(GOLDEN["test"].unsqueeze(0)).maps
    assert maps[:, 0].max() == maps[-1].max() == 0
    assert min(maps[:, 4].max(), maps[-5].max()) > 0


def test_normal_images_are_aligned_before_the_template_is_made():
    moves = [(0, 0), (3, 1), (-2, 4), (1, -3), (4, 2)]
    warps = [np.float32([[1, 0, x], [0, 1, y]]) for x, y in moves]
    images = torch.from_numpy(np.stack([registration.warped(MEAN, warp).image for warp in warps]))
    inner = (slice(16, -16),) * 2
    assert fitted(images, align="translation").spread[inner].mean() < 0.2 * fitted(images).spread[inner].mean()


def test_normal_images_are_aligned_again_to_their_template(monkeypatch):
    targets, align = [], Template.aligned

    def watched(self, images, template):
        found = align(self, images, template)
        targets.append((template, found[0]))
        return found

    monkeypatch.setattr(Template, "aligned", watched)
    detector = fitted(align="translation")
    (_, once), (target, twice) = targets
    assert torch.equal(target, central(once, "mean")[0])
    assert torch.equal(detector.template, central(twice, "mean")[0])


@pytest.mark.parametrize("other", [np.zeros_like(IMAGE), np.full_like(IMAGE, 0.3)])
def test_what_has_no_place_stays(other):
    for image, template in ((other, MEAN), (IMAGE, other), (other, other)):
        assert np.array_equal(registration.register(image, template, "affine"), registration.still())


def test_a_warp_that_leaves_little_in_view_is_not_taken(monkeypatch):
    far = np.float32([[1, 0, 80], [0, 1, 0]])
    monkeypatch.setattr(registration, "shift", lambda *_: far)
    monkeypatch.setattr(registration, "refined", lambda *_: far)
    assert np.array_equal(registration.register(IMAGE, np.roll(IMAGE, -80, axis=1), "affine"), registration.still())


def test_references_are_as_many_as_asked_for_and_far_apart():
    images = torch.cat([GOLDEN["normal"], GOLDEN["normal"] + 1])
    kept = fitted(images, score="nearest", references=2).references
    assert kept.shape[0] == 2 and (kept[0].mean() - kept[1].mean()).abs() > 0.5
    assert len(fitted(images, score="nearest").references) == 10


def test_what_is_read_is_brightness_in_full_precision():
    pixels = torch.rand(2, 3, *IMAGE.shape, generator=seeded())
    mean, std = (torch.tensor(own).view(3, 1, 1) for own in (backbones.IMAGENET.mean, backbones.IMAGENET.std))
    detector = built(precision=torch.bfloat16)
    expected = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1)
    torch.testing.assert_close(detector.embed((pixels - mean) / std), expected, rtol=0, atol=1e-6)


def test_an_images_score_is_of_its_highest_pixels():
    one, three = (built(score_pixels=k).predicted(torch.tensor([[[1.0, 5.0], [2.0, 3.0]]])).scores for k in (1, 3))
    assert one.item() == 5 and three.item() == pytest.approx(10 / 3)


def test_no_more_images_than_memory_holds(monkeypatch):
    monkeypatch.setattr("detection.pixels.WORKING_MEMORY", 3 * 4 * IMAGE.size)
    assert len(built().drawn_evenly(GOLDEN["normal"].split(2))) == 3


def test_an_even_window_is_refused():
    with pytest.raises(UsageError, match="--window 4 must be odd"):
        built(score="correlation", window=4)
