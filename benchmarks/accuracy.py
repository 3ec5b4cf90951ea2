"""What each training option is worth at the honest protocol: last epoch, several seeds, a memory bank beside it.

    python benchmarks/accuracy.py                                 solar cells, every setting, seeds 0 to 4
    python benchmarks/accuracy.py --settings paper stable --seeds 10 11 12 13 14
    python benchmarks/accuracy.py mvtec PATH -d bottle -d cable   any other dataset

All settings of a class read one feature bank, of float32 features. The table holds, per setting: mean, standard
deviation and lowest image AUROC over the seeds after the last epoch; "moves by", how far the image AUROC of one seed
lies apart over its last ten epochs (of the seed that moves most); pixel AUROC and PRO where there are masks; and the
seconds of a training epoch.

The peer is a memory bank on the same features (PatchCore's core, Roth et al., CVPR 2022): a greedy coreset of 2,000 of
100,000 random normal patches; a patch's score is its distance to the nearest, an image's score the largest of them.
"""

import argparse
import os
import platform
import shlex
import sys
import time
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as main.py does
sys.path.insert(0, str(Path(__file__).parent.parent))

import click
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

import main
import metrics
from backbones import FeatureBank
from datasets import ClassSamples, Sample
from detection import EpochStats, Prediction
from detection.anomaly_map import anomaly_maps
from errors import DataError, UsageError
from experiment.config import PRECISIONS, DatasetConfig, DetectorConfig
from experiment.evaluation import evaluate
from experiment.features import Predictions, TrainingEmbeddings, build_banks
from experiment.progress import progress
from experiment.resolve import choose_device, choose_precision, find_classes, load_backbone, read_samples
from simplenet import SimpleNet

NET = "-b efficientnet_lite0 -le blocks.2 -le blocks.4 --pretrain_embed_dimension 256 --target_embed_dimension 256"
PAPER = "--dsc_hidden 1024 --dsc_margin .5 --pre_proj 1 --meta_epochs 20"
SETTINGS = {
    "paper": f"{PAPER} --noise_std 0.015",
    "paper, auto_noise 0.25": f"{PAPER} --auto_noise 0.25",
    "stable": "--recipe stable",
    "stable, no whitening": "--recipe stable --whiten 0 --auto_noise 1",
    "stable, Gaussian noise only": "--recipe stable --difference_noise 0",
    "stable, difference noise only": "--recipe stable --difference_noise 1",
    "stable, one discriminator": "--recipe stable --ensemble 1",
    "stable, no average": "--recipe stable --ema 0",
    "stable, constant rates": "--recipe stable --no_warm_up_cosine",
    "stable, highest patch": "--recipe stable --score_top_k 1",
}
PEER = "memory bank"
CORESET, CANDIDATES = 2000, 100_000
LAST = 10


def net_config(words: str) -> DetectorConfig:
    """The options of a net command."""
    context = main.net.make_context("net", shlex.split(f"{NET} {words}"))
    return main.net.invoke(context)[0]


def measure(
    name: str, samples: list[Sample], detector: SimpleNet, train: TrainingEmbeddings, test: Predictions
) -> dict:
    """Train one detector; its numbers after the last epoch, and how far the last epochs lie apart."""
    labels = [sample.anomalous for sample in samples]
    recent: list[float] = []
    evaluating = 0.0

    def on_epoch(stats: EpochStats) -> None:
        nonlocal evaluating
        start = time.perf_counter()
        if stats.meta_epoch > detector.meta_epochs - LAST:
            recent.append(metrics.auroc(labels, torch.cat([prediction.scores for prediction, _ in test]).cpu().numpy()))
        evaluating += time.perf_counter() - start

    start = time.perf_counter()
    detector.fit_embeddings(train, on_epoch)
    seconds = (time.perf_counter() - start - evaluating) / (detector.meta_epochs * detector.gan_epochs)
    with progress(name, total=len(test)) as bar:
        values = evaluate(test, samples, [], bar).metrics
    return {**values, "spread": max(recent) - min(recent), "seconds": seconds}


