"""The decision, in one place: whoever compares scores with a threshold does it here."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from detection.brightness import Outside
from detection.normal_scores import NormalScores

SURE = 0.95
FRESH = "fresh normal images"  # what thresholds come from that calibrate has set


class FalseAlarms(NamedTuple):
    """The share of new normal samples above a threshold: what is expected, and what it is below with 95 %."""

    expected: float
    at_most: float


@dataclass(frozen=True)
class Thresholds:
    """Scores above which an image or a pixel is called anomalous, and where they come from.

    Attributes:
        image, pixel: the scores; pixel None without maps.
        quantile: the share of normal images, and of their pixels, that stays at or below them.
        source: "held-out normal images", "training images" or FRESH; of a table rows.
        images: how many of them.
        above, unseen: how many images lay above the threshold that the detector had not seen, and of how many: those
            that it is of, where they are FRESH; by cross-validation of the training images; None without.
        brightness: the lowest, low, high and highest of images like them, see brightness.like; None where light is
            matched, there are no images, or a model is older than this.
        scores, tail: kept of their scores, see NormalScores; None of a model that is older than this.
    """

    image: float
    pixel: float | None
    quantile: float
    source: str
    images: int
    above: int | None = None
    unseen: int | None = None
    brightness: tuple[float, float, float, float] | None = None
    scores: tuple[float, ...] | None = None
    tail: tuple[float, float, float] | None = None

    @property
    def is_held_out(self) -> bool:
        """Whether the detector was not trained on the images that they come from."""
        return self.source == FRESH or self.source.startswith("held-out")

    @property
    def false_alarms(self) -> FalseAlarms | None:
        """The share of new normal images above the image threshold; None where it is not known."""
        if self.unseen:
            return false_alarms(self.above, self.unseen)
        if not self.is_held_out:
            return None
        return false_alarms(self.images - 1 - math.ceil(self.quantile * (self.images - 1)), self.images)

    def false_alarms_among(self, images: Outside | None) -> FalseAlarms | None:
        """What is said of them among images whose brightness was counted: in another light nothing."""
        return None if images and images.is_other_light else self.false_alarms

    @property
    def outside(self) -> Outside | None:
        """Of no image yet, whether it is too dark or too bright for what is said; None where that is not known."""
        return self.brightness and Outside(*self.brightness, self.images)

    @property
    def normal(self) -> NormalScores | None:
        """The scores of the images that they come from; None where the model does not say them."""
        return self.scores and NormalScores(self.scores, self.images, self.tail)

    @property
    def said(self) -> str:
        """What users are told of the image threshold's false alarms."""
        kind, known = self.source.rpartition(" ")[2], self.false_alarms
        if known is None:
            return (
                f"How many new normal {kind} are called anomalous is not known: the threshold is of {self.images} "
                f"{self.source}, which score lower than new ones. Training with --train_val_split 0.9 or --calibrate 5 "
                "would tell."
            )
        by = f"{self.images}" if self.is_held_out else f"cross-validation of {self.unseen}"
        return (
            f"About {100 * known.expected:.1f} % of new normal {kind} are called anomalous, and at most "
            f"{100 * known.at_most:.1f} % (95 % sure), by {by} {self.source}."
        )

    def said_beside(self, note: str) -> str:
        """What users are told beside a note on images in another light, for which nothing of it holds; "" is none."""
        return f"{note} In the threshold's own light: {self.said}" if note else self.said


def is_anomalous(scores: float | NDArray[np.floating] | Tensor, threshold: float) -> bool | NDArray[np.bool_] | Tensor:
    """Whether scores are above a threshold; one that equals it is of a normal image, as in Thresholds.

    Args:
        scores: a number, or an array or tensor of any shape.
        threshold: such as TrainedModel.thresholds.image, or thresholds.pixel of a map.

    Returns:
        A bool, or bools of the same shape.
    """
    return scores > threshold


def false_alarms(above: int, unseen: int) -> FalseAlarms:
    """What is known of a threshold's false alarms by normal samples that no detector was trained on.

    Where the threshold is one of their scores, the share of new samples above it is distributed as
    Beta(above + 1, unseen - above), whatever scores look like (Wilks 1941); where it is not, this is the upper bound of
    Clopper and Pearson (1934). Both hold for new samples like these.

    Args:
        above: how many of them lie above the threshold.
        unseen: how many there are, at least one.
    """
    at_most = 1.0 if above == unseen else float(betaincinv(above + 1, unseen - above, SURE))
    return FalseAlarms((above + 1) / (unseen + 1), at_most)


def share_interval(count: int, total: int) -> tuple[float, float]:
    """Of how many of all the share lies with 95 % that `count` of `total` have: Clopper and Pearson (1934).

    Of the share of new normal samples above a threshold that is one of the scores of `total` others, `count` above it,
    it holds as well: that share is distributed as in false_alarms, so the upper end is exact, and the lower end below
    the exact one, which is of Beta(count + 1, total - count) too.

    Args:
        count: from 0 to total.
        total: at least one.
    """
    low = float(betaincinv(count, total - count + 1, (1 - SURE) / 2)) if count else 0.0
    high = float(betaincinv(count + 1, total - count, (1 + SURE) / 2)) if count < total else 1.0
    return low, high


def allowed_above(share: float, images: int) -> int:
    """How many of the scores of normal images may lie above one of them that is to be a threshold.

    As many as leave at most this share of new ones above it, as expected: (above + 1) / (images + 1). None where that
    is more even above the highest.
    """
    return min(max(math.floor(share * (images + 1) + 1e-9) - 1, 0), images - 1)


def images_needed(share: float) -> tuple[int, int]:
    """Of how many normal images the highest score is a threshold with at most this share of new ones above it.

    Returns:
        How many where that is to be expected, and how many where it is to be so with 95 %.
    """
    return math.ceil(1 / share - 1 - 1e-9), math.ceil(math.log(1 - SURE) / math.log1p(-share) - 1e-9)
