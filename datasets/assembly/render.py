"""From a description to pixels: textures laid on each other with edges, shadows and light."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.assembly.photographs import COIN_BORDER, Plane, coins, texture
from datasets.assembly.scene import SIZE, Defect, Part, Rect, Scene, View

Pixels = NDArray[np.float32]  # [H, W, 3], RGB, 1 is white
Mask = NDArray[np.bool_]
MARGIN = 20  # around the picture: what a turned camera sees of it
SIDE = SIZE + 2 * MARGIN

COLOURS = {
    "red": (0.66, 0.13, 0.12),
    "yellow": (0.80, 0.63, 0.12),
    "blue": (0.14, 0.27, 0.62),
    "green": (0.13, 0.46, 0.22),
}


@dataclass(frozen=True)
class Material:
    """How a kind of part looks.

    Attributes:
        texture: a key of photographs.REGIONS; of coins `small` or `large`.
        tint: its colour; None: that of the part.
        contrast: of the texture, relative to the photograph's.
        zoom: of the texture.
        corner: radius of its corners.
        bevel: how bright edges towards the light are; negative: it is a hollow.
        height: how far its shadow falls, in pixels; negative: how deep the hollow is.
    """

    texture: str
    tint: tuple[float, float, float] | None = None
    contrast: float = 1.0
    zoom: float = 1.0
    corner: float = 1.0
    bevel: float = 0.5
    height: float = 3.0


MATERIALS = {
    "mat": Material("grass", (0.36, 0.40, 0.42), 0.30, 0.8),
    "stone": Material("gravel", (0.50, 0.49, 0.47), 0.35, 0.6),
    "tray": Material("wood", (0.62, 0.47, 0.33), 0.7, 1.0, 6.0, 0.6, 6.0),
    "floor": Material("grass", (0.17, 0.21, 0.20), 0.35, 0.6, 3.0, -0.3, -5.0),
    "coin": Material("small", (0.66, 0.66, 0.64), 0.8),
    "medal": Material("large", (0.70, 0.52, 0.24), 0.8),
    "block": Material("brick", (0.60, 0.29, 0.20), 1.6, 1.6, 2.0, 0.6, 5.0),
    "peg": Material("wood", (0.80, 0.62, 0.40), 0.9, 0.8, 4.0, 0.9, 4.0),
    "housing": Material("dust", (0.22, 0.23, 0.25), 1.5, 0.8, 5.0, 0.7, 6.0),
    "card": Material("dust", (0.82, 0.81, 0.77), 0.7, 0.7, 2.0, 0.3, 1.5),
    "print": Material("fabric", None, 0.5, 0.8, 1.0, 0.0, 0.0),
    "cable": Material("fabric", None, 0.8, 0.5, 0.0, 0.0, 4.0),
    "rod": Material("wood", (0.68, 0.46, 0.28), 1.0, 0.9, 3.0, 1.0, 4.0),
    "bar": Material("gravel", (0.66, 0.67, 0.68), 0.8, 0.35, 3.0, 1.0, 4.0),
    "rivet": Material("small", (0.70, 0.52, 0.24), 0.8),
    "screw": Material("small", (0.60, 0.61, 0.62), 1.0, 1.0, 1.0, 0.5, 1.5),
}


@dataclass(frozen=True)
class Canvas:
    """A scene before it is photographed, with a margin on all sides.

    Attributes:
        pixels: float32 [SIDE, SIDE, 3].
        areas: bool [SIDE, SIDE] of every loose part, without what lies above it.
    """

    pixels: Pixels
    areas: list[Mask]


def draw(scene: Scene) -> Canvas:
    """Lay everything on the canvas; float32 without noise or light."""
    pixels = _ground(scene.ground)
    for part in scene.fixtures:
        _lay(pixels, part)
    areas = [_lay(pixels, part) for part in scene.parts]
    covered = np.zeros((SIDE, SIDE), bool)
    for i in reversed(range(len(areas))):
        areas[i], covered = areas[i] & ~covered, covered | areas[i]
    return Canvas(pixels, areas)


def photograph(pixels: Pixels, view: View) -> NDArray[np.uint8]:
    """The canvas as the camera sees it.

    Args:
        pixels: float32 [SIDE, SIDE, 3], RGB, 1 is white.
        view: camera and light.

    Returns:
        uint8 [SIZE, SIZE, 3], RGB.
    """
    seen = cv2.warpAffine(pixels, _pose(view), (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    along = np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)
    light = 255 * (1 + view.slope[0] * along[None, :] + view.slope[1] * along[:, None])
    seen *= cv2.merge([light * gain for gain in view.gain])
    deviation, seed = view.noise
    noise = np.random.default_rng(seed).standard_normal(seen.shape, np.float32)
    noise *= deviation
    seen += noise
    return np.clip(np.rint(seen, out=seen), 0, 255, out=seen).astype(np.uint8)


def see_mask(mask: Mask, view: View) -> Mask:
    """Where in the photograph a mask of the canvas [SIDE, SIDE] is: bool [SIZE, SIZE]."""
    return cv2.warpAffine(mask.astype(np.uint8), _pose(view), (SIZE, SIZE), flags=cv2.INTER_NEAREST) > 0


def defect_area(defect: Defect, canvas: Canvas) -> Mask:
    """Where on the canvas a logical defect is: its parts, and its floors as far as nothing lies there."""
    area = np.zeros((SIDE, SIDE), bool)
    for floor in defect.floors:
        area |= _rectangle(floor)
    area &= ~np.any(canvas.areas, axis=0)
    for i in defect.parts:
        area |= canvas.areas[i]
    return area


def _pose(view: View) -> NDArray[np.float64]:
    middle = SIDE / 2 - 0.5
    pose = cv2.getRotationMatrix2D((middle, middle), view.angle, view.scale)
    pose[:, 2] += np.array(view.shift) - MARGIN
    return pose


def _rectangle(rect: Rect) -> Mask:
    mask = np.zeros((SIDE, SIDE), bool)
    left, top, right, bottom = (round(side + MARGIN) for side in (rect.left, rect.top, rect.right, rect.bottom))
    mask[top:bottom, left:right] = True
    return mask


def _ground(part: Part) -> Pixels:
    material, rng = MATERIALS[part.kind], np.random.default_rng(part.grain)
    return _coloured(_relief(texture(material.texture, SIDE, SIDE, material.zoom, rng), part), part)


def _lay(canvas: Pixels, part: Part) -> Mask:
    """Draw a part into the canvas; returns where it is: [SIDE, SIDE]."""
    material, rng = MATERIALS[part.kind], np.random.default_rng(part.grain)
    top, bottom, left, right = _window(part)
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32) - MARGIN
    if part.path:
        alpha, relief = _cable(part, x, y, rng)
    elif material.texture in ("small", "large"):
        alpha, relief = _coin(part, x, y, rng)
    else:
        alpha, relief = _slab(part, x, y, rng)
    if part.bite:
        alpha = alpha * _outside_bite(part.bite, x, y, rng)
    below = canvas[top:bottom, left:right]
    if material.height > 0:
        below *= _grey(1 - 0.55 * _shifted(alpha, material.height))
    relief = relief * (1 + material.bevel * _edges(alpha)) * np.float32(rng.uniform(0.94, 1.06))
    if material.height < 0:
        relief *= 0.5 + 0.5 * _shifted(alpha, -material.height)
    below += _grey(alpha) * (_coloured(relief, part) - below)
    area = np.zeros((SIDE, SIDE), bool)
    area[top:bottom, left:right] = alpha > 0.5
    return area


def _window(part: Part) -> tuple[int, int, int, int]:
    """Rows and columns of the canvas that a part with its shadow can reach: first and end of both."""
    reach = 14.0
    if part.path:
        x, y = np.array(part.path).T
        lows, highs = (x.min(), y.min()), (x.max(), y.max())
    else:
        turn = np.deg2rad(part.angle)
        cos, sin = abs(np.cos(turn)), abs(np.sin(turn))
        half = np.array([part.size[0] * cos + part.size[1] * sin, part.size[0] * sin + part.size[1] * cos]) / 2
        lows, highs = part.centre - half, part.centre + half
    left, top = (int(max(0, low + MARGIN - reach)) for low in lows)
    right, bottom = (int(min(SIDE, high + MARGIN + reach)) for high in highs)
    return top, bottom, left, right


def _placed(cut: Plane, part: Part, x: Plane, y: Plane, border: int = 0) -> Plane:
    """A cut laid where its part is in the window, with so many of its pixels beyond the part on every side."""
    turn = np.deg2rad(part.angle)
    source = np.array(cut.shape[::-1])
    scaled = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * (
        part.size / (source - 2 * border)
    )
    centre = np.array(part.centre) - (x[0, 0], y[0, 0])
    matrix = np.column_stack([scaled, centre - scaled @ (source / 2 - 0.5)])
    return cv2.warpAffine(cut, matrix, x.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _slab(part: Part, x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """A rectangle with round corners: where it is, and its relief."""
    material, turn = MATERIALS[part.kind], math.radians(part.angle)
    u = (x - part.centre[0]) * math.cos(turn) + (y - part.centre[1]) * math.sin(turn)
    v = (y - part.centre[1]) * math.cos(turn) - (x - part.centre[0]) * math.sin(turn)
    beyond = [np.abs(w) - (side / 2 - material.corner) for w, side in zip((u, v), part.size, strict=True)]
    outside = np.hypot(*(np.maximum(w, 0) for w in beyond)) + np.minimum(np.maximum(*beyond), 0) - material.corner
    width, height = (round(side) for side in part.size)
    cut = _relief(texture(material.texture, width, height, material.zoom, rng), part)
    return np.clip(0.5 - outside, 0, 1), _placed(cut, part, x, y)


def _coin(part: Part, x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """A coin in its own outline: where it is, and its relief."""
    choice = coins(MATERIALS[part.kind].texture == "large")
    cut, outline = choice[rng.integers(len(choice))]
    return _placed(outline, part, x, y, COIN_BORDER), _placed(_relief(cut, part, outline), part, x, y, COIN_BORDER)


def _cable(part: Part, x: Plane, y: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """A round cable along its path: where it is, and its relief, brightest where it faces the light."""
    material, radius = MATERIALS[part.kind], part.size[1] / 2
    line = np.full(x.shape, 255, np.uint8)
    points = np.rint((np.array(part.path) - (x[0, 0], y[0, 0])) * 16).astype(np.int32)
    cv2.polylines(line, [points], False, 0, 1, cv2.LINE_8, 4)
    away = cv2.distanceTransform(line, cv2.DIST_L2, 5)
    bulge = np.sqrt(np.clip(1 - (away / radius) ** 2, 0, 1))
    soft = cv2.GaussianBlur(bulge, (0, 0), 1)
    lit = 0.55 + 0.5 * bulge + 0.9 * (soft - np.roll(soft, (1, 1), (0, 1)))
    relief = _relief(texture(material.texture, x.shape[1], x.shape[0], material.zoom, rng), part)
    return np.clip(radius - away + 0.5, 0, 1), relief * lit


def _relief(cut: Plane, part: Part, where: Plane | None = None) -> Plane:
    """A texture's brightness relative to its mean, there where the part is; of the material's contrast."""
    mean = cut.mean() if where is None else (cut * where).sum() / where.sum()
    return np.maximum(1 + MATERIALS[part.kind].contrast * (cut / mean - 1), np.float32(0.05))


def _coloured(relief: Plane, part: Part) -> Pixels:
    tint = COLOURS[part.colour] if part.colour else MATERIALS[part.kind].tint
    return cv2.merge([relief * channel for channel in tint])


def _grey(plane: Plane) -> Pixels:
    """The same in all three channels: numpy is several times faster on whole rows than on pixels of three values."""
    return cv2.merge([plane] * 3)


def _outside_bite(bite: tuple[float, float, float], x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    """0 in a ragged disc, 1 outside."""
    dx, dy = x - bite[0], y - bite[1]
    angle = np.arctan2(dy, dx)
    ragged = sum(rng.uniform(-0.3, 0.3) / k * np.sin(k * angle + rng.uniform(0, 6.28)) for k in range(2, 8))
    return np.clip(np.hypot(dx, dy) - bite[2] * (1 + ragged) + 0.5, 0, 1).astype(np.float32)


def _shifted(alpha: Plane, by: float) -> Plane:
    """A soft shadow, down and to the right."""
    moved = cv2.warpAffine(
        alpha, np.float64([[1, 0, 0.7 * by], [0, 1, by]]), alpha.shape[::-1], borderMode=cv2.BORDER_REPLICATE
    )
    return cv2.GaussianBlur(moved, (0, 0), 0.4 * by + 0.5)


def _edges(alpha: Plane) -> Plane:
    """Above 0 at edges towards the light, at the upper left; below 0 at the others."""
    soft = cv2.GaussianBlur(alpha, (0, 0), 1.2)
    return cv2.Sobel(soft, cv2.CV_32F, 1, 0, scale=0.125) + cv2.Sobel(soft, cv2.CV_32F, 0, 1, scale=0.125)
