"""What each training option is worth at the honest protocol: last epoch, several seeds, memory banks beside it.

    python benchmarks/accuracy.py                                 solar cells, every setting, seeds 0 to 4
    python benchmarks/accuracy.py --settings paper stable --seeds 10 11 12 13 14
    python benchmarks/accuracy.py mvtec PATH -d bottle -d cable   any other dataset
    python benchmarks/accuracy.py assembly --settings RD LogicRD --seeds 0 1 2     logical anomalies
    python benchmarks/accuracy.py --train_val_split 0.9 --seeds 0 1 2              false alarms of honest thresholds

Settings whose features are the same read one feature bank, of whatever detector, of float32 features. The table
holds, per setting: mean, standard deviation and lowest image AUROC over the seeds after the last epoch; "moves by",
how far the image AUROC of one seed lies apart over its last ten epochs (of the seed that moves most); pixel AUROC and
PRO where there are masks; image AUROC and AUsPRO of logical and structural anomalies where a dataset tells them
apart; seconds of a pass over the training images and of training as a whole; milliseconds to score an image whose
features are there; and the megabytes of what the model keeps, its backbone included.

Of the threshold it holds "promised", the share of new normal images above it by --threshold_quantile; "expected" and
"at most", what users are told of it (docs/models.md), worst seed, empty where the normal test images are in another
light, for which they are told that it does not hold; and "false alarms", the share of the normal test
images above it, which no detector has seen. It is of held-out images where --train_val_split, by default as behind each
detector, leaves some; else of the training images, with what --calibrate tells of it.

"anomalib's CFA" is the loss, distance, maps and training of that package's version, where it is installed, on the
features of cfa, from the same initial weights and for as many epochs as its first setting.
"""

import argparse
import importlib.util
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as main.py does
sys.path.insert(0, str(Path(__file__).parent.parent))

import click
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

import main
import metrics
from backbones import FeatureExtractor
from datasets import ClassSamples, Defect, RandomTransform, read_defects, region_labels
from detection import Detector, EpochStats, Normal, Prediction, false_alarms, is_anomalous
from detection.precision import PRECISIONS
from errors import DataError, UsageError
from experiment.config import RunConfig
from experiment.dataset_config import DatasetConfig
from experiment.detector_config import DetectorConfig
from experiment.machine.allocator import kept_blocks
from experiment.machine.device import choose_device, choose_precision
from experiment.machine.progress import progress
from experiment.plan.resolve import Known, find_classes, load_backbone, read_samples
from experiment.train.banks import ClassBanks, build_banks
from experiment.train.calibration import cross_validate
from experiment.train.costs import megabytes
from experiment.train.embeddings import HeldOut, Predictions
from experiment.train.evaluation import evaluate, image_scores
from experiment.train.finish import outside_of, thresholds_of
from experiment.train.light import learn_light_of
from experiment.train.training_set import TrainingEmbeddings, TrainingSet
from methods import DETECTORS, dataset_defaults
from options import build as build_options
from options import declared

