"""Structural defects: scratches, dents and dirt on the canvas, and parts with a piece broken off."""

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.assembly.photographs import texture
from datasets.assembly.render import MARGIN, SIDE, Canvas, Mask, Pixels, draw, photograph
from datasets.assembly.scene import Rule, Scene

SMALLEST, LARGEST = 30, 400  # pixels of a defect
VISIBLE = 10  # grey levels by which a pixel of it differs


def scratch(_: Scene, canvas: Canvas, rng: np.random.Generator) -> Pixels:
    """A thin line across a part, brighter or darker than it."""
    area = _choose_part(canvas, rng)[1]
    angle, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-0.12, 0.12)
    points = [np.array(_choose_pixel(area, rng), np.float64)]
    for _step in range(rng.integers(8, 20)):
        angle += bend
        points.append(points[-1] + 3 * np.array([np.cos(angle), np.sin(angle)]))
    line = np.zeros((SIDE, SIDE), np.uint8)
    cv2.polylines(line, [np.rint(np.array(points) * 16).astype(np.int32)], False, 255, 1, cv2.LINE_AA, 4)
    depth = (line.astype(np.float32) / 255 * area)[..., None]
    worn = canvas.pixels * 0.4 if rng.random() < 0.5 else canvas.pixels * 1.2 + 0.25
    return canvas.pixels + depth * (worn - canvas.pixels)


def dent(_: Scene, canvas: Canvas, rng: np.random.Generator) -> Pixels:
    """A round hollow in a part: dark where it falls away from the light, bright where it rises towards it."""
    area = _choose_part(canvas, rng)[1]
    x, y = _choose_pixel(area, rng)
    radius = rng.uniform(3, 6)
    down, right = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    down, right = (down - y) / radius, (right - x) / radius
    slope = (right + down) * np.exp(-(right**2 + down**2) / 2)
    return canvas.pixels * (1 + 0.7 * slope * area)[..., None].astype(np.float32)


def contamination(_: Scene, canvas: Canvas, rng: np.random.Generator) -> Pixels:
    """A tuft of fur or grains of gravel on or beside a part."""
    x, y = np.add(_choose_pixel(_choose_part(canvas, rng)[1], rng), rng.integers(-8, 9, 2))
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    radii = rng.uniform(4, 8) * rng.uniform(0.5, 1.4, 16)
    outline = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)
    blob = np.zeros((SIDE, SIDE), np.float32)
    cv2.fillPoly(blob, [np.rint(outline * 16).astype(np.int32)], 1.0, cv2.LINE_8, 4)
    blob = cv2.GaussianBlur(blob, (0, 0), 0.8)[..., None]
    name, tint = [("fur", (0.42, 0.30, 0.18)), ("gravel", (0.34, 0.32, 0.30))][rng.integers(2)]
    dirt = texture(name, SIDE, SIDE, 0.5, rng)[..., None]
    return canvas.pixels + blob * (dirt / dirt.mean() * np.float32(tint) - canvas.pixels)


def broken(scene: Scene, canvas: Canvas, rng: np.random.Generator) -> Pixels:
    """A part with a piece broken off its border."""
    i, area = _choose_part(canvas, rng)
    inside = cv2.erode(area.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0) > 0
    x, y = _choose_pixel(area & ~inside, rng)
    part = replace(scene.parts[i], bite=(x - MARGIN, y - MARGIN, float(rng.uniform(5, 9))))
    return draw(replace(scene, parts=(*scene.parts[:i], part, *scene.parts[i + 1 :]))).pixels


DEFECTS: dict[str, Callable[[Scene, Canvas, np.random.Generator], Pixels]] = {
    "scratch": scratch,
    "dent": dent,
    "contamination": contamination,
    "broken": broken,
}
RULES = tuple(Rule(name, 1, True) for name in DEFECTS)


def damaged(scene: Scene, name: str, rng: np.random.Generator) -> tuple[NDArray[np.uint8], Mask]:
    """The photograph of a scene with a defect of this name, drawn until it is neither tiny nor large.

    Returns:
        uint8 [SIZE, SIZE, 3] and bool [SIZE, SIZE]: where the mask is False it is the photograph of the whole scene.
    """
    canvas = draw(scene)
    whole = photograph(canvas.pixels, scene.view)
    while True:
        image = photograph(DEFECTS[name](scene, canvas, rng), scene.view)
        differs = np.abs(image.astype(np.int16) - whole).max(axis=2) > VISIBLE
        mask = cv2.morphologyEx(differs.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0
        if SMALLEST <= mask.sum() <= LARGEST:
            return np.where(mask[..., None], image, whole), mask


def _choose_part(canvas: Canvas, rng: np.random.Generator) -> tuple[int, Mask]:
    """The index and area of a part, small ones more rarely than large ones."""
    weights = np.sqrt([area.sum() for area in canvas.areas])
    i = int(rng.choice(len(weights), p=weights / weights.sum()))
    return i, canvas.areas[i]


def _choose_pixel(mask: Mask, rng: np.random.Generator) -> tuple[int, int]:
    """Column and row of a pixel where the mask is True."""
    rows, columns = np.nonzero(mask)
    k = rng.integers(len(rows))
    return int(columns[k]), int(rows[k])
