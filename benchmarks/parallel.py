"""What --grid and --jobs save, each beside the plain way in one run, on the demo's solar cells.

    python benchmarks/parallel.py grid     six settings of the discriminator: --grid, and six runs of their own
    python benchmarks/parallel.py jobs     the demo, and with two seeds: one job after the other, and --jobs 2

Every way runs main.py in processes of its own. Training is the time within jobs, evaluation included; the rest is
starting, reading and embedding images, and writing tables.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
NET = (
    "net -b efficientnet_lite0 -le blocks.2 -le blocks.4 --pretrain_embed_dimension 256 --target_embed_dimension 256 "
    "--gan_epochs 5 --auto_noise 0.5 --dsc_lr 0.0001 --pre_proj 1"
)
DATA = "dataset --batch_size 16 --resize 160 --imagesize 160 elpv"
HIDDEN, MARGIN = ("128", "256", "512"), ("0.2", "0.5")
TIMED = """
import sys, time
sys.path.insert(0, {root!r})
import main, experiment.train.work
seconds = 0.0
def timed(*arguments, train=experiment.train.work.train):
    global seconds
    started = time.perf_counter()
    try:
        return train(*arguments)
    finally:
        seconds += time.perf_counter() - started
experiment.train.work.train = timed
code = main.cli()
print("training", seconds)
sys.exit(code)
"""


def run(results: str, name: str, words: str) -> tuple[float, float]:
    """Run a command line; seconds of all and of training."""
    command = [sys.executable, "-c", TIMED.format(root=str(ROOT)), "--results_path", results, "--run_name", name]
    started = time.perf_counter()
    done = subprocess.run([*command, *words.split()], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stderr)
    return seconds, float(done.stdout.rpartition("training ")[2])


def grid(results: str) -> pd.DataFrame:
    """Six settings over two classes."""
    pairs = list(itertools.product(HIDDEN, MARGIN))
    chosen = f"--grid dsc_hidden={','.join(HIDDEN)} --grid dsc_margin={','.join(MARGIN)}"
    rows = {"--grid": run(results, "grid", f"{chosen} {NET} {DATA}")}
    apart = [
        run(results, f"{hidden}_{margin}", f"{NET} --dsc_hidden {hidden} --dsc_margin {margin} {DATA}")
        for hidden, margin in tqdm(pairs, desc="runs apart", leave=False)
    ]
    rows["six runs"] = (sum(one[0] for one in apart), sum(one[1] for one in apart))
    table = pd.DataFrame(rows, index=["seconds", "training"]).T
    table["rest"] = table["seconds"] - table["training"]
    return pd.concat([table, (table.loc["--grid"] / table.loc["six runs"]).rename("ratio").to_frame().T])


def jobs(results: str) -> pd.DataFrame:
    """The demo with one seed and two, in both precisions."""
    demo = f"{NET} --meta_epochs 2 --dsc_hidden 512 --dsc_margin .5 {DATA}"
    rows = {}
    for precision, seeds in tqdm(list(itertools.product(("fp32", "bf16"), (1, 2))), desc="demo", leave=False):
        words = " ".join([f"--precision {precision}", *(f"--seed {seed}" for seed in range(seeds)), demo])
        after, _ = run(results, f"{precision}_{seeds}_after", words)
        at_once, _ = run(results, f"{precision}_{seeds}_at_once", f"--jobs 2 {words}")
        rows[f"{precision}, {2 * seeds} jobs"] = {"one by one": after, "--jobs 2": at_once, "ratio": at_once / after}
    return pd.DataFrame(rows).T


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["grid", "jobs"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print({"grid": grid, "jobs": jobs}[arguments.what](folder).to_markdown(floatfmt=".2f"))
