"""Where a job's embeddings come from: a feature bank, or the images again at every pass."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from backbones import FeatureBank
from backbones.bank import PLACES, bank_bytes, beside_bank, choose_place
from datasets import BatchLoader, ClassSamples, ImageDataset, Sample, Seen, Shuffled, region_labels
from detection import Detector, Prediction
from experiment.config import DatasetConfig
from experiment.memory import Halving, is_out_of_memory, one_line_when_full
from experiment.progress import progress

EMBED_BATCH = 8  # images embedded or scored at once where the training batch does not decide
SCORE_BATCH = 32


@dataclass(frozen=True)
class ClassBanks:
    """Embeddings of a class's images, for every job that reads the same features.

    Attributes:
        train: in the samples' order; None where random transforms make every pass another, or nothing is trained.
        validation: of held-out images; None where there are none, or nothing is trained.
        test: in the samples' order.
        masks: of the test images, bool [N, H, W]; None where none has any.
        regions: of all their defective pixels, see datasets.region_labels.
    """

    train: FeatureBank | None
    validation: FeatureBank | None
    test: FeatureBank
    masks: NDArray[np.bool_] | None
    regions: NDArray[np.integer]


def build_banks(
    title: str, detector: Detector, samples: ClassSamples, data: DatasetConfig, mode: str, test_only: bool = False
) -> ClassBanks:
    """Read and embed a class's images once; says where the embeddings are kept.

    Args:
        title: names the class in messages.
        detector: what embeds; its backbone must be frozen.
        samples, data: the images and how they are read.
        mode: device, host or disk, or auto for the first of them with room.
        test_only: leave all but the test images out.

    Raises:
        DataError: an image that cannot be used, or no room on the disk.
    """
    train = validation = None
    if data.random.is_identity and not test_only:
        train, _ = _embed_all(title, detector, ImageDataset(samples.train, data.train_transform), data, mode)
    if samples.validation and not test_only:
        held_out = ImageDataset(samples.validation, data.test_transform)
        validation, _ = _embed_all(title, detector, held_out, data, mode)
    masks = None
    if any(sample.mask_paths for sample in samples.test):
        masks = beside_bank((len(samples.test), data.imagesize, data.imagesize), torch.bool, mode == "disk").numpy()
    test, seen = _embed_all(title, detector, ImageDataset(samples.test, data.test_transform), data, mode, masks)
    banks = [bank for bank in (train, validation, test) if bank is not None]
    size = sum(bank.features.nbytes for bank in banks) / 2**30
    places = " and ".join(dict.fromkeys(bank.place for bank in banks))
    if sentence := seen.sentence(title, data.test_transform):
        click.echo(sentence, err=True)
    click.echo(f"{title}: feature bank of {size:.2f} GiB ({places})", err=True)
    return ClassBanks(train, validation, test, masks, region_labels(samples.test, data.test_transform))


def _embed_all(
    title: str,
    detector: Detector,
    dataset: ImageDataset,
    data: DatasetConfig,
    mode: str,
    masks: NDArray[np.bool_] | None = None,
) -> tuple[FeatureBank, Seen]:
    """The images' embeddings, and how much of them is seen; their masks are written into `masks` [N, H, W] if given."""
    loader = BatchLoader(dataset, max(EMBED_BATCH, data.batch_size), data.num_workers)
    embed = Halving(detector.embed, "embedding")

    @torch.no_grad()
    def embeddings() -> Iterator[Tensor]:
        start = 0
        for batch in progress(f"{title} features", loader):
            if masks is not None:
                masks[start : start + len(batch.masks)] = batch.masks.numpy()
                start += len(batch.masks)
            yield embed(batch.images)

    stream = embeddings()
    first = next(stream)
    shape = (len(dataset), *first.shape[1:])
    bank = _allocate(shape, first.dtype, mode, detector.device)
    bank.fill(chain([first], stream))
    return bank, loader.seen


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, mode: str, device: torch.device) -> FeatureBank:
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