BACKBONE = "efficientnet_lite0"
NET = "net -b efficientnet_lite0 -le blocks.2 -le blocks.4 --pretrain_embed_dimension 256 --target_embed_dimension 256"
PAPER = f"{NET} --dsc_hidden 1024 --dsc_margin .5 --pre_proj 1 --meta_epochs 20"
PATCHCORE = f"patchcore {NET.removeprefix('net ')} -p 0.01"
CFA = "cfa -b efficientnet_lite0 -le blocks.1 -le blocks.2 -le blocks.4"
TEACHER = "-b efficientnet_lite0 -le blocks.1 -le blocks.2 -le blocks.4 --epochs 20"
RECONPATCH = (
    "reconpatch -b efficientnet_lite0 -le blocks.2 -le blocks.4 --pretrain_embed_dimension 256 "
    "--target_embed_dimension 256 --modulated_dim 256 --lr 0.001 --epochs 10"
)
CPR = "cpr -b efficientnet_lite0 -le blocks.1 -le blocks.2 --stem 64 --local_dim 64 --references 5 --epochs 20"
EFFICIENTAD = "efficientad --teacher teacher.pth --width 0.25 --lr 0.001 --epochs 20"  # see its page
LITE0 = "-b efficientnet_lite0 -le blocks.1 -le blocks.2 -le blocks.4"  # as cfa's and those of teachers
SETTINGS = {
    "paper": f"{PAPER} --noise_std 0.015",
    "paper, auto_noise 0.25": f"{PAPER} --auto_noise 0.25",
    "stable": f"{NET} --recipe stable",
    "stable, even cells": f"{NET} --recipe stable --no_align_maps",
    "stable, no whitening": f"{NET} --recipe stable --whiten 0 --auto_noise 1",
    "stable, Gaussian noise only": f"{NET} --recipe stable --difference_noise 0",
    "stable, difference noise only": f"{NET} --recipe stable --difference_noise 1",
    "stable, one discriminator": f"{NET} --recipe stable --ensemble 1",
    "stable, no average": f"{NET} --recipe stable --ema 0",
    "stable, constant rates": f"{NET} --recipe stable --no_warm_up_cosine",
    "stable, highest patch": f"{NET} --recipe stable --score_top_k 1",
    "memory": f"{NET} --recipe memory",
    "memory, light as it is": f"{NET} --recipe memory --match_light off",
    "memory, no distance": f"{NET} --recipe memory --bank_size 0 --distance 0",
    "memory, without one": f"{NET} --recipe memory --bank_size 0 --distance 0 --memory 0",
    "memory, one discriminator": f"{NET} --recipe memory --ensemble 1",
    "PatchCore": PATCHCORE,
    "PatchCore, reweighted": f"{PATCHCORE} --reweight 9",
    "PatchCore, whitened": f"{PATCHCORE} --whiten 0.1",
    "CFA": CFA,
    "CFA, whitened": f"{CFA} --whiten 0.1 --lr 0.0001 --epochs 1",
    "RD": f"rd {TEACHER}",
    "RD, ReLU at the entrance": f"rd {TEACHER} --relu entrance",
    "STPM": f"stpm {TEACHER}",
    "EfficientAD": EFFICIENTAD,
    "EfficientAD, no penalty": f"{EFFICIENTAD} --penalty_images off",
    "LogicRD": f"logicrd {TEACHER}",
    "LogicRD, ReLU at the entrance": f"logicrd {TEACHER} --relu entrance",
    "LogicRD, no GSE": f"logicrd {TEACHER} --no_gse",
    "LogicRD, no FCP": f"logicrd {TEACHER} --no_fcp",
    "LogicRD, no NII": f"logicrd {TEACHER} --no_nii",
    "LogicRD, no Mahalanobis": f"logicrd {TEACHER} --no_mahalanobis",
    "ReConPatch": RECONPATCH,
    "ReConPatch, whitened": f"{RECONPATCH} --whiten 0.1",
    "CPR": CPR,
    "CPR, texture": f"{CPR} --kind texture",
    "template": "template",
    "lowrank": "lowrank",
    "lowrank, image alone": "lowrank --of image",
    "phase-only": "frequency",
    "notch": "frequency --mode notch",
    "PaDiM": f"gaussian {LITE0}",
    "Gaussian of patches": f"gaussian {LITE0} --of patches --shrinkage ledoit_wolf",
    "mixture of patches": f"gaussian {LITE0} --of patches --components 8",
    "OC-SVM": f"oneclass {LITE0}",
    "SVDD": f"oneclass {LITE0} --machine svdd",
    "sparse coding": f"sparse {LITE0}",
    "FastFlow": f"fastflow {LITE0} --epochs 30",
    "MSFlow": f"msflow {LITE0} --lr 0.0003 --epochs 30",
    "multimodal": "multimodal -b efficientnet_lite0 -le blocks.4 -le blocks.2",
}
QUANTILE = RunConfig.threshold_quantile  # what every run takes
ANOMALIB = "anomalib's CFA"
LAST = 10
LOCO = {  # columns of datasets that know logical and structural anomalies
    "image_auroc_logical": "logical",
    "image_auroc_structural": "structural",
    "auspro_0.05_logical": "AUsPRO 0.05, logical",
    "auspro_0.05_structural": "AUsPRO 0.05, structural",
}


