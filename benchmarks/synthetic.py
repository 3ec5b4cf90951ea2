"""Defects with known masks on real normal images: pixel metrics for data that have no masks.

    python benchmarks/synthetic.py OUT                  solar cells: OUT/mono and OUT/poly in the layout of MVTec AD
    python benchmarks/synthetic.py OUT --of textures    scikit-image's photographs: OUT/brick, OUT/grass and OUT/gravel
    python benchmarks/accuracy.py mvtec OUT             measures on them

Of the normal test images, the first of every four stays as it is; the others get a crack, a dark spot, and a part of
another image in place of their own: of another cell, or of another texture. A texture's images are windows of 192
pixels, 200 of the left half of its photograph for training and 100 of the right half for testing, so that no test pixel
has been trained on. The same seed draws the same defects.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

from datasets import DATASETS

Image = NDArray[np.uint8]
Mask = NDArray[np.uint8]  # 255 where defective
TEXTURES = ("brick", "grass", "gravel")
TRAIN, TEST, SIDE = 200, 100, 192  # windows of a texture, and their pixels
VISIBLE = 0.08  # a pixel darker by more than this share belongs to the defect


def crack(cell: Image, _: Image, rng: np.random.Generator) -> tuple[Image, Mask]:
    """A dark line of 1 to 3 pixels that wanders over 50 to 150 pixels."""
    side = min(cell.shape)
    angle = rng.uniform(0, 2 * np.pi)
    points = [rng.uniform(0.2 * side, 0.8 * side, 2)]
    for _step in range(rng.integers(10, 31)):
        angle += rng.normal(0, 0.35)
        points.append(points[-1] + 5 * np.array([np.cos(angle), np.sin(angle)]))
    line = np.zeros(cell.shape, np.uint8)
    cv2.polylines(line, [np.array(points).round().astype(np.int32)], False, 255, int(rng.integers(1, 4)), cv2.LINE_AA)
    return darkened(cell, rng.uniform(0.3, 0.7) * cv2.GaussianBlur(line, (0, 0), 0.7) / 255)


def spot(cell: Image, _: Image, rng: np.random.Generator) -> tuple[Image, Mask]:
    """A dark ellipse with half axes of 8 to 30 pixels and a soft edge."""
    side = min(cell.shape)
    shape = np.zeros(cell.shape, np.uint8)
    centre = rng.integers(int(0.15 * side), int(0.85 * side), 2).tolist()
    cv2.ellipse(shape, centre, rng.integers(8, 31, 2).tolist(), rng.uniform(0, 180), 0, 360, 255, -1)
    return darkened(cell, rng.uniform(0.2, 0.6) * cv2.GaussianBlur(shape, (0, 0), 3) / 255)


def swap(cell: Image, other: Image, rng: np.random.Generator) -> tuple[Image, Mask]:
    """A rectangle of 30 to 90 pixels from somewhere else in another cell."""
    height, width = rng.integers(30, 91, 2)
    (y, x), (v, u) = (
        (rng.integers(0, s.shape[0] - height), rng.integers(0, s.shape[1] - width)) for s in (cell, other)
    )
    found, mask = cell.copy(), np.zeros_like(cell)
    found[y : y + height, x : x + width] = other[v : v + height, u : u + width]
    mask[y : y + height, x : x + width] = 255
    return found, mask


def darkened(cell: Image, share: NDArray[np.float64]) -> tuple[Image, Mask]:
    """The cell with every pixel darker by its share, and where that can be seen."""
    return (cell * (1 - share)).round().astype(np.uint8), np.where(share > VISIBLE, 255, 0).astype(np.uint8)


DEFECTS: dict[str, Callable[[Image, Image, np.random.Generator], tuple[Image, Mask]]] = {
    "crack": crack,
    "spot": spot,
    "swap": swap,
}


def cells(name: str) -> tuple[list[Image], list[Image]]:
    """The normal cells of a class, to train and to test."""
    reader = DATASETS["elpv"]
    samples = reader.read_class(reader.default_root(), name)
    train, test = (
        [cv2.imread(str(sample.image_path), cv2.IMREAD_GRAYSCALE) for sample in part if not sample.anomalous]
        for part in (samples.train, samples.test)
    )
    return train, test


def windows(name: str, rng: np.random.Generator) -> tuple[list[Image], list[Image]]:
    """Windows of a texture's photograph, to train and to test."""
    photograph: Image = getattr(skimage.data, name)()
    left, right = np.array_split(photograph, 2, axis=1)
    return [window(left, rng) for _ in range(TRAIN)], [window(right, rng) for _ in range(TEST)]


def window(texture: Image, rng: np.random.Generator) -> Image:
    """A window at a random place of a texture."""
    y, x = (rng.integers(0, side - SIDE + 1) for side in texture.shape)
    return texture[y : y + SIDE, x : x + SIDE]


def write_class(
    out: Path, train: list[Image], test: list[Image], others: list[Image], rng: np.random.Generator
) -> None:
    """Normal images, with defects on three of four of those to test; `others` are what parts are taken of."""
    kinds = ["good", *DEFECTS]
    for folder in ("train/good", *(f"test/{kind}" for kind in kinds), *(f"ground_truth/{kind}" for kind in DEFECTS)):
        (out / folder).mkdir(parents=True)
    for i, image in enumerate(train):
        cv2.imwrite(str(out / f"train/good/{i:03}.png"), image)
    for i, (normal, other) in enumerate(zip(test, others, strict=True)):
        kind = kinds[i % len(kinds)]
        image = normal
        if kind != "good":
            image, mask = DEFECTS[kind](normal, other, rng)
            cv2.imwrite(str(out / f"ground_truth/{kind}/{i:03}_mask.png"), mask)
        cv2.imwrite(str(out / f"test/{kind}/{i:03}.png"), image)


def write_cells(out: Path, seed: int) -> None:
    """Both classes of solar cells."""
    for name in ("mono", "poly"):
        train, test = cells(name)
        write_class(out / name, train, test, [*test[1:], test[0]], np.random.default_rng(seed))


def write_textures(out: Path, seed: int) -> None:
    """The three textures, with parts of the next."""
    drawn = {name: windows(name, np.random.default_rng((seed, i))) for i, name in enumerate(TEXTURES)}
    for i, (name, (train, test)) in enumerate(drawn.items()):
        _, others = drawn[TEXTURES[(i + 1) % len(TEXTURES)]]
        write_class(out / name, train, test, others, np.random.default_rng((seed, len(TEXTURES) + i)))


WRITERS: dict[str, Callable[[Path, int], None]] = {"cells": write_cells, "textures": write_textures}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--of", choices=WRITERS, default="cells")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.out.exists():
        sys.exit(f"Error: '{arguments.out}' exists already: give a new folder")
    WRITERS[arguments.of](arguments.out, arguments.seed)
    print(f"Wrote {arguments.out}: python benchmarks/accuracy.py mvtec {arguments.out}")
