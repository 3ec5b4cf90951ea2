"""How far random changes of training images go: the ranges that are asked for are filled and not left."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import ImageTransform, RandomTransform, normalised, pixels_of
from datasets.transforms import IMAGENET_MEAN, IMAGENET_STD

DRAWS = 60


def drawn(pixels, **changes):
    """Pixels [64, 64, 3] changed at random, DRAWS times: float [64, 64, 3] each."""
    torch.manual_seed(0)
    transform = ImageTransform(64, 64, RandomTransform(**changes))
    return [transform.pixels(Image.fromarray(pixels)).permute(1, 2, 0).numpy().astype(float) for _ in range(DRAWS)]


def places(offset, **changes):
    """Where a dot so far right of the centre comes to lie: rows and columns from the centre."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[30:34, 30 + offset : 34 + offset] = 255
    found = [image[..., 0] for image in drawn(pixels, **changes)]
    rows, columns = np.mgrid[:64, :64] - 31.5
    return np.array([((rows * one).sum(), (columns * one).sum()) / one.sum() for one in found])


def fill(values, low, high):
    """Values lie in a range and come close to both of its ends."""
    edge = (high - low) / 10
    assert low - edge / 4 <= min(values) <= low + edge
    assert high - edge <= max(values) <= high + edge / 4


def test_rotations_fill_their_range():
    found = places(16, rotate_degrees=40.0)
    fill([math.degrees(math.atan2(y, x)) for y, x in found], -40, 40)
    assert np.hypot(*found.T) == pytest.approx(np.full(DRAWS, 16), abs=0.5)


def test_shifts_fill_their_range():
    rows, columns = places(0, translate=0.3).T
    fill(rows, -0.3 * 64, 0.3 * 64)
    fill(columns, -0.3 * 64, 0.3 * 64)


def test_zooms_fill_their_range():
    rows, columns = places(16, scale=0.5).T
    fill(columns / 16, 0.5, 1.5)
    assert rows == pytest.approx(np.zeros(DRAWS), abs=0.5)


def test_colours_fill_their_range():
    """Brightness scales values, contrast what sets them apart from their mean, saturation from their pixel's grey."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32], pixels[32:] = (80, 70, 60), (120, 110, 100)
    for name in ("brightness", "contrast", "saturation"):
        found = drawn(pixels, **{name: 0.5})
        factors = {
            "brightness": [image.mean() / pixels.mean() for image in found],
            "contrast": [(image[40] - image[0]).mean() / 40 for image in found],
            "saturation": [(image[..., 0] - image[..., 2]).mean() / 20 for image in found],
        }
        fill(factors[name], 0.5, 1.5)
        if name != "brightness":
            assert [image.mean() for image in found] == pytest.approx([pixels.mean()] * DRAWS, abs=2)
        if name == "saturation":
            assert factors["contrast"] == pytest.approx([1] * DRAWS, abs=0.05)


def test_changes_that_are_drawn_once_are_an_image_s_own():
    """The same at every pass, whatever was drawn before, and what is drawn afterwards does not change."""
    transform = ImageTransform(32, 32, RandomTransform(brightness=0.5, draw_once=True))
    one, other = (Image.new("RGB", (32, 32), (n, n, n)) for n in (100, 101))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    found = [transform.pixels(image).float().mean().item() for image in (one, other, one)]
    assert torch.equal(torch.rand(3), expected)
    assert found[0] == found[2] and abs(found[0] / 100 - found[1] / 101) > 0.02
    torch.rand(1)
    assert transform.pixels(one).float().mean().item() == found[0]


@pytest.mark.parametrize("name", ["hflip", "vflip", "gray"])
def test_chances_are_those_asked_for(name):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    grey = np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))
    expected = {"hflip": pixels[:, ::-1], "vflip": pixels[::-1], "gray": grey}[name]
    found = drawn(pixels, **{name: 0.5})
    hits = [np.abs(image - expected).max() <= 1 for image in found]
    assert all(hit or (image == pixels).all() for hit, image in zip(hits, found, strict=True))
    assert np.mean(hits) == pytest.approx(0.5, abs=0.2)


def test_every_pixel_is_normalised_to_its_float():
    """To the bit, as float32 arithmetic has it, whatever the layout."""
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    mean, std = (np.array(own, np.float32) for own in (IMAGENET_MEAN, IMAGENET_STD))
    expected = ((pixels.astype(np.float32) / np.float32(255) - mean) / std).transpose(2, 0, 1)
    own = ImageTransform(16, 16)
    assert (own.image(Image.fromarray(pixels)).numpy() == expected).all()
    assert (own.pixels(Image.fromarray(pixels)).numpy() == pixels.transpose(2, 0, 1)).all()
    several = torch.stack([own.pixels(Image.fromarray(pixels))] * 2)
    for batch in (several.contiguous(), several.contiguous(memory_format=torch.channels_last)):
        assert (normalised(batch).numpy() == expected).all()
    assert several.dtype == torch.uint8


def test_what_inference_has_normalised_with_is_not_kept():
    """Its tensors could not be trained with."""
    images = torch.randn(1, 3, 4, 4)
    with torch.inference_mode():
        pixels_of(images)
    found = normalised(pixels_of(images.requires_grad_()))
    assert ((found - images).abs() <= 0.5 / 255 / 0.224 + 1e-6).logical_or(images.abs() > 1.7).all()