TOLD = {"expected": "expected", "at_most": "at most"}  # columns of what users are told of the false alarms


def words_of(setting: str, arguments: argparse.Namespace) -> str:
    """A setting's command line, with the backbone and the options that are asked for.

    Raises:
        UsageError: another backbone than EfficientNet-Lite0, which this setting does not read.
    """
    words = SETTINGS[setting]
    if arguments.backbone != BACKBONE and BACKBONE not in words.split():
        raise UsageError(f"--backbone {arguments.backbone}: '{setting}' does not read {BACKBONE}: leave it out")
    return f"{words.replace(BACKBONE, arguments.backbone)} {arguments.also}"


def parse_setting(words: str, epochs: int | None) -> DetectorConfig:
    """The options of a detector's command; epochs replace those of all that have this option."""
    name, *options = shlex.split(words)
    if epochs is not None and "epochs" in {own.name for own in declared(DETECTORS[name].Options)}:
        options += ["--epochs", str(epochs)]
    command = main.main.get_command(None, name)
    return command.invoke(command.make_context(name, options))[0]


class Labelled(NamedTuple):
    """Images of a class: of those to test their defects where a dataset says at which areas they saturate, and the
    regions of their masks."""

    samples: ClassSamples
    defects: list[Defect]
    regions: NDArray[np.int32]


class Read(NamedTuple):
    """What a detector reads: images to train on, in a random order; those held out; those that its threshold is of; and
    those to test."""

    train: TrainingEmbeddings
    held_out: HeldOut
    normal: Predictions
    test: Predictions

    @classmethod
    def by(cls, samples: ClassSamples, data: DatasetConfig, banks: ClassBanks, detector: Any, seed: int) -> "Read":
        """By a detector, or what has its face."""
        levels = banks.normal_brightness
        held_out = Predictions(detector, samples.validation, data, banks.validation, brightness=levels)
        seen = partial(Predictions, detector, samples.train, data, banks.train, brightness=levels, as_new=True)
        return cls(
            TrainingEmbeddings([detector], [TrainingSet(samples, data, banks.train)], seed),
            HeldOut(held_out),
            held_out if samples.validation else seen(),
            Predictions(detector, samples.test, data, banks.test, banks.masks, banks.brightness),
        )


def measure(name: str, labelled: Labelled, detector: Any, read: Read) -> dict:
    """Train one detector; its numbers after the last epoch, how far the last epochs lie apart, and its times."""
    labels = [sample.anomalous for sample in labelled.samples.test]
    recent: list[float] = []
    evaluations: list[float] = []

    start = time.perf_counter()
    for stats in detector.training_on(Normal(read.train, read.held_out)):
        begun = time.perf_counter()
        if stats.meta_epoch > detector.meta_epochs - LAST:
            recent.append(metrics.auroc(labels, image_scores(read.test)))
            evaluations.append(time.perf_counter() - begun)
    seconds = time.perf_counter() - start - sum(evaluations)
    values = predict(name, labelled, read)
    if recent:  # a detector may have stopped before its last epochs
        values |= {"ms": 1000 * evaluations[-1] / len(labels), "spread": max(recent) - min(recent)}
    return {**values, "pass": seconds / max(1, detector.passes), "training": seconds, "mb": megabytes(detector)}


def predict(name: str, labelled: Labelled, read: Read) -> dict:
    """The metrics, what comes of the threshold, and the time of an image's score and map, metrics included."""
    samples = labelled.samples
    start = time.perf_counter()
    with progress(name, total=len(read.test)) as bar:
        found = evaluate(read.test, samples.test, labelled.defects, bar, regions=labelled.regions)
    values = {**found.metrics, "ms": 1000 * (time.perf_counter() - start) / len(samples.test)}
    normal = found.scores[[not sample.anomalous for sample in samples.test]]
    thresholds = thresholds_of(samples, read.normal, QUANTILE, None)
    known = thresholds.false_alarms_among(outside_of(read.test, thresholds))
    told = known._asdict() if known else {}
    return {**values, "false_alarms": is_anomalous(normal, thresholds.image).mean(), **told}