class TrainingEmbeddings:
    """Batches of embeddings of normal images, in a new order at every pass."""

    def __init__(
        self, detector: Detector, samples: ClassSamples, data: DatasetConfig, seed: int, bank: FeatureBank | None
    ) -> None:
        self.detector = detector
        self.bank = bank
        self.batch_size = data.batch_size
        self.order = Shuffled(len(samples.train), seed)
        dataset = ImageDataset(samples.train, data.train_transform)
        self.loader = None if bank else BatchLoader(dataset, data.batch_size, data.num_workers, self.order)

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if self.bank is not None:
            return self.bank.batches(self.batch_size, self.order)
        return (self.detector.embed(batch.images) for batch in self.loader)


class Predictions:
    """Predictions of images in batches, by the detector as it is then; with masks (bool [B, H, W]).

    Args:
        detector: what predicts.
        samples: of what, in this order.
        data: how images are read; random changes do not apply.
        bank: the images' embeddings; None embeds the images every time.
        masks: of all images where a bank is given; None: there are none.
        title: names the class when the first pass over the images says what is not seen of them; empty: it does not.
    """

    def __init__(
        self,
        detector: Detector,
        samples: Sequence[Sample],
        data: DatasetConfig,
        bank: FeatureBank | None = None,
        masks: NDArray[np.bool_] | None = None,
        title: str = "",
    ) -> None:
        self.detector = detector
        self.title = title
        self.bank = bank
        self.masks = masks
        self.batch_size = SCORE_BATCH if bank else max(EMBED_BATCH, data.batch_size)
        self.dataset = ImageDataset(samples, data.test_transform)
        self.num_workers = data.num_workers
        self.loader = None if bank else BatchLoader(self.dataset, self.batch_size, data.num_workers)

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    @property
    def on_disk(self) -> bool:
        """Whether what is kept of all images belongs on the disk, as their embeddings are."""
        return self.bank is not None and self.bank.place == "disk"

    def maps_of(self, indices: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """The anomaly maps [H, W] of some of the images."""
        if self.bank is not None:
            batches = map(self.detector.score, self.bank.batches(self.batch_size, indices))
        else:
            chosen = ImageDataset([self.dataset.samples[i] for i in indices], self.dataset.transform)
            loader = BatchLoader(chosen, self.batch_size, self.num_workers)
            batches = (self.detector.predict(batch.images) for batch in loader)
        for prediction in batches:
            yield from prediction.maps.cpu().numpy()

    def embeddings(self) -> Iterator[Tensor]:
        """The images' embeddings, in batches."""
        if self.bank is not None:
            return self.bank.batches(self.batch_size)
        return (self.detector.embed(batch.images) for batch in self.loader)

    def branch_scores(self) -> dict[str, NDArray[np.float32]]:
        """What the image scores [N] are made of, by name, found in a pass of its own; empty where they have none."""
        if not self.detector.branches:
            return {}
        parts = [self.detector.branch_scores(embeddings) for embeddings in self.embeddings()]
        return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in self.detector.branches}

    def __iter__(self) -> Iterator[tuple[Prediction, NDArray[np.bool_] | None]]:
        if self.bank is None:
            for batch in self.loader:
                yield self.detector.predict(batch.images), batch.masks.numpy()
            self._say_seen()
            return
        start = 0
        for embeddings in self.bank.batches(self.batch_size):
            masks = None if self.masks is None else self.masks[start : start + len(embeddings)]
            yield self.detector.score(embeddings), masks
            start += len(embeddings)

    def _say_seen(self) -> None:
        sentence = self.loader.seen.sentence(self.title, self.dataset.transform)
        if sentence and self.title:
            tqdm.write(sentence, file=sys.stderr)
        self.title = ""  # once is enough


class HeldOut:
    """Batches of embeddings of held-out normal images, the same at every pass; none where nothing is held out."""

    def __init__(self, predictions: Predictions) -> None:
        self.predictions = predictions

    def __len__(self) -> int:
        return len(self.predictions)

    def __iter__(self) -> Iterator[Tensor]:
        return self.predictions.embeddings() if len(self) else iter(())
