"""Random changes of an image's colours and edges that made anomalies are filled with (DRAEM's ten augmenters)."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

Pixels = NDArray[np.uint8]  # RGB [H, W, 3]
CHOSEN = 3


def filtered(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """RGB pixels [H, W, 3] after CHOSEN of FILTERS, in the order in which they were drawn."""
    for i in rng.choice(len(FILTERS), CHOSEN, replace=False):
        pixels = FILTERS[i](pixels, rng)
    return pixels


def gamma(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """255 (v / 255)^g, g of every channel from 0.5 to 2."""
    return np.uint8(np.rint(255 * (pixels / 255) ** rng.uniform(0.5, 2, 3)))


def brightness(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The value of HSV times 0.8 to 1.2, then up to 30 added or taken."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    value = hsv[..., 2] * rng.uniform(0.8, 1.2) + rng.uniform(-30, 30)
    hsv[..., 2] = np.rint(value).clip(0, 255)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def sharpness(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Blurred below 1, sharpened up to 2."""
    return np.array(ImageEnhance.Sharpness(Image.fromarray(pixels)).enhance(rng.uniform(0, 2)))


def hue_and_saturation(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Up to 50 of 256 added to or taken from either."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL).astype(int)
    hue, saturation = np.rint(rng.uniform(-50, 50, 2)).astype(int)
    changed = [(hsv[..., 0] + hue) % 256, (hsv[..., 1] + saturation).clip(0, 255), hsv[..., 2]]
    return cv2.cvtColor(np.uint8(np.stack(changed, axis=-1)), cv2.COLOR_HSV2RGB_FULL)


def solarise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """With probability 1/2, values from a threshold between 32 and 128 on are inverted."""
    if rng.random() < 0.5:
        return pixels
    return np.where(pixels >= rng.uniform(32, 128), 255 - pixels, pixels)


def posterise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The highest 1 to 7 bits of every value."""
    return pixels & np.uint8(256 - 2 ** (8 - int(rng.integers(1, 8))))


def invert(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """255 - v."""
    return 255 - pixels


def autocontrast(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Every channel stretched to 0 to 255, up to 20 % of its values cut off at either end."""
    return np.array(ImageOps.autocontrast(Image.fromarray(pixels), cutoff=rng.uniform(0, 20)))


def equalise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Every channel's histogram made even."""
    return np.array(ImageOps.equalize(Image.fromarray(pixels)))


def rotation(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """By up to 45 degrees about the centre, black outside."""
    return np.array(Image.fromarray(pixels).rotate(rng.uniform(-45, 45), Image.Resampling.BILINEAR))


FILTERS: tuple[Callable[[Pixels, np.random.Generator], Pixels], ...] = (
    gamma,
    brightness,
    sharpness,
    hue_and_saturation,
    solarise,
    posterise,
    invert,
    autocontrast,
    equalise,
    rotation,
)
