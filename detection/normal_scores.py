"""Scores of normal images, and what share of new ones lies above a score: beyond them all by a fitted tail."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detection.prediction import Prediction

MOST = 512  # scores that a model keeps
FURTHEST = 0.01  # of the share above the highest of all scores, that a tail is extrapolated to
LEAST, SHARE = 10, 0.1  # of the highest scores, which a tail is fitted to: so many, or this share if that is more


@dataclass(frozen=True)
class NormalScores:
    """The scores of normal images, as far as a model keeps them.

    Attributes:
        kept: scores, ascending, at the ranks that ranks() gives.
        images: how many there were.
        tail: start, scale and shape (0 or more) of a generalised Pareto distribution of what lies above start; None
            where they tell of no tail.
    """

    kept: tuple[float, ...]
    images: int
    tail: tuple[float, float, float] | None

    @classmethod
    def of(cls, scores: NDArray[np.floating]) -> "NormalScores":
        """Those [N] of normal images, at least one and all finite; exact of up to MOST."""
        ordered = np.sort(scores.astype(np.float64))
        kept = ordered[ranks(len(ordered), min(len(ordered), MOST)) - 1]
        return cls(tuple(kept.tolist()), len(ordered), _tail_of(ordered))

    def p_values(self, scores: ArrayLike) -> NDArray[np.float64]:
        """How probable it is that a new normal image scores as high or higher, above 0 to 1.

        Of n images that no detector was trained on, of which k score less, it is (n + 1 - k) / (n + 1): of new ones
        like them at most a share of p has p or less, whatever scores look like (Vovk, Gammerman and Shafer 2005).
        Between kept scores the lower of their ranks counts. Above all, the tail goes on from 1 / (n + 1), down to
        FURTHEST of that: what a few exceedances say of rarer scores is no more than the form that was assumed.

        Args:
            scores: of any shape; NaN has NaN.
        """
        values, kept = np.asarray(scores, np.float64), np.asarray(self.kept)
        below = np.concatenate([[0], ranks(self.images, len(kept))])[np.searchsorted(kept, values)]
        found = (self.images + 1 - below) / (self.images + 1)
        if self.tail is not None:
            beyond = self._log_share(np.maximum(values, kept[-1])) - self._log_share(kept[-1])
            found = found * np.maximum(np.exp(beyond), FURTHEST)
        return np.where(np.isnan(values), np.nan, found)

    def beyond(self, scores: ArrayLike) -> int:
        """How many of some scores lie above all of these."""
        return int((np.asarray(scores) > self.kept[-1]).sum())

    def _log_share(self, values: ArrayLike) -> NDArray[np.float64]:
        """The logarithm of the share of the tail above some scores, none below its start."""
        start, scale, shape = self.tail
        excess = (np.asarray(values) - start) / scale
        return -np.log1p(shape * excess) / shape if shape else -excess

    def said(self, source: str, beyond: int) -> str:
        """What users are told of values beside `beyond` scores that lie above all of these.

        Args:
            source: what images these are, such as "training images".
            beyond: of how many values it is said.
        """
        low = ", which score lower than new ones" if source.startswith("training") else ""
        told = f"percentile and p_value compare with {self.images} {source}{low}."
        if not beyond:
            return told
        if self.tail is None:
            return f"{told} The {beyond} above all of them have the same: these tell of no tail."
        fitted = sum(score > self.tail[0] for score in self.kept)
        return f"{told} For the {beyond} above all of them a tail fitted to the highest {fitted} goes on."


def ranks(images: int, kept: int) -> NDArray[np.intp]:
    """Which of so many ascending scores are kept, from 1: the highest half of them, and the rest evenly."""
    if kept == images:
        return np.arange(1, images + 1)
    rest = images - kept // 2
    return np.concatenate([np.linspace(1, rest, kept - kept // 2).round().astype(int), np.arange(rest, images) + 1])


def _tail_of(ordered: NDArray[np.float64]) -> tuple[float, float, float] | None:
    """Start, scale and shape of a generalised Pareto distribution of the highest scores, by L-moments.

    Its first two are scale / (1 - shape) and scale / ((1 - shape) (2 - shape)) (Hosking and Wallis 1987). A shape below
    0 would say that there are no scores beyond some point, which so few cannot: the exponential distribution stands in
    its place.

    Args:
        ordered: [N], ascending.
    """
    count = min(max(LEAST, math.ceil(SHARE * len(ordered))), MOST // 2)
    if len(ordered) < 2 * LEAST:
        return None
    start, highest = ordered[-count - 1], ordered[-count:]
    excess = highest - start
    first = excess.mean()
    second = 2 * (np.arange(count) * excess).mean() / (count - 1) - first
    if not 0 < second < first:
        return None
    shape = max(0.0, 2 - first / second)
    scale = first * (1 - shape)
    return (float(start), float(scale), float(shape)) if scale > 0 else None


def normal_scores(
    predictions: Iterable[Prediction], images: int, quantile: float
) -> tuple[NDArray[np.float32], float | None]:
    """The scores [N] of normal images, and the pixel score that a share of their pixels stays at or below.

    Without maps there is none of a pixel; pixels of no interest, NaN, do not count.

    Args:
        predictions: of normal images, in batches.
        images: how many there are.
        quantile: the share, in [0, 1]; the next higher score is taken where it falls between two.
    """
    scores: list[NDArray[np.float32]] = []
    highest = np.empty(0, np.float32)  # pixel scores from the quantile up: all of them would need much memory
    seen = 0
    for prediction in predictions:
        scores.append(prediction.scores.cpu().numpy())
        if prediction.maps is None:
            continue
        pixels = images * prediction.maps[0].numel()
        kept = pixels - math.ceil(quantile * (pixels - 1))
        own = prediction.maps.cpu().numpy().ravel()
        own = own[~np.isnan(own)]
        seen += len(own)
        highest = np.concatenate([highest, own])
        if len(highest) > kept:
            highest = np.partition(highest, len(highest) - kept)[-kept:]
    if not seen:
        return np.concatenate(scores), None
    kept = seen - math.ceil(quantile * (seen - 1))  # no more than were kept, of all pixels
    return np.concatenate(scores), float(np.partition(highest, len(highest) - kept)[-kept])
