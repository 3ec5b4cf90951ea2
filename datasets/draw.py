"""Protocols that training images are drawn by: a few of them, or some that are not normal."""

from dataclasses import replace

import numpy as np

from datasets.sample import ClassSamples
from errors import DataError


def drawn(samples: ClassSamples, shots: int | None, contamination: float, seed: int) -> ClassSamples:
    """A class with fewer training images, and with anomalous ones among them, which nobody knows of.

    Args:
        samples: the class.
        shots: how many training images are left; None leaves all.
        contamination: per cent of those, rounded, whose places anomalous test images take; these leave the test set.
        seed: of what is drawn. Of one seed, more shots hold the fewer, as more contamination does.

    Raises:
        DataError: fewer training images than `shots`, or too few anomalous ones: one must be left to test on.
    """
    train, test = samples.train, samples.test
    rng = np.random.default_rng(seed)
    order, anomalous = rng.permutation(len(train)), [i for i, sample in enumerate(test) if sample.anomalous]
    if shots is not None:
        if shots > len(train):
            raise DataError(f"--shots {shots}: there are {len(train)} training {samples.kind}s")
        order = order[:shots]
    count = round(len(order) * contamination / 100)
    if count >= max(1, len(anomalous)):
        raise DataError(
            f"--contamination {contamination:g} takes {count} anomalous {samples.kind}s for {len(order)} to train on, "
            f"and one must be left to test on: there are {len(anomalous)}"
        )
    taken = rng.permutation(anomalous)[:count].tolist()
    taken_for_normal = [replace(test[i], anomalous=False, mask_paths=()) for i in taken]
    kept = sorted(order[: len(order) - count].tolist())
    return replace(
        samples,
        train=[train[i] for i in kept] + taken_for_normal,
        test=[sample for i, sample in enumerate(test) if i not in set(taken)],
    )
