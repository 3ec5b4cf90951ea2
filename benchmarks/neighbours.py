"""How long a memory bank takes to fill and to score by, beside anomalib's PatchCore on the same features.

    python benchmarks/neighbours.py                          ours alone, where anomalib is not installed
    python benchmarks/neighbours.py --images 50 --share 0.1

The features are of EfficientNet-Lite0 (blocks.2 and blocks.4, 152 values) of images of solar cells at 256 pixels, 1,024
patches an image; both are given them as they are. The covering radius is how far any patch lies from the nearest that
was picked, in the features themselves. Memory is what the process takes at most, beyond what it had before.
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import psutil
import torch
from torch import Tensor

import backbones
from benchmarks.speed import instructions, medians
from datasets import DATASETS, ImageDataset, ImageTransform, normalised
from detection.anomaly_map import anomaly_maps
from detection.memory_bank import BankOptions, MemoryBank
from detection.neighbours import nearest, squared_distances
from methods.cfa import patch_features

SIZE, BATCH, LAYERS = 256, 8, ["blocks.2", "blocks.4"]


@torch.no_grad()
def features(images: int) -> Tensor:
    """Patch features [images, 32, 32, 152] of solar cells."""
    reader = DATASETS["elpv"]
    samples = reader.read_class(reader.default_root(), "poly").train[:images]
    dataset = ImageDataset(samples, ImageTransform(SIZE, SIZE, resize_mode="square"))
    extractor = backbones.load("efficientnet_lite0")
    pixels = (torch.stack([dataset.read(i)[0] for i in part]) for part in torch.arange(len(samples)).split(BATCH))
    return torch.cat([patch_features(extractor(normalised(batch), LAYERS)) for batch in pixels])


def radius(rows: Tensor, memory: Tensor) -> float:
    """How far any row is from the nearest of the memory."""
    squares = [squared_distances(own, memory, nearest(own, memory, 1)) for own in rows.unsqueeze(0).split(2**14, dim=1)]
    return max(own.max().item() for own in squares) ** 0.5


def measured(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds of an action that is done once, and the GiB that it takes at most."""
    process, done = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        action()
    finally:
        done.set()
        watcher.join()
    return time.perf_counter() - start, (most - before) / 2**30


def anomalib(rows: Tensor, share: float) -> "torch.nn.Module | None":
    """anomalib's PatchCore with these rows to choose from; None where it is not installed."""
    try:
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    except ImportError:
        return None
    model = PatchcoreModel(layers=LAYERS, backbone="tf_efficientnet_lite0", pre_trained=False)
    model.embedding_store.append(rows)
    return model


def line(name: str, ours: float, theirs: float | None, unit: str) -> None:
    """A row of the table."""
    beside = "" if theirs is None else f"{theirs:>12.3f}{theirs / ours:>9.1f} x"
    print(f"{name:<44}{ours:>10.3f}{beside} {unit}", flush=True)


def main() -> None:
    """Fill and score by both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    found = features(arguments.images)
    rows = found.flatten(0, 2)
    bank = MemoryBank(BankOptions(percentage=arguments.share, reweight=9), rows.shape[1], seed=0)
    print(f"{instructions()}, {torch.get_num_threads()} threads, torch {torch.__version__}; {len(rows)} patches")
    seconds, taken = measured(lambda: bank.fill(found.split(BATCH)))
    theirs = anomalib(rows, arguments.share)
    their_seconds = their_taken = None
    if theirs is not None:
        torch.manual_seed(0)
        their_seconds, their_taken = measured(partial(theirs.subsample_embedding, arguments.share))
    line(f"fill a bank of {len(bank.memory)}", seconds, their_seconds, "s")
    line("covering radius", radius(rows, bank.memory), theirs and radius(rows, theirs.memory_bank), "")
    line("memory to fill it, beyond the features", taken, their_taken, "GiB")
    for images in (1, 16):
        score(bank, theirs, found[:images] + 0.1, arguments.rounds)


@torch.no_grad()
def score(bank: MemoryBank, theirs: "torch.nn.Module | None", queries: Tensor, rounds: int) -> None:
    """Search alone, image scores by the paper's Eq. 7 as well, and maps as well; milliseconds of an image."""
    count, grid = len(queries), queries.shape[1:3]
    patches, flat = queries.flatten(1, 2), queries.flatten(0, 2)
    size = torch.Size((SIZE, SIZE))

    def search() -> Tensor:
        return squared_distances(patches, bank.memory, nearest(patches, bank.memory, 1))

    def maps() -> Tensor:
        return anomaly_maps(bank(patches).patches.unflatten(1, grid), size)

    def their_search() -> Tensor:
        return theirs.nearest_neighbors(flat, 1)

    def their_scores() -> Tensor:
        distances, places = (own.view(count, -1) for own in their_search())
        theirs.compute_anomaly_score(distances, places, flat)
        return distances

    def their_maps() -> Tensor:
        return theirs.anomaly_map_generator(their_scores().view(count, 1, *grid), size)

    stages = {
        f"search, {count} at once": (search, their_search),
        "  and image scores by Eq. 7": (lambda: bank(patches), their_scores),
        "  and maps": (maps, their_maps),
    }
    for name, actions in stages.items():
        times = medians(rounds, *actions[: 1 if theirs is None else 2])
        line(name, *(1000 * own / count for own in times), *[None] * (2 - len(times)), "ms / image")


if __name__ == "__main__":
    main()
