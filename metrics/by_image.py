"""Pixels counted image by image, from which the metrics of pixels of some of the images, or of some twice, are read."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metrics.decisions import Decided
from metrics.pixels import RankedPixels, counting, region_shares
from metrics.ranking import Crossings

SCORES = 1000  # about so many, at which pixels are counted
SAMPLE = 2**20  # normal pixels that these scores are chosen by


class PixelCounts(NamedTuple):
    """Of every image the pixels at or above each of K scores, highest first, the last of which all pixels reach.

    Attributes:
        normal, defective: pixels outside and inside of defects [N, K].
        overlap: the shares of an image's regions that are found, added up [N, K].
        regions: how many an image has [N].
        called: normal and defective pixels that a model calls defective [N, 2]; None where that is not known.
    """

    normal: NDArray[np.integer]
    defective: NDArray[np.integer]
    overlap: NDArray[np.floating]
    regions: NDArray[np.integer]
    called: NDArray[np.integer] | None = None

    @property
    def defective_share(self) -> NDArray[np.float64]:
        """Of every image the share of its pixels that is defective [N]."""
        return self.defective[:, -1] / (self.defective[:, -1] + self.normal[:, -1])

    @property
    def decided(self) -> Decided | None:
        """How the pixels of every image were decided [N]; None where that is not known."""
        if self.called is None:
            return None
        alarms, hits = self.called.T
        return Decided(hits, self.defective[:, -1] - hits, alarms, self.normal[:, -1] - alarms)

    def of(self, images: ArrayLike | slice) -> "PixelCounts":
        """Those of some images, in their order."""
        return PixelCounts(*(None if own is None else own[images] for own in self))

    def ranked(self, weights: ArrayLike) -> RankedPixels:
        """The pixels of the images together, each image as often as its weight says.

        Between two of the K scores curves are straight lines, where those of rank_pixels have a corner at every score
        of a defective pixel.

        Args:
            weights: [N], or [B, N] of B sets of images.

        Returns:
            Arrays of NaN, so that every metric is, where a set has no defective or no normal pixels.
        """
        chosen = np.asarray(weights, dtype=float)
        normal, defective, overlap = (chosen @ own for own in (self.normal, self.defective, self.overlap))
        exists = (normal[..., -1:] > 0) & (defective[..., -1:] > 0)
        normal, defective = (np.where(exists, own, math.nan) for own in (normal, defective))
        regions = np.where(exists, (chosen @ self.regions)[..., None], math.nan)
        above = np.concatenate([np.zeros_like(normal[..., :1]), normal[..., :-1]], axis=-1)
        return RankedPixels(Crossings(above, normal, defective, normal[..., -1]), overlap / regions)


def count_pixels(
    masks: ArrayLike, maps: ArrayLike, regions: ArrayLike | None = None, decisions: ArrayLike | None = None
) -> PixelCounts | None:
    """Count the pixels of every image at scores that are close together where metrics are decided.

    Half of these are scores of defective pixels, in even steps of their rank, and half of normal ones, in steps that
    grow with the rank: rates of false positives of all sizes. Of few pixels they are all scores, and nothing is lost.

    Args:
        masks, maps, regions: as of metrics.pixel_metrics.
        decisions: [N, H, W], non-zero where a model calls a pixel defective; None: nothing is known of that.

    Returns:
        None where no pixel or every pixel is defective.
    """
    scores = np.asarray(maps)
    defective, regions, is_normal = counting(np.asarray(masks).astype(bool, copy=False), scores, regions)
    if not defective.any() or not is_normal:
        return None
    rising = _chosen_scores(defective, scores)
    counts = np.zeros((2, len(scores), len(rising)), np.int64)
    overlap, numbers = np.zeros(counts.shape[1:]), np.zeros(len(scores), np.int64)
    (shares, _), done = region_shares(defective, regions), 0
    for i, (mask, own) in enumerate(zip(defective, scores, strict=True)):
        place = np.searchsorted(rising, own, side="right") - 1
        counts[0, i] = np.bincount(place[~mask & ~np.isnan(own)], minlength=len(rising))
        if mask.any():
            inside = place[mask]
            shares_here = shares[done : done + len(inside)]
            done += len(inside)
            counts[1, i] = np.bincount(inside, minlength=len(rising))
            overlap[i] = np.bincount(inside, shares_here, minlength=len(rising))
            numbers[i] = round(shares_here.sum())
    counts, overlap = (np.cumsum(own[..., ::-1], axis=-1) for own in (counts, overlap))
    return PixelCounts(
        counts[0], counts[1], overlap, numbers, None if decisions is None else _called(defective, decisions)
    )


def _called(defective: NDArray[np.bool_], decisions: ArrayLike) -> NDArray[np.int64]:
    """Of every image the normal and the defective pixels that are called defective [N, 2]."""
    called = np.asarray(decisions).astype(bool, copy=False)
    found = [Decided.of(mask, own) for mask, own in zip(defective, called, strict=True)]
    return np.array([[own.alarms, own.hits] for own in found], np.int64)


def _chosen_scores(defective: NDArray[np.bool_], scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """The scores to count at, lowest first, which is the lowest of all."""
    step = max(1, scores.size // SAMPLE)
    while step > 1 and math.gcd(step, scores.shape[-1]) > 1:  # or the same columns of all rows are looked at
        step += 1
    sample = scores.reshape(-1)[::step]
    is_normal = ~defective.reshape(-1)[::step] & ~np.isnan(sample)
    found, normal = (np.sort(own)[::-1] for own in (scores[defective], sample[is_normal]))
    even = np.linspace(0, len(found) - 1, SCORES // 2).astype(int)
    doubling = np.geomspace(1, max(len(normal), 1), SCORES // 2).astype(int) - 1
    return np.unique(
        np.concatenate([[np.fmin.reduce(scores, axis=None)], found[even], normal[doubling] if len(normal) else []])
    )
