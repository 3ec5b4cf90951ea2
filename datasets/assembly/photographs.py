"""Textures and coins cut from the photographs that come with scikit-image; their colours are given to them later."""

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

# Of each texture the photograph and its rows and columns that show nothing else.
REGIONS = {
    "wood": ("coffee", slice(130, 390), slice(490, 598)),
    "brick": ("brick", slice(270, 375), slice(226, 250)),
    "gravel": ("gravel", slice(None), slice(None)),
    "grass": ("grass", slice(None), slice(None)),
    "fabric": ("astronaut", slice(262, 345), slice(75, 195)),
    "fur": ("chelsea", slice(20, 110), slice(130, 260)),
    "dust": ("moon", slice(270, 500), slice(330, 510)),
}
# Column, row and radius of the coins in their photograph.
# fmt: off
SMALL_COINS = (
    (44, 54, 22), (100, 56, 20), (155, 51, 24), (216, 51, 24), (276, 52, 21), (46, 124, 21), (103, 126, 19),
    (153, 127, 20), (206, 124, 20), (336, 125, 20), (44, 197, 19), (102, 196, 22), (154, 198, 20), (212, 194, 24),
    (274, 194, 23), (114, 266, 21),
)
# fmt: on
LARGE_COINS = ((334, 43, 30), (271, 120, 25), (347, 187, 32), (46, 260, 28), (172, 261, 28), (244, 264, 25))
COIN_BORDER = 4  # pixels around a coin


@cache
def _photograph(name: str) -> Plane:
    """Its brightness."""
    import skimage.data  # late: other datasets need not wait for it

    pixels = getattr(skimage.data, name)()
    return np.float32(pixels if pixels.ndim == 2 else pixels.mean(axis=2)) / 255


@cache
def _region(name: str) -> Plane:
    photograph, rows, columns = REGIONS[name]
    return np.ascontiguousarray(_photograph(photograph)[rows, columns])


def texture(name: str, width: int, height: int, zoom: float, rng: np.random.Generator) -> Plane:
    """A random cut of a texture, flipped at random.

    Args:
        name: a key of REGIONS.
        width, height: of the cut, in pixels.
        zoom: pixels of the cut per pixel of the photograph; it is mirrored at its borders where it is too small.
        rng: chooses the place.

    Returns:
        float32 [height, width], brightness in [0, 1].
    """
    source = _region(name)
    needed = [int(np.ceil(side / zoom)) + 1 for side in (height, width)]
    if needed[1] > source.shape[1] >= needed[0]:  # long parts lie along the photograph's longer side
        source = source.T
    missing = [max(0, side - had) for side, had in zip(needed, source.shape, strict=True)]
    if any(missing):
        source = np.pad(source, ((0, missing[0]), (0, missing[1])), "symmetric")
    top, left = (int(rng.integers(had - side + 1)) for side, had in zip(needed, source.shape, strict=True))
    cut = np.ascontiguousarray(source[top : top + needed[0], left : left + needed[1]])
    cut = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
    return cv2.flip(cut, flip) if (flip := int(rng.integers(-1, 3))) < 2 else cut  # about both axes, x, y or none


@cache
def coins(large: bool) -> list[tuple[Plane, Plane]]:
    """All coins of a size: squares [S, S] of brightness, and where in them the coin is: [S, S] in [0, 1]."""
    return [_cut_coin(*place) for place in (LARGE_COINS if large else SMALL_COINS)]


def _cut_coin(x: int, y: int, radius: int) -> tuple[Plane, Plane]:
    """A coin and its outline: the convex hull of what is brighter than the cloth it lies on."""
    half = radius + COIN_BORDER
    cut = np.pad(_photograph("coins"), half, "edge")[y : y + 2 * half, x : x + 2 * half]
    grey = np.uint8(cv2.GaussianBlur(cut, (0, 0), 1) * 255)
    _, bright = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = np.zeros(grey.shape, np.uint8)
    cv2.fillConvexPoly(outline, cv2.convexHull(max(contours, key=cv2.contourArea)), 255)
    cut = cv2.GaussianBlur(cut, (0, 0), 0.7)  # they are shown smaller
    return cut, cv2.GaussianBlur(outline, (0, 0), 0.7).astype(np.float32) / 255
