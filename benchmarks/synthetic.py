"""Defects with known masks on real normal solar cells: pixel metrics for a dataset that has no masks.

    python benchmarks/synthetic.py OUT            writes OUT/mono and OUT/poly in the layout of MVTec AD
    python benchmarks/accuracy.py mvtec OUT       measures on them

Of the normal test cells, the first of every four stays as it is; the others get a crack, a dark spot, and a part of
another cell in place of their own. The same seed draws the same defects.
"""

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets import DATASETS

Image = NDArray[np.uint8]
Mask = NDArray[np.uint8]  # 255 where defective
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


def write_class(name: str, out: Path, seed: int) -> None:
    """The normal cells of a class, with defects on three of four test cells."""
    reader = DATASETS["elpv"]
    samples = reader.read_class(reader.default_root(), name)
    rng = np.random.default_rng(seed)
    kinds = ["good", *DEFECTS]
    for folder in ("train/good", *(f"test/{kind}" for kind in kinds), *(f"ground_truth/{kind}" for kind in DEFECTS)):
        (out / name / folder).mkdir(parents=True)
    for sample in samples.train:
        shutil.copy(sample.image_path, out / name / "train/good")
    cells = [sample.image_path for sample in samples.test if not sample.anomalous]
    for i, path in enumerate(cells):
        kind = kinds[i % len(kinds)]
        if kind == "good":
            shutil.copy(path, out / name / "test/good")
            continue
        cell, other = (cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in (path, cells[(i + 1) % len(cells)]))
        image, mask = DEFECTS[kind](cell, other, rng)
        cv2.imwrite(str(out / name / "test" / kind / path.name), image)
        cv2.imwrite(str(out / name / "ground_truth" / kind / f"{path.stem}_mask.png"), mask)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.out.exists():
        sys.exit(f"Error: '{arguments.out}' exists already: give a new folder")
    for class_name in ("mono", "poly"):
        write_class(class_name, arguments.out, arguments.seed)
    print(f"Wrote {arguments.out}: python benchmarks/accuracy.py mvtec {arguments.out}")
