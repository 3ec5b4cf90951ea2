"""Feature banks: the embeddings of a class's images, read once for every job that shares them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray

from backbones import FeatureBank, Features
from backbones.bank import PLACES, bank_bytes, beside_bank, choose_place
from backbones.features import Shape, Types, joined, shape_of, types_of
from datasets import BatchLoader, ClassSamples, Defect, ImageDataset, Kept, Seen, read_defects, region_labels
from detection import Detector
from experiment.dataset_config import DatasetConfig
from experiment.machine.memory import Halving, is_out_of_memory, one_line_when_full
from experiment.machine.progress import progress
from experiment.machine.usage import Peak, PeakMemory, Stopwatch
from experiment.plan.task import Task, embed_batch
from experiment.train.tiles import tiles_to_train_on


class Embedded(NamedTuple):
    """Images that were read once: their embeddings, how much of them is seen, their brightness [N], and the seconds
    that embedding took, without reading them."""

    bank: FeatureBank
    seen: Seen
    brightness: NDArray[np.float64]
    seconds: float


@dataclass(frozen=True)
class ClassBanks:
    """Embeddings of a class's images or, where these are cut, of all their tiles; for every job that reads the same
    features.

    Attributes:
        train: in the samples' order; None where random changes make every pass another, or nothing is trained.
        validation: of held-out images; None where there are none, or nothing is trained.
        test: in the samples' order.
        masks: of the test images, bool [N, H, W]; None where none has any.
        regions: of all their defective pixels, see datasets.region_labels.
        defects: of the test images, for sPRO, see datasets.read_defects.
        brightness: of the test images, [N].
        normal_brightness: of the images that thresholds come from, [N]; empty where none of them is kept.
        chosen: which tiles are trained on, see tiles_to_train_on.
        seconds: that embedding the images to train on took.
        peak: of memory while images were embedded.
    """

    train: FeatureBank | None
    validation: FeatureBank | None
    test: FeatureBank
    masks: NDArray[np.bool_] | None
    regions: NDArray[np.integer]
    defects: list[Defect]
    brightness: NDArray[np.float64]
    normal_brightness: NDArray[np.float64]
    chosen: NDArray[np.bool_] | None
    seconds: float
    peak: Peak


def banks_of(task: Task, detector: Detector, kept: Kept | None = None) -> list[ClassBanks]:
    """The feature banks of all jobs of a task; `kept` as of build_banks.

    Raises:
        DataError: as build_banks.
    """
    mode, test_only = task.run.feature_bank, task.run.test
    return [
        build_banks(job.name.title, detector.for_part(i), job.samples, job.data, mode, test_only, kept)
        for i, job in enumerate(task.jobs)
    ]


def build_banks(
    title: str,
    detector: Detector,
    samples: ClassSamples,
    data: DatasetConfig,
    mode: str,
    test_only: bool = False,
    kept: Kept | None = None,
) -> ClassBanks:
    """Read and embed a class's images once; says where the embeddings are kept.

    Args:
        title: names the class in messages.
        detector: what embeds; its backbone must be frozen.
        samples, data: the images and how they are read.
        mode: device, host or disk, or auto for the first of them with room.
        test_only: leave all but the test images out.
        kept: images that were read before, for other features; None keeps none.

    Raises:
        DataError: an image that cannot be used, or no room on the disk.
    """
    memory = PeakMemory(detector.device)
    train = validation = chosen = None
    if data.random.is_fixed and not test_only:
        train = embed_all(title, detector, ImageDataset(samples.train, data.train_transform), data, mode, kept=kept)
    if not test_only:
        chosen = tiles_to_train_on(title, samples, data, kept)
    if samples.validation and not test_only:
        held_out = ImageDataset(samples.validation, data.test_transform)
        validation = embed_all(title, detector, held_out, data, mode, kept=kept)
    masks = None
    if any(sample.mask_paths for sample in samples.test):
        masks = beside_bank((len(samples.test), data.imagesize, data.imagesize), torch.bool, mode == "disk").numpy()
    test = embed_all(title, detector, ImageDataset(samples.test, data.test_transform), data, mode, masks, kept)
    parts = [own and own.bank for own in (train, validation, test)]
    banks = [bank for bank in parts if bank is not None]
    size = sum(bank.nbytes for bank in banks) / 2**30
    places = " and ".join(dict.fromkeys(bank.place for bank in banks))
    if sentence := test.seen.sentence(title, data.test_transform):
        click.echo(sentence, err=True)
    click.echo(f"{title}: feature bank of {size:.2f} GiB ({places})", err=True)
    normal = validation if samples.validation else train
    regions = region_labels(samples.test, data.test_transform)
    defects = read_defects(samples.test, samples.saturation, data.test_transform)
    levels, seconds = normal.brightness if normal else np.empty(0), train.seconds if train else 0.0
    return ClassBanks(*parts, masks, regions, defects, test.brightness, levels, chosen, seconds, memory.so_far())


def embed_all(
    title: str,
    detector: Detector,
    dataset: ImageDataset,
    data: DatasetConfig,
    mode: str = "auto",
    masks: NDArray[np.bool_] | None = None,
    kept: Kept | None = None,
) -> Embedded:
    """Read images once and embed their tiles; their masks are written into `masks` [N, H, W] if given."""
    tiling, size = data.tiling, embed_batch(data.batch_size, detector.device)
    loader = BatchLoader(dataset, tiling.images_in(size), data.num_workers, kept=kept)
    embed, watch = Halving(detector.embed_read, "embedding", joined), Stopwatch(detector.device)

    @torch.no_grad()
    def embeddings() -> Iterator[Features]:
        start = 0
        for batch in progress(f"{title} features", loader):
            if masks is not None:
                masks[start : start + len(batch.masks)] = batch.masks.numpy()
                start += len(batch.masks)
            for tiles in tiling.batches(batch.images, size):
                with watch:
                    features = embed(tiles)
                yield features

    stream = embeddings()
    first = next(stream)
    bank = _allocate(shape_of(len(dataset) * tiling.count, first), types_of(first), mode, detector.device)
    bank.fill(chain([first], stream))
    return Embedded(bank, loader.seen, loader.brightness, watch.seconds)


def _allocate(shape: Shape, dtype: Types, mode: str, device: torch.device) -> FeatureBank:
    """A bank where it was asked for; by auto in the first place that has room, by its own account and then in fact."""
    if mode != "auto":
        with one_line_when_full():
            return FeatureBank(shape, dtype, mode, device)
    chosen = choose_place(bank_bytes(shape, dtype), device)
    for place in PLACES[PLACES.index(chosen) :]:
        try:
            return FeatureBank(shape, dtype, place, device)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            click.echo(f"No room for the feature bank ({place}): trying the next place", err=True)
    raise AssertionError("the disk raises DataError")
