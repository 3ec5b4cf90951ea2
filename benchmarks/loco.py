"""How long all metrics of a class of MVTec LOCO's size take, and how much memory: 300 maps of 512 x 512.

python benchmarks/loco.py
"""

import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from datasets import Defect, Sample
from detection import Prediction
from experiment.train.evaluation import evaluate

SIDE, NORMAL, LOGICAL, STRUCTURAL, BATCH = 512, 100, 100, 100, 20


def main() -> None:
    """Made maps and defects, two to an image; the printed time includes putting the batches together."""
    rng = np.random.default_rng(0)
    kinds = ["good"] * NORMAL + ["logical_anomalies"] * LOGICAL + ["structural_anomalies"] * STRUCTURAL
    samples = [
        Sample(Path(f"{i}.png"), (Path("mask.png"),) * 2 * (kind != "good"), kind != "good", "made", kind)
        for i, kind in enumerate(kinds)
    ]
    maps = np.empty((len(samples), SIDE, SIDE), np.float32)
    masks = np.zeros(maps.shape, bool)
    defects = []
    for i, sample in enumerate(samples):
        maps[i] = cv2.GaussianBlur(rng.standard_normal((SIDE, SIDE), dtype=np.float32), (0, 0), 4)
        for _ in sample.mask_paths:
            mask = np.zeros((SIDE, SIDE), bool)
            (y, x), (height, width) = rng.integers(0, SIDE - 200, 2), rng.integers(30, 200, 2)
            mask[y : y + height, x : x + width] = True
            masks[i] |= mask
            maps[i][mask] += 0.05
            defects.append(Defect(i, mask, float(min(mask.sum(), 5000))))

    def predictions() -> Iterator[tuple[Prediction, NDArray[np.bool_]]]:
        for start in range(0, len(samples), BATCH):
            batch = torch.from_numpy(maps[start : start + BATCH])
            yield Prediction(batch.flatten(1).amax(1), batch), masks[start : start + BATCH]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.perf_counter()
    found = evaluate(predictions(), samples, defects, tqdm(disable=True)).metrics
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}")
    print(f"{len(samples)} maps of {SIDE} x {SIDE}, {100 * masks.mean():.1f} % of the pixels defective")
    print(f"{len(found)} metrics in {seconds:.1f} s; peak memory {peak:.1f} GiB, of which {before:.1f} before")


if __name__ == "__main__":
    main()
