"""Cross-validation: how many of its training images a detector calls anomalous that has not seen them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backbones import FeatureBank, Features
from datasets import ClassSamples
from detection import Detector, Normal, is_anomalous
from experiment.dataset_config import DatasetConfig
from experiment.machine.progress import progress
from experiment.train.embeddings import Predictions, TrainingEmbeddings
from experiment.train.evaluation import image_scores, normal_thresholds


class Trials(NamedTuple):
    """Of how many images, unseen by the detectors that scored them, how many lay above those detectors' thresholds."""

    above: int
    unseen: int


@dataclass(frozen=True)
class TrainingSet:
    """The training images of a class: what they are, how they are read, and their embeddings where they are kept.

    Attributes:
        chosen: which tiles are trained on, see tiles_to_train_on.
    """

    samples: ClassSamples
    data: DatasetConfig
    bank: "FeatureBank | _Part | None"
    chosen: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.samples.train)

    def part(self, indices: Sequence[int]) -> "TrainingSet":
        """Some of the images."""
        samples = replace(self.samples, train=[self.samples.train[i] for i in indices])
        bank = self.bank and _Part(self.bank, self.data.tiling.numbers(indices))
        return TrainingSet(samples, self.data, bank, None if self.chosen is None else self.chosen[list(indices)])

    def training(self, detector: Detector, seed: int) -> TrainingEmbeddings:
        """What the detector is trained on."""
        return TrainingEmbeddings(detector, self.samples, self.data, seed, self.bank, self.chosen)

    def predictions(self, detector: Detector) -> Predictions:
        """What the detector says of them."""
        return Predictions(detector, self.samples.train, self.data, self.bank)


def cross_validate(
    fresh: Callable[[], Detector], sets: Sequence[TrainingSet], seed: int, folds: int, quantile: float, label: str
) -> list[Trials]:
    """Train a further detector for every fold on all images but those of the fold, and decide on these.

    Each decides at a threshold of its own, found as the threshold of the detector that is kept. A fold is every so many
    images, so that what changes slowly along them is in all.

    Args:
        fresh: builds the detector that is trained.
        sets: the training images of every class that it learns from, at least two of each.
        seed: of the order of the images.
        folds: how many.
        quantile: of thresholds.
        label: what the bar is called.

    Raises:
        DataError: training diverged.
    """
    trials = [Trials(0, 0)] * len(sets)
    for fold in range(min(folds, max(map(len, sets)))):
        detector = fresh()
        left_out = [own.part(range(fold, len(own), folds)) for own in sets]
        learned = [own.part([i for i in range(len(own)) if i % folds != fold]) for own in sets]
        normal = [Normal(own.training(detector.for_part(i), seed)) for i, own in enumerate(learned)]
        with progress(f"{label} calibration {fold + 1}/{folds}", total=detector.meta_epochs) as bar:
            training = detector.training_on(*normal)
            training.eval_every = detector.meta_epochs  # what the last epoch has learned is all that is asked for
            for _ in training:
                bar.update()
        for i, (known, unknown) in enumerate(zip(learned, left_out, strict=True)):
            if len(unknown):
                threshold, _ = normal_thresholds(known.predictions(detector.for_part(i)), quantile)
                scores = image_scores(unknown.predictions(detector.for_part(i)))
                above, unseen = trials[i]
                trials[i] = Trials(above + int(is_anomalous(scores, threshold).sum()), unseen + len(unknown))
    return trials


class _Part:
    """Some of the samples of a feature bank, which stay where they are."""

    def __init__(self, bank: "FeatureBank | _Part", indices: Sequence[int]) -> None:
        self.bank = bank
        self.indices = indices

    def batches(self, batch_size: int, order: Sequence[int] | None = None) -> Iterator[Features]:
        """As of FeatureBank."""
        chosen = self.indices if order is None else [self.indices[i] for i in order]
        return self.bank.batches(batch_size, chosen)
