"""Cross-validation: how many of its training images a detector calls anomalous that has not seen them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from detection import Detector, Normal, is_anomalous
from experiment.machine.progress import progress
from experiment.train.embeddings import Predictions
from experiment.train.evaluation import image_scores, normal_thresholds
from experiment.train.training_set import TrainingSet, learned_from


class Trials(NamedTuple):
    """Of how many images, unseen by the detectors that scored them, how many lay above those detectors' thresholds."""

    above: int
    unseen: int


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
        normal = [Normal(own) for own in learned_from(detector, learned, seed)]
        with progress(f"{label} calibration {fold + 1}/{folds}", total=detector.meta_epochs) as bar:
            training = detector.training_on(*normal)
            training.eval_every = detector.meta_epochs  # what the last epoch has learned is all that is asked for
            for _ in training:
                bar.update()
        for i, (known, unknown) in enumerate(zip(learned, left_out, strict=True)):
            if len(unknown):
                threshold, _ = normal_thresholds(_predictions(detector, i, known, as_new=True), quantile)
                scores = image_scores(_predictions(detector, i, unknown))
                above, unseen = trials[i]
                trials[i] = Trials(above + int(is_anomalous(scores, threshold).sum()), unseen + len(unknown))
    return trials


def _predictions(detector: Detector, part: int, images: TrainingSet, as_new: bool = False) -> Predictions:
    """What a detector says of images of one of its classes."""
    return Predictions(detector.for_part(part), images.samples.train, images.data, images.bank, as_new=as_new)