class MemoryBank:
    """The peer, with the face of a detector as far as Predictions uses it."""

    def __init__(self, normal: FeatureBank, image_size: tuple[int, int], seed: int) -> None:
        self.image_size = image_size
        generator = torch.Generator().manual_seed(seed)
        patches = torch.cat([batch.flatten(0, 2) for batch in normal.batches(32)])
        chosen = patches[torch.randperm(len(patches), generator=generator)[:CANDIDATES]].float()
        norms = chosen.square().sum(1)
        picks = [int(torch.randint(len(chosen), (1,), generator=generator))]
        nearest = torch.full_like(norms, torch.inf)
        for _ in tqdm(range(min(CORESET, len(chosen)) - 1), desc="coreset", leave=False):
            last = picks[-1]
            nearest = torch.minimum(nearest, norms - 2 * chosen @ chosen[last] + norms[last])
            picks.append(int(nearest.argmax()))
        self.patches = chosen[picks]
        self.norms = norms[picks]

    def score(self, embeddings: Tensor) -> Prediction:
        """Distances to the nearest patch of the bank."""
        patches = embeddings.float().flatten(0, 2)
        nearest = (self.norms - 2 * patches @ self.patches.T).amin(1) + patches.square().sum(1)
        patch_scores = nearest.clamp(min=0).sqrt().view(embeddings.shape[:3])
        return Prediction(patch_scores.flatten(1).amax(1), anomaly_maps(patch_scores, self.image_size))


def measure_class(
    name: str,
    samples: ClassSamples,
    data: DatasetConfig,
    settings: list[str],
    seeds: list[int],
    device: torch.device,
    precision: torch.dtype,
) -> list[dict]:
    """A row for every setting and seed of one class, the memory bank last."""
    size = (data.imagesize, data.imagesize)
    configs = {setting: net_config(SETTINGS[setting]) for setting in settings}
    config = next(iter(configs.values()))
    extractor = load_backbone(config.backbones[0], config, 0, data.imagesize)

    def build(setting: str, seed: int, precision: torch.dtype) -> SimpleNet:
        one = configs[setting]
        layers = one.backbones[0].layers
        return SimpleNet(extractor, layers, size, seed=seed, precision=precision, **one.options).to(device)

    banks = build_banks(name, build(settings[0], 0, torch.float32), samples, data, "auto")
    rows = []
    for setting in settings:
        for seed in seeds:
            detector = build(setting, seed, precision)
            torch.manual_seed(seed)
            train = TrainingEmbeddings(detector, samples, data, seed, banks.train)
            test = Predictions(detector, samples.test, data, banks.test, banks.masks)
            rows.append({"class": name, "setting": setting, "seed": seed})
            rows[-1] |= measure(name, samples.test, detector, train, test)
            click.echo(f"{name}, {setting}, seed {seed}: image AUROC {rows[-1]['image_auroc']:.4f}", err=True)
    for seed in seeds:
        test = Predictions(MemoryBank(banks.train, size, seed), samples.test, data, banks.test, banks.masks)
        with progress(PEER, total=len(test)) as bar:
            values = evaluate(test, samples.test, [], bar).metrics
        rows.append({"class": name, "setting": PEER, "seed": seed, **values})
    return rows


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per class and setting, in the order they were measured."""
    groups = rows.groupby(["class", "setting"], sort=False)
    columns = {
        "image AUROC": groups["image_auroc"].mean(),
        "std": groups["image_auroc"].std(),
        "worst seed": groups["image_auroc"].min(),
        "moves by": groups["spread"].max(),
        "pixel AUROC": groups["pixel_auroc"].mean(),
        "PRO": groups["pro"].mean(),
        "s / epoch": groups["seconds"].mean(),
    }
    return pd.DataFrame(columns).dropna(axis=1, how="all").reset_index()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="elpv", help="dataset, as after main.py's dataset")
    parser.add_argument("path", nargs="?", default="", help="its folder")
    parser.add_argument("-d", dest="classes", action="append", default=[], help="class; none: all")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--imagesize", type=int, default=256, help="images are resized to it; nothing is cropped")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--precision", choices=["auto", *PRECISIONS], default="auto", help="of training, as of main.py")
    parser.add_argument("--out", type=Path, help="CSV with a row per class, setting and seed")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    words = [f"--resize_mode=square --imagesize={arguments.imagesize} --batch_size={arguments.batch_size}"]
    words += [f"-d {shlex.quote(one)}" for one in arguments.classes] + [arguments.name, shlex.quote(arguments.path)]
    try:
        context = main.dataset.make_context("dataset", [word for word in shlex.split(" ".join(words)) if word])
        data = main.dataset.invoke(context)[0]
        root, classes = find_classes(data)
        device = choose_device((0,))
        precision = choose_precision(arguments.precision, device)
        rows: list[dict] = []
        for one in classes:
            samples = read_samples(data, root, one)
            rows += measure_class(one, samples, data, arguments.settings, arguments.seeds, device, precision)
            if arguments.out:
                pd.DataFrame(rows).to_csv(arguments.out, index=False)
    except (UsageError, DataError, click.ClickException) as error:
        sys.exit(f"Error: {error}")
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(table(pd.DataFrame(rows)).to_markdown(index=False, floatfmt=".4f"))
