"""How far image AUROC falls when test images change in ways that are no defects.

    python benchmarks/robust.py                                   solar cells, every detector, seed 0
    python benchmarks/robust.py --settings stable memory --seeds 0 1 2
    python benchmarks/robust.py mvtec PATH -d bottle -d cable     any other dataset

Settings, data and options are accuracy.py's. Detectors are trained on the training images as they are; the test images,
at the size that the network sees, are then changed by each of CHANGES, good and anomalous ones alike. The table holds
the mean image AUROC over the seeds of test images as they are, and how far it falls with each change, in points (100
times the difference; below 0 it rises).
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import accuracy
import click
import cv2
import numpy as np
import pandas as pd
import torch
from accuracy import Read, build, by_features, prepared
from numpy.typing import NDArray
from PIL import Image

import metrics
from datasets import ClassSamples, read_image
from detection import Normal
from experiment.dataset_config import DatasetConfig
from experiment.detector_config import DetectorConfig
from experiment.plan.resolve import Known
from experiment.train.banks import build_banks
from experiment.train.embeddings import Predictions

Pixels = NDArray[np.float32]  # [side, side, 3], from 0 to 255
DEFAULT = ["paper, auto_noise 0.25", "stable", "memory"]
DEFAULT += ["PatchCore", "RD", "LogicRD", "CFA, whitened"]
AS_THEY_ARE = "as they are"
NOISE = 8.0  # standard deviation, of 255
DEGREES = 5.0


def gradient(pixels: Pixels, _: np.random.Generator) -> Pixels:
    """Light that rises from 0.8 at the left to 1.2 at the right."""
    return pixels * np.linspace(0.8, 1.2, pixels.shape[1], dtype=np.float32)[:, None]


def blurred(pixels: Pixels, _: np.random.Generator) -> Pixels:
    """A Gaussian of one pixel."""
    return cv2.GaussianBlur(pixels, (0, 0), 1.0)


def noisy(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Noise of its own in every pixel and channel."""
    return pixels + rng.normal(0, NOISE, pixels.shape)


def rotated(pixels: Pixels, _: np.random.Generator) -> Pixels:
    """Turned around its middle; borders are mirrored."""
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), DEGREES, 1.0)
    return cv2.warpAffine(pixels, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


CHANGES: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    AS_THEY_ARE: lambda pixels, _: pixels,
    "0.8 x brightness": lambda pixels, _: 0.8 * pixels,
    "1.2 x brightness": lambda pixels, _: 1.2 * pixels,
    "gradient of light": gradient,
    "slight blur": blurred,
    "noise": noisy,
    f"{DEGREES:g} degrees": rotated,
}


def changed(samples: ClassSamples, data: DatasetConfig, name: str) -> ClassSamples:
    """A class whose test images are as the network sees them, changed by one of CHANGES; without their masks."""
    found = []
    for i, sample in enumerate(samples.test):
        image = read_image(sample.image_path, data.reading) if sample.pixels is None else Image.fromarray(sample.pixels)
        small = image.resize((data.imagesize, data.imagesize), Image.Resampling.BILINEAR)
        pixels = CHANGES[name](np.asarray(small, np.float32), np.random.default_rng(i))
        found.append(replace(sample, pixels=np.clip(pixels, 0, 255).round().astype(np.uint8), mask_paths=()))
    return replace(samples, test=found)


def measure_class(
    name: str,
    root: Path,
    data: DatasetConfig,
    configs: dict[str, DetectorConfig],
    arguments: argparse.Namespace,
    device: torch.device,
    precision: torch.dtype,
) -> Iterator[dict]:
    """A row for every setting, seed and change of one class."""
    size, seeds = data.tiling.tile, arguments.seeds
    known: Known = {}
    for settings in by_features(configs):
        first = configs[settings[0]]
        samples, own_data, extractor, embedder, banks = prepared(
            name, root, data, first, arguments, known, device, partial(changed, name=AS_THEY_ARE)
        )
        labels = [sample.anomalous for sample in samples.test]
        detectors: dict[tuple[str, int], Any] = {}
        for setting in settings:
            for seed in seeds:
                torch.manual_seed(seed)
                detector = build(extractor, configs[setting], size, seed, precision, device)
                own = Read.by(samples, own_data, banks, detector, seed)
                for _ in detector.training_on(Normal(own.train, own.held_out)):
                    pass
                detectors[setting, seed] = detector
        for change in CHANGES:
            shown, bank = changed(samples, own_data, change), banks.test
            if change != AS_THEY_ARE:
                bank = build_banks(f"{name}, {change}", embedder, shown, own_data, "auto", test_only=True).test
            for (setting, seed), detector in detectors.items():
                batches = Predictions(detector, shown.test, own_data, bank)
                scores = torch.cat([prediction.scores for prediction, _ in batches]).cpu().numpy()
                value = metrics.auroc(labels, scores)
                click.echo(f"{name}, {setting}, seed {seed}, {change}: image AUROC {value:.4f}", err=True)
                yield {"class": name, "setting": setting, "seed": seed, "change": change, "image_auroc": value}


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A line per class and setting: image AUROC of images as they are, and its drop with every change, in points."""
    means = rows.groupby(["class", "setting", "change"], sort=False)["image_auroc"].mean().unstack()[list(CHANGES)]
    drops = 100 * means.drop(columns=AS_THEY_ARE).rsub(means[AS_THEY_ARE], axis=0)
    return pd.concat([means[[AS_THEY_ARE]], drops], axis=1).reset_index()


if __name__ == "__main__":
    lines = table(accuracy.run(accuracy.parse(__doc__, DEFAULT, [0]), measure_class))
    formats = ["", "", ".4f", *[".2f"] * (len(CHANGES) - 1)]
    print(lines.to_markdown(index=False, floatfmt=formats))