class AnomalibCFA(torch.nn.Module):
    """anomalib's CFA on patch features: its descriptor layer, memory bank, loss, distances and maps.

    Args:
        start: the initial weights, the sizes and the number of epochs. Both draw weights alike, and which are drawn
            moves the image AUROC more than all else that differs.
        grid: of the features.
    """

    def __init__(self, start: Detector, grid: tuple[int, int]) -> None:
        from anomalib.models.image.cfa.loss import CfaLoss
        from anomalib.models.image.cfa.torch_model import AnomalyMapGenerator, CfaModel, CoordConv2d

        super().__init__()
        self.light = None
        self.meta_epochs, self.passes = start.meta_epochs, start.passes
        self.grid, self.image_size = grid, start.image_size
        layer = CoordConv2d(start.descriptor.in_features - 2, start.descriptor.out_features, kernel_size=1)
        layer.conv2d.weight.data.copy_(start.descriptor.weight.data[:, :, None, None])
        layer.conv2d.bias.data.copy_(start.descriptor.bias.data)
        self.model = CfaModel.__new__(CfaModel)  # its own would load a backbone
        torch.nn.Module.__init__(self.model)
        self.model.gamma_c = 1
        self.model.register_buffer("memory_bank", torch.tensor(0.0))
        self.model.descriptor = _OnFirst(layer)
        self.model.feature_extractor = _AsDict()
        self.model.get_scale = lambda _: grid
        self.loss = CfaLoss(num_nearest_neighbors=3, num_hard_negative_features=3, radius=1e-5)
        self.maps = AnomalyMapGenerator(num_nearest_neighbors=3)

    def training_on(self, normal: Normal) -> Iterator[EpochStats]:
        """Memory bank and training steps, as the package's Lightning module makes them."""
        self.train()
        self.model.initialize_centroid(SimpleNamespace(image=batch.permute(0, 3, 1, 2)) for batch in normal.train)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=5e-4, amsgrad=True)
        for epoch in range(1, self.meta_epochs + 1):
            for batch in progress(f"{ANOMALIB} {epoch}", normal.train):
                loss = self.loss(self._distances(batch))
                optimizer.zero_grad()
                loss.backward(retain_graph=True)  # as the package has to
                optimizer.step()
            yield EpochStats(epoch, loss.item(), {})

    @torch.no_grad()
    def score(self, embeddings: Tensor) -> Prediction:
        """Scores and maps of patch features."""
        distances = self._distances(embeddings)
        maps = self.maps(distance=distances, scale=self.grid, image_size=self.image_size).squeeze(1)
        return Prediction(maps.flatten(1).amax(1), maps)

    def _distances(self, embeddings: Tensor) -> Tensor:
        return self.model.compute_distance(self.model.descriptor([embeddings.float().permute(0, 3, 1, 2)]))


class _OnFirst(torch.nn.Module):
    """A layer on the first of a list of maps."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.layer(maps[0])


class _AsDict(torch.nn.Module):
    """Features that are there, as the outputs of a backbone with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.parameter = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"features": features}


