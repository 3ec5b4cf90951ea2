"""Time per image and memory of a whole run as a class grows.

    python benchmarks/scale.py                     1,000, 10,000 and 50,000 images
    python benchmarks/scale.py --images 500 2000

Makes small images, four fifths to train on and a tenth each normal and anomalous with masks, and runs main.py on them
in a process of its own: ResNet-18 with random weights, 32 pixels, one meta epoch, the feature bank on the disk. The
columns are seconds of the run; those beyond a run on 50 images, per image; and the same of the largest resident memory
that is the process's own (files mapped into it, such as the bank, belong to the system).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
NET = "net -b resnet18 -le layer1 -le layer2 --backbone_weights random --pretrain_embed_dimension 32"
DATA = "--target_embed_dimension 32 --pre_proj 1 dataset --batch_size 32 --resize 32 --imagesize 32 mvtec"


def make(folder: Path, count: int) -> None:
    """A class of so many images, one in ten of them anomalous with a mask."""
    rng = np.random.default_rng(0)
    for i in tqdm(range(count), desc=f"{count} images", leave=False):
        kind = ("test/spot", "test/good")[i % 10] if i % 10 < 2 else "train/good"
        path = folder / kind / f"{i:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(80, 120, (32, 32, 3), dtype=np.uint8)
        if kind == "test/spot":
            x, y = rng.integers(4, 28, 2)
            mask = np.zeros((32, 32), np.uint8)
            mask[y - 3 : y + 3, x - 3 : x + 3] = 255
            pixels[mask > 0] = 250
            truth = folder / "ground_truth/spot" / f"{i:06}_mask.png"
            truth.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(truth)
        Image.fromarray(pixels).save(path)


def run(data: Path, out: Path) -> tuple[float, float]:
    """Seconds and largest memory of its own, in MiB, of a run."""
    words = ["--results_path", str(out), "--feature_bank", "disk", *NET.split(), *DATA.split(), str(data)]
    start = time.perf_counter()
    command = [sys.executable, str(ROOT / "main.py"), *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    largest = 0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            largest = max(largest, int(fields.get("RssAnon", "0").split()[0]))
        except (OSError, ProcessLookupError):
            break
        time.sleep(0.05)
    errors = process.communicate()[1]
    if process.returncode:
        sys.exit(errors)
    return time.perf_counter() - start, largest / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=int, default=[1000, 10_000, 50_000])
    arguments = parser.parse_args()
    rows, base = [], (0.0, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        for count in (50, *arguments.images):
            data = Path(folder) / str(count)
            make(data / "small", count)
            seconds, memory = run(data, Path(folder) / "results" / str(count))
            base = base if rows else (seconds, memory)
            more = count - 50
            rows.append(
                {
                    "images": count,
                    "seconds": seconds,
                    "ms per further image": 1000 * (seconds - base[0]) / more if more else None,
                    "MiB": memory,
                    "KiB per further image": 1024 * (memory - base[1]) / more if more else None,
                }
            )
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".2f"))
