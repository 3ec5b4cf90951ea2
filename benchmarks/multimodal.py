"""What one Transformer makes of images, of a table, and of both together, beside detectors of rows from scikit-learn.

    python benchmarks/multimodal.py FILE                       table alone, solar cells alone, and both, seeds 0 to 2
    python benchmarks/multimodal.py FILE --label sick --settings table --seeds 0 1 2 3 4

FILE and --label are as after main.py's dataset table. The printed table holds means over the seeds, and the standard
deviation of the image AUROC, which of a table is that of its rows. Precision, recall, F1 and accuracy are those at the
threshold, from normal data alone: of the peers the same quantile of their scores of the held-out rows. IsolationForest
is seeded; the others draw nothing.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import click
import numpy as np
import pandas as pd
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM

import main
import metrics
from datasets import TableOptions, table_reader
from detection import is_anomalous
from errors import DataError, UsageError

BACKBONE = ["-b", "efficientnet_lite0", "-le", "blocks.4", "-le", "blocks.2"]
CELLS = ["dataset", "-d", "mono", "elpv"]
SETTINGS = {"table": ([], []), "backbone": (BACKBONE, CELLS), "pixels": (["--image_tokens", "pixels"], CELLS)}
SETTINGS |= {"both": (BACKBONE, CELLS)}
PEERS = {
    "IsolationForest": lambda seed: IsolationForest(random_state=seed),
    "OneClassSVM": lambda _: OneClassSVM(nu=0.05),
    "LocalOutlierFactor": lambda _: LocalOutlierFactor(novelty=True),
}
KEPT, QUANTILE = 0.9, 0.995  # multimodal's --train_val_split and --threshold_quantile
IMAGE_METRICS = [name for name, metric in metrics.METRICS.items() if metric.is_of_images]
COLUMNS = [*IMAGE_METRICS, *(name for name, metric in metrics.DECISION_METRICS.items() if metric.is_of_images)]


def run(name: str, words: list[str], seeds: list[int], results: Path) -> Iterator[dict]:
    """Train by main.py; a row of every class and seed."""
    shutil.rmtree(results / "multimodal" / "benchmark" / name, ignore_errors=True)
    where = ["--results_path", str(results), "--log_project", "multimodal", "--log_group", "benchmark"]
    started = time.perf_counter()
    seed_words = [word for seed in seeds for word in ("--seed", str(seed))]
    main.main([*where, "--run_name", name, "--eval_every", "1000", *seed_words, *words], standalone_mode=False)
    seconds = (time.perf_counter() - started) / len(seeds)
    rows = pd.read_csv(results / "multimodal" / "benchmark" / name / "results_per_seed.csv")
    for row in rows[rows["class"] != "Mean"].to_dict("records"):
        yield {"setting": name, "s": seconds, **row}


def peers(path: Path, options: TableOptions, seeds: list[int]) -> Iterator[dict]:
    """scikit-learn's detectors on the same rows."""
    samples = table_reader(options).read_class(path, path.stem)
    train, test = (np.stack([one.values for one in part]) for part in (samples.train, samples.test))
    labels = [one.anomalous for one in samples.test]
    kept = int(len(train) * KEPT)
    for name, make in PEERS.items():
        for seed in seeds:
            started = time.perf_counter()
            fitted = make(seed).fit(train[:kept])
            scores, held_out = (-fitted.score_samples(part) for part in (test, train[kept:]))
            threshold = np.quantile(held_out, QUANTILE, method="higher")
            values = metrics.image_metrics(labels, scores) | metrics.decision_metrics(
                labels, is_anomalous(scores, threshold)
            )
            seconds = time.perf_counter() - started
            yield {"setting": name, "class": f"table_{path.stem}", "seed": seed, "s": seconds, **values}


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per class and setting."""
    groups = rows.groupby(["class", "setting"], sort=False)
    means = groups[[*COLUMNS, "s"]].mean()
    means.insert(1, "std", groups["image_auroc"].std())
    return means.reset_index()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="table")
    parser.add_argument("--label", default="", help="its column of labels")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="instead of the default")
    parser.add_argument("--results", type=Path, help="folder to keep the runs in")
    parser.add_argument("--out", type=Path, help="CSV with a row per class, setting and seed")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    label = ["--label", arguments.label] if arguments.label else []
    records = ["dataset", *label, "table", str(arguments.file)]
    epochs = [] if arguments.epochs is None else ["--epochs", str(arguments.epochs)]
    rows = list(peers(arguments.file, TableOptions(arguments.label), arguments.seeds))
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for setting in arguments.settings:
                net, images = SETTINGS[setting]
                words = ["multimodal", *net, *epochs, *images, *(records if setting in ("table", "both") else [])]
                rows += run(setting, words, arguments.seeds, arguments.results or Path(scratch))
                if arguments.out:
                    pd.DataFrame(rows).to_csv(arguments.out, index=False)
        except (UsageError, DataError, click.ClickException) as error:
            sys.exit(f"Error: {error}")
    print(table(pd.DataFrame(rows)).to_markdown(index=False, floatfmt=".4f"))