def measure_class(
    name: str,
    root: Path,
    data: DatasetConfig,
    configs: dict[str, DetectorConfig],
    arguments: argparse.Namespace,
    device: torch.device,
    precision: torch.dtype,
) -> Iterable[dict]:
    """A row for every setting and seed of one class, and for the peers of a detector behind its last setting."""
    size, seeds = data.tiling.tile, arguments.seeds
    known: Known = {}
    groups = by_features(configs)
    peers: list[dict] = []
    for i, settings in enumerate(groups):
        command = configs[settings[0]].command
        is_first, is_last = (j in (-1, len(groups)) or configs[groups[j][0]].command != command for j in (i - 1, i + 1))
        first = configs[settings[0]]
        samples, own_data, extractor, _, banks = prepared(name, root, data, first, arguments, known, device)
        defects = read_defects(samples.test, samples.saturation, own_data.test_transform)
        labelled = Labelled(samples, defects, region_labels(samples.test, own_data.test_transform))
        read = partial(Read.by, samples, own_data, banks)

        def row(setting: str, seed: int, values: dict, command: str = command) -> dict:
            click.echo(f"{name}, {setting}, seed {seed}: image AUROC {values['image_auroc']:.4f}", err=True)
            return {"class": name, "setting": setting, "seed": seed, **values}

        def trained(
            setting: str,
            seed: int,
            detector: Any,
            labelled: Labelled = labelled,
            read: Callable[[Any, int], Read] = read,
        ) -> dict:
            torch.manual_seed(seed)
            return measure(f"{name}, {setting}", labelled, detector, read(detector, seed))

        for setting in settings:
            for seed in seeds:
                fresh = partial(build, extractor, configs[setting], size, seed, precision, device)
                with kept_blocks():  # as runs do
                    values = trained(setting, seed, fresh())
                if arguments.calibrate and not samples.validation:
                    images = TrainingSet(samples, own_data, banks.train)
                    (trials,) = cross_validate(fresh, [images], seed, arguments.calibrate, QUANTILE, setting)
                    values |= false_alarms(*trials)._asdict()
                yield row(setting, seed, values)
        if command == "cfa" and is_first and importlib.util.find_spec("anomalib"):
            _, *grid, _ = banks.test.features.shape
            for seed in seeds:
                peer = AnomalibCFA(build(extractor, first, size, seed, precision, device), tuple(grid)).to(device)
                peers.append(row(ANOMALIB, seed, trained(ANOMALIB, seed, peer)))
        if is_last:
            yield from peers
            peers = []


class Prepared(NamedTuple):
    """A class that detectors of the same features can be trained on.

    Attributes:
        samples: held out as behind the detector's command.
        data: how they are read.
        extractor: their backbone.
        embedder: what embeds in float32, and knows their light.
        banks: of all samples.
    """

    samples: ClassSamples
    data: DatasetConfig
    extractor: FeatureExtractor
    embedder: Detector
    banks: ClassBanks


def prepared(
    name: str,
    root: Path,
    data: DatasetConfig,
    config: DetectorConfig,
    arguments: argparse.Namespace,
    known: Known,
    device: torch.device,
    shown: Callable[[ClassSamples, DatasetConfig], ClassSamples] = lambda samples, _: samples,
) -> Prepared:
    """A class read and embedded as a detector's configuration says; notes are said at first.

    Args:
        name, root, data: the class.
        config, arguments: the configuration, and what the command line says of all.
        known: as of read_samples.
        device: to compute on.
        shown: what the samples become before they are embedded.
    """
    is_first = not known
    defaults = dataset_defaults(config.command, config.recipe)
    split = arguments.train_val_split or defaults.get("train_val_split", 1.0)
    found = read_samples(replace(data, train_val_split=split), root, name, known)
    for note in found.notes if is_first else ():
        click.echo(note, err=True)
    samples, data = found.samples, replace(data, reading=found.reading, random=_changes(defaults))
    extractor = load_backbone(config.backbones[0], config, 0, data.tiling.tile)
    embedder = build(extractor, config, data.tiling.tile, 0, torch.float32, device)
    if embedder.light is not None:
        learn_light_of(name, embedder, samples, data)
    banks = build_banks(name, embedder, shown(samples, data), data, "auto")
    return Prepared(samples, data, extractor, embedder, banks)


def _changes(defaults: Mapping[str, Any]) -> RandomTransform:
    """Those of training images among the defaults of dataset's options."""
    return build_options(RandomTransform, defaults)


