"""How long one image takes, from its file to its score: net (the stable recipe), patchcore and stpm on solar cells.

    OMP_NUM_THREADS=1 python benchmarks/latency.py OUT                      fp32, one thread
    OMP_NUM_THREADS=1 python benchmarks/latency.py OUT --precision bf16

EfficientNet-Lite0 at 256 pixels, by predict --latency with one image at a time. What training leaves does not change
the time, so it is short: one pass over 64 cells, and as many patches in the bank as 1 % of all normal cells' are. The
same command goes on with what is in OUT.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as main.py does
sys.path.insert(0, str(Path(__file__).parent.parent))

import pandas as pd
import torch

import main as program
from benchmarks.speed import instructions
from datasets import DATASETS

TRAIN, TEST, TIMED = 64, 8, 200  # images
BACKBONE = "-b efficientnet_lite0 -le blocks.2 -le blocks.4"
SIZES = "--pretrain_embed_dimension 256 --target_embed_dimension 256"
DETECTORS = {
    "net": f"--recipe stable {BACKBONE} {SIZES} --meta_epochs 1",
    "patchcore": f"{BACKBONE} {SIZES} --bank_size 6000",
    "stpm": f"{BACKBONE} --epochs 1",
}
PARTS = ["decode_ms", "embed_ms", "score_ms"]


def call(*words: object) -> None:
    """A command line of main.py's."""
    program.main([own for word in words for own in str(word).split(" ")], standalone_mode=False)


def cells(out: Path) -> tuple[Path, list[Path]]:
    """A folder of cells to train on, made once, and the paths of those that are timed."""
    reader = DATASETS["elpv"]
    samples = reader.read_class(reader.default_root(), "mono")
    bad = [own for own in samples.test if own.anomalous]
    good = [own for own in samples.test if not own.anomalous]
    for name, own in (("train/good", samples.train[:TRAIN]), ("test/good", good[:TEST]), ("test/bad", bad[:TEST])):
        (out / "cells" / name).mkdir(parents=True, exist_ok=True)
        for sample in own:
            shutil.copy(sample.image_path, out / "cells" / name)
    return out / "cells", [own.image_path for own in samples.train[-TIMED:]]


def main() -> None:
    """Train, predict, and print a row of milliseconds for each detector."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for models and predictions; without spaces in its path")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args()
    folder, paths = cells(args.out)
    links = [f"{command} {options}" for command, options in DETECTORS.items()]
    run = f"--results_path {args.out} --run_name {args.precision} --precision {args.precision}"
    call(run, *links, f"dataset --num_workers 0 --batch_size 8 --resize 256 --imagesize 256 folder {folder}")
    print(f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, {instructions()}, {args.precision}")
    print(f"{'ms an image':<12}{'decode':>9}{'embed':>9}{'score':>9}{'together':>10}{'least':>9}{'95 %':>9}")
    for command in DETECTORS:
        (model,) = (args.out / "project" / "group" / args.precision / command / "models" / "0").iterdir()
        found = args.out / f"predictions_{args.precision}_{command}"
        shutil.rmtree(found, ignore_errors=True)
        options = f"--latency --warm_up 20 --batch_size 1 --num_workers 1 --map none --out {found}"
        call("predict", model, *paths, options)
        parts = pd.read_csv(found / "predictions.csv")[PARTS]
        whole = parts.sum(axis=1)
        shown = [*parts.median(), whole.median(), whole.min(), whole.quantile(0.95)]
        print(f"{command:<12}" + "".join(f"{own:>{10 if i == 3 else 9}.2f}" for i, own in enumerate(shown)))


if __name__ == "__main__":
    main()
