"""What is trained on: the images of a class or of several, and their embeddings in batches."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones import Features
from backbones.features import each, joined
from datasets import BatchLoader, ClassSamples, JoinedImages, Shuffled, TileDataset
from detection import Detector
from errors import DataError
from experiment.dataset_config import DatasetConfig


class Bank(Protocol):
    """What FeatureBank does here, of all its images or some."""

    def batches(self, batch_size: int, order: Iterable[int]) -> Iterator[Features]:
        """Batches on the device, in the order of the indices given."""


@dataclass(frozen=True)
class TrainingSet:
    """The training images of a class: what they are, how they are read, and their embeddings where they are kept.

    Attributes:
        bank: of all tiles of all images.
        chosen: which tiles of every image are trained on, bool [N, tiles], see tiles_to_train_on; None: all.
    """

    samples: ClassSamples
    data: DatasetConfig
    bank: Bank | None
    chosen: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.samples.train)

    @property
    def places(self) -> NDArray[np.integer]:
        """Those of the tiles to train on among all of them.

        Raises:
            DataError: there is none.
        """
        if self.chosen is None:
            return np.arange(len(self) * self.data.tiling.count)
        if not self.chosen.any():
            raise DataError(f"--skip_empty_tiles {self.data.skip_empty_tiles:g} leaves no tile to train on: lower it")
        return np.flatnonzero(self.chosen)

    def part(self, indices: Sequence[int]) -> "TrainingSet":
        """Some of the images."""
        samples = replace(self.samples, train=[self.samples.train[i] for i in indices])
        bank = None if self.bank is None else _Part(self.bank, self.data.tiling.numbers(indices))
        return TrainingSet(samples, self.data, bank, None if self.chosen is None else self.chosen[list(indices)])


def learned_from(detector: Detector, sets: Sequence[TrainingSet], seed: int) -> list["TrainingEmbeddings"]:
    """What a detector is trained on: of every class its own, if it is JOINT; else those of all classes together."""
    detectors = [detector.for_part(i) for i in range(len(sets))]
    if detector.JOINT:
        return [TrainingEmbeddings([one], [own], seed) for one, own in zip(detectors, sets, strict=True)]
    return [TrainingEmbeddings(detectors, sets, seed)]


class TrainingEmbeddings:
    """Batches of embeddings of normal images, or of tiles of them, of one class or of several mixed, in a new order at
    every pass.

    Args:
        detectors: the detector as it embeds each class.
        sets: of each class its images; read alike but for their files' depth, and all with a bank or none.
        seed: of the order and of random changes.

    Attributes:
        places: of each class those of its tiles, see TrainingSet.

    Raises:
        DataError: no tile is to be trained on.
    """

    def __init__(self, detectors: Sequence[Detector], sets: Sequence[TrainingSet], seed: int) -> None:
        self.detectors = detectors
        self.batch_size = sets[0].data.batch_size
        self.places = [own.places for own in sets]
        counts = [*map(len, self.places)]
        self.order = Shuffled(sum(counts), seed)
        self.classes = torch.repeat_interleave(torch.tensor(counts))  # of every tile
        kept = zip(sets, self.places, strict=True)
        banks = [_Part(own.bank, chosen) for own, chosen in kept if own.bank is not None]
        self.bank: Bank | None = None
        self.loader: BatchLoader | None = None
        if banks:
            self.bank = banks[0] if len(banks) == 1 else _Joined(banks, self.classes)
            return
        images = [
            TileDataset(own.samples.train, own.data.train_transform, own.data.tiling, chosen)
            for own, chosen in zip(sets, self.places, strict=True)
        ]
        dataset = images[0] if len(images) == 1 else JoinedImages(images)
        self.loader = BatchLoader(dataset, self.batch_size, sets[0].data.num_workers, self.order)

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[Features]:
        return self._embedded() if self.bank is None else self.bank.batches(self.batch_size, self.order)

    def pass_over(self) -> None:
        """Let a pass go by unread: what it would have drawn is drawn, so that those that follow stay the same."""
        iter(self.order) if self.loader is None else self.loader.pass_over()

    def _embedded(self) -> Iterator[Features]:
        first, *others = self.detectors
        for i, batch in enumerate(self.loader):
            if all(own is first for own in others):  # they embed alike
                yield first.embed_read(batch.images)
                continue
            indices = self.order.drawn[i * self.batch_size : (i + 1) * self.batch_size]
            classes = self.classes[indices]
            places = [(k, (classes == k).nonzero().flatten()) for k in classes.unique().tolist()]
            found = [self.detectors[k].embed_read(batch.images[own]) for k, own in places]
            yield _put_back([own for _, own in places], found)


class _Part:
    """Some samples of a feature bank, which stay where they are."""

    def __init__(self, bank: Bank, indices: Sequence[int]) -> None:
        self.bank = bank
        self.indices = indices

    def batches(self, batch_size: int, order: Iterable[int] | None = None) -> Iterator[Features]:
        """As of FeatureBank."""
        chosen = self.indices if order is None else [self.indices[i] for i in order]
        return self.bank.batches(batch_size, chosen)


class _Joined:
    """The feature banks of several classes as one: its images are theirs, one class after another.

    Args:
        banks: of every class.
        classes: of every image its class, [n] ascending.
    """

    def __init__(self, banks: Sequence[Bank], classes: Tensor) -> None:
        self.banks = banks
        self.classes = classes
        self.starts = torch.searchsorted(classes, torch.arange(len(banks)))

    def batches(self, batch_size: int, order: Iterable[int]) -> Iterator[Features]:
        """As of FeatureBank."""
        for indices in torch.tensor(list(order)).split(batch_size):
            places, found = [], []
            for k in self.classes[indices].unique().tolist():
                places.append((self.classes[indices] == k).nonzero().flatten())
                own = indices[places[-1]] - self.starts[k]
                found += self.banks[k].batches(len(own), own.tolist())
            yield _put_back(places, found)


def _put_back(places: Sequence[Tensor], found: Sequence[Features]) -> Features:
    """Features of parts of a batch as of the whole, by the places in it that each part has."""
    order = torch.cat([*places]).argsort()
    return each(lambda own: own[order.to(own.device)], joined(found))