def by_features(configs: dict[str, DetectorConfig]) -> list[list[str]]:
    """The settings that read the same features of the same images together."""
    groups: dict[tuple, list[str]] = {}
    for setting, config in configs.items():
        kind = DETECTORS[config.command]
        key = tuple(config.options[one.name] for one in declared(kind.Options) if one.option.decides_features)
        defaults = dataset_defaults(config.command, config.recipe)
        read = defaults.get("train_val_split", 1.0), _changes(defaults)
        groups.setdefault((kind.features, *read, config.backbones, *key), []).append(setting)
    return list(groups.values())


def build(
    extractor: FeatureExtractor,
    config: DetectorConfig,
    size: tuple[int, int],
    seed: int,
    precision: torch.dtype,
    device: torch.device,
) -> Detector:
    """A fresh detector."""
    layers = config.backbones[0].layers
    return DETECTORS[config.command](extractor, layers, size, seed=seed, precision=precision, **config.options).to(
        device
    )


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
        **{title: groups[column].mean() for column, title in LOCO.items() if column in rows},
        "false alarms": groups["false_alarms"].mean(),
        "promised": groups["false_alarms"].agg(lambda _: 1 - QUANTILE),
        **{title: groups[own].max() for own, title in TOLD.items() if own in rows},
        "s / pass": groups["pass"].mean(),
        "training s": groups["training"].mean(),
        "ms / image": groups["ms"].mean(),
        "MB": groups["mb"].mean(),
    }
    return pd.DataFrame(columns).dropna(axis=1, how="all").reset_index()


def parse(
    description: str | None = __doc__, settings: Sequence[str] = tuple(SETTINGS), seeds: Sequence[int] = range(5)
) -> argparse.Namespace:
    """The command line of a benchmark over settings; `settings` and `seeds` are what it takes where none are given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="elpv", help="dataset, as after main.py's dataset")
    parser.add_argument("path", nargs="?", default="", help="its folder")
    parser.add_argument("-d", dest="classes", action="append", default=[], help="class; none: all")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(settings), metavar="SETTING")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds))
    parser.add_argument("--backbone", default=BACKBONE, help="in place of EfficientNet-Lite0")
    parser.add_argument("--also", default="", help='options behind those of every setting, as "--match_light gain"')
    parser.add_argument("--epochs", type=int, help="of all but net, instead of those of the settings")
    parser.add_argument("--imagesize", type=int, default=256, help="images are resized to it; nothing is cropped")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--train_val_split", type=float, help="as of main.py; else as behind each detector")
    parser.add_argument("--calibrate", type=int, help="as of main.py, where nothing is held out")
    parser.add_argument("--precision", choices=["auto", *PRECISIONS], default="auto", help="of training, as of main.py")
    parser.add_argument("--out", type=Path, help="CSV with a row per class, setting and seed")
    return parser.parse_args()


def run(arguments: argparse.Namespace, measure: Callable[..., Iterable[dict]]) -> pd.DataFrame:
    """The rows that `measure`, called as measure_class, gives for every class; ends the program where it cannot."""
    words = [f"--resize_mode=square --imagesize={arguments.imagesize} --batch_size={arguments.batch_size}"]
    words += [f"-d {shlex.quote(one)}" for one in arguments.classes] + [arguments.name, shlex.quote(arguments.path)]
    rows: list[dict] = []
    try:
        context = main.main.get_command(None, "dataset").make_context(
            "dataset", [word for word in shlex.split(" ".join(words)) if word]
        )
        data = context.command.invoke(context)[0]
        root, classes = find_classes(data)
        device = choose_device((0,))
        precision = choose_precision(arguments.precision, device)
        configs = {name: parse_setting(words_of(name, arguments), arguments.epochs) for name in arguments.settings}
        for one in classes:
            for row in measure(one, root, data, configs, arguments, device, precision):
                rows.append(row)
                if arguments.out:
                    pd.DataFrame(rows).to_csv(arguments.out, index=False)
    except (UsageError, DataError, click.ClickException) as error:
        sys.exit(f"Error: {error}")
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    return pd.DataFrame(rows)


if __name__ == "__main__":
    print(table(run(parse(), measure_class)).to_markdown(index=False, floatfmt=".4f"))
