"""Defects pasted into normal images: a mask of noise, and what fills it."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from detection.filters import Pixels, filtered
from detection.perlin import perlin_mask
from detection.textures import Textures

LEAST = 0.001  # of the image, the area of a part of a mask
OPACITY = (0.5, 1.0)
TILES = 16  # along each side of an image whose tiles are shuffled
TRIES = 50  # masks, before the image stays as it is


class Defective(NamedTuple):
    """An image with a defect: uint8 RGB [H, W, 3], and where it is: bool [H, W], nowhere if there is none."""

    pixels: Pixels
    mask: NDArray[np.bool_]


def pasted(
    pixels: Pixels, allowed: NDArray[np.bool_], textures: Textures, own_share: float, rng: np.random.Generator
) -> Defective:
    """An image with a defect of random shape.

    Args:
        pixels: of the normal image.
        allowed: bool [H, W], such as the object; a part of the mask that does not touch it is left out.
        textures: that fill the mask.
        own_share: how often the image's own filtered and shuffled tiles fill it instead, 0 to 1.
        rng: chooses.
    """
    size = pixels.shape[:2]
    mask = next((own for _ in range(TRIES) if (own := kept_parts(perlin_mask(size, rng), allowed)).any()), None)
    if mask is None:
        return Defective(pixels, np.zeros(size, bool))
    is_own = rng.random() < own_share
    fill = shuffled(filtered(pixels, rng), rng) if is_own else textures.cut(size, rng)
    opacity = rng.uniform(*OPACITY)
    mixed = np.rint(opacity * fill + (1 - opacity) * pixels).astype(np.uint8)
    return Defective(np.where(mask[..., None], mixed, pixels), mask)


def kept_parts(mask: NDArray[np.bool_], allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The parts of a mask (8-connected) that are of LEAST of the image or more and touch what is allowed."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    is_kept = stats[:, cv2.CC_STAT_AREA] >= LEAST * mask.size
    is_kept &= np.bincount(parts[allowed], minlength=count) > 0
    is_kept[0] = False  # what is no part
    return is_kept[parts]


def shuffled(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """An image whose TILES x TILES tiles changed places; what is left over at its ends stays."""
    height, width = (max(1, side // TILES) for side in pixels.shape[:2])
    rows, columns = pixels.shape[0] // height, pixels.shape[1] // width
    result = pixels.copy()
    whole = pixels[: rows * height, : columns * width]
    tiles = whole.reshape(rows, height, columns, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    moved = tiles[rng.permutation(len(tiles))].reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    result[: rows * height, : columns * width] = moved.reshape(whole.shape)
    return result
