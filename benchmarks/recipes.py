"""What SimpleNet's recipes cost: training beside the stable recipe, prediction beside the bare backbone.

    python benchmarks/recipes.py
    python benchmarks/recipes.py --backbone wideresnet50 -le layer2 -le layer3 --imagesize 288

Images and the features that are trained on are random numbers, and so are the backbone's weights: none changes the
time. Training is of features at hand and for all passes of the recipe. Recipes are trained in turn, and a prediction
and the backbone on the same images in turn, with nothing else running; every number is the least of the rounds of
training, of few of which it may be a fifth too much, and the median of those of prediction. OMP_NUM_THREADS says how
many threads there are.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as main.py does
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor

import backbones
from backbones import FeatureExtractor
from benchmarks.accuracy import BACKBONE, build, parse_setting
from benchmarks.speed import instructions, medians
from detection import Detector, Normal, autocast
from detection.precision import PRECISIONS
from experiment.machine.allocator import kept_blocks
from experiment.machine.device import best_precision
from simplenet.recipes import RECIPES

CPU = torch.device("cpu")
BATCH = 16  # images of a training step


def trained(detector: Detector, images: int) -> float:
    """Seconds of training on the features of so many images."""
    pixels = torch.randn(2, 3, *detector.image_size)
    if detector.light is not None:
        detector.light.learn([pixels])
    features = torch.randn(images, *detector.embed(pixels).shape[1:], dtype=detector.precision)
    start = time.perf_counter()
    for _ in detector.training_on(Normal(features.split(BATCH), [])):
        pass
    return time.perf_counter() - start


def beside_backbone(detector: Detector, extractor: FeatureExtractor, images: Tensor, rounds: int) -> list[float]:
    """Seconds of prediction, and of the backbone alone."""

    @torch.no_grad()
    def backbone() -> None:
        with autocast(CPU, detector.precision):
            extractor(images, detector.layers)

    return medians(rounds, lambda: detector.predict(images), backbone)


def main(words: Sequence[str] | None = None) -> None:
    """A line for every recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument(
        "-le", dest="layers", action="append", help="layer; none: EfficientNet-Lite0's blocks.2, blocks.4"
    )
    parser.add_argument("--dims", type=int, default=256, help="of the features")
    parser.add_argument("--imagesize", type=int, default=256)
    parser.add_argument("--train_images", type=int, default=64)
    parser.add_argument("--train_rounds", type=int, default=6)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8], help="that are predicted at once")
    parser.add_argument("--rounds", type=int, default=9, help="of prediction")
    parser.add_argument("--precision", choices=PRECISIONS, default=best_precision(CPU))
    own = parser.parse_args(words)
    if own.backbone != BACKBONE and not own.layers:
        parser.error(f"--backbone {own.backbone} needs its layers: give each by -le")
    layers = " ".join(f"-le {layer}" for layer in own.layers or ["blocks.2", "blocks.4"])
    size, precision = (own.imagesize, own.imagesize), PRECISIONS[own.precision]
    extractor = backbones.load(own.backbone, "random")
    print(f"{instructions()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {own.precision}")
    net = f"net -b {own.backbone} {layers} --pretrain_embed_dimension {own.dims} --target_embed_dimension {own.dims}"
    with kept_blocks():  # as runs do
        seconds: dict[str, list[float]] = {recipe: [] for recipe in RECIPES}
        detectors = {}
        for _ in range(own.train_rounds):
            for recipe, times in seconds.items():
                config = parse_setting(f"{net} --recipe {recipe}", None)
                detectors[recipe] = build(extractor, config, size, 0, precision, CPU)
                times.append(trained(detectors[recipe], own.train_images))
        least = {recipe: min(times) for recipe, times in seconds.items()}
        for recipe, detector in detectors.items():
            beside = least[recipe] / least["stable"]
            print(f"{recipe}: {own.train_images} images trained on in {least[recipe]:.2f} s, {beside:.2f} x stable's")
            for count in own.images:
                predict, bare = beside_backbone(detector.eval(), extractor, torch.randn(count, 3, *size), own.rounds)
                print(f"  {count} predicted at once: {1000 * predict / count:.2f} ms an image, "
                      f"{predict / bare:.2f} x the backbone's {1000 * bare / count:.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
