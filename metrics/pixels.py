"""Pixel-level metrics of anomaly maps: AUROC, average precision, max-F1, PRO and sPRO."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from metrics.ranking import Crossings, Values, best_f1, crossings, precision_sum, reached, roc_area


class RankedPixels(NamedTuple):
    """Pixel scores, ranked, from which every metric of pixels is read; of several sets of images as Crossings are.

    Attributes:
        ranked: defective among normal pixels.
        overlap: the mean share of a region, or of a defect up to its saturation area, that is found at or above each
            distinct score of defective pixels [T].
    """

    ranked: Crossings
    overlap: NDArray[np.float64]

    def overlap_area(self, max_fpr: float) -> Values:
        """Area under the curve of the overlap over the false-positive rate up to max_fpr, divided by max_fpr."""
        return self.ranked.area(self.overlap, max_fpr)


def pixel_metrics(
    masks: ArrayLike, maps: ArrayLike, max_fpr: float = 0.3, regions: ArrayLike | None = None
) -> dict[str, float]:
    """All pixel metrics from one sort of the pixel scores, in memory that grows with the defective pixels only.

    They count the pixels of the maps: masks of full size have to be brought to the maps' size, where a region may fall
    apart, touch another or vanish. `regions` says which of the full size each pixel belongs to.

    Args:
        masks: [N, H, W], non-zero where defective.
        maps: finite float [N, H, W], higher is more anomalous; may be a mapped file, as masks may. NaN where a pixel
            does not count, be it defective or not.
        max_fpr: false-positive rate up to which PRO is integrated, in (0, 1].
        regions: of all P defective pixels, in the order of masks' boolean indexing, the region: integers [P] from 0,
            regions of several images differ. None: a region is an 8-connected component of a mask.

    Returns:
        {"auroc", "ap", "f1_max", "pro"}, each in [0, 1]; NaN where no pixel or every pixel is defective.

    Raises:
        ValueError: shapes that differ, maps that are not finite, max_fpr out of range, or negative regions.
    """
    _check_limits(max_fpr)
    pixels = rank_pixels(masks, maps, regions)
    if pixels is None:
        return dict.fromkeys(("auroc", "ap", "f1_max", "pro"), float("nan"))
    return {
        "auroc": float(roc_area(pixels.ranked)),
        "ap": float(precision_sum(pixels.ranked)),
        "f1_max": float(best_f1(pixels.ranked)),
        "pro": float(pixels.overlap_area(max_fpr)),
    }


def pro(masks: ArrayLike, maps: ArrayLike, max_fpr: float = 0.3, regions: ArrayLike | None = None) -> float:
    """Area under the per-region-overlap curve (Bergmann et al., IJCV 2021) up to max_fpr, divided by max_fpr.

    A region is an 8-connected component of a mask, or what `regions` says; the overlap is averaged over all regions of
    all images, the false-positive rate is taken over the pixels outside them. Arguments, range and errors as in
    pixel_metrics.
    """
    _check_limits(max_fpr)
    pixels = rank_pixels(masks, maps, regions)
    return float("nan") if pixels is None else float(pixels.overlap_area(max_fpr))


def spro(defects: Iterable[tuple[int, ArrayLike, float]], maps: ArrayLike, max_fpr: float = 0.3) -> float:
    """Area under the saturated per-region-overlap curve (Bergmann et al., IJCV 2022) up to max_fpr, divided by max_fpr.

    A defect of saturation area s is found to the share min(found pixels / s, 1). A false positive is a pixel that no
    defect of its image covers.

    Args:
        defects: (image_index, mask [H, W] non-zero where defective, saturation_area in pixels) of every defect; defects
            of an image may overlap. Empty masks are passed over.
        maps, max_fpr: as in pixel_metrics; maps of normal images take part.

    Returns:
        In [0, 1]; NaN without defects or without pixels outside them.

    Raises:
        ValueError: as in pixel_metrics, an image_index out of range, or a saturation area that is not positive.
    """
    return spro_at(defects, maps, [max_fpr])[0]


def spro_at(defects: Iterable[tuple[int, ArrayLike, float]], maps: ArrayLike, limits: Sequence[float]) -> list[float]:
    """spro for several values of max_fpr from one sort of the scores."""
    _check_limits(*limits)
    pixels = rank_defects(defects, maps)
    return [float("nan") if pixels is None else float(pixels.overlap_area(limit)) for limit in limits]


def rank_pixels(masks: ArrayLike, maps: ArrayLike, regions: ArrayLike | None = None) -> RankedPixels | None:
    """The pixels of all images and the overlap with their regions; None where no pixel or every pixel is defective.

    Arguments and errors as in pixel_metrics.
    """
    defective, scores = np.asarray(masks).astype(bool, copy=False), _checked_maps(maps)
    if defective.shape != scores.shape:
        raise ValueError(f"masks {list(defective.shape)} and maps {list(scores.shape)} must have one shape")
    defective, regions, is_normal = counting(defective, scores, regions)
    shares, count = region_shares(defective, regions)
    if not defective.any() or not is_normal:
        return None
    ranked, group = crossings(scores, defective, scores[defective])
    return RankedPixels(ranked, reached(group, shares / count))


def rank_defects(defects: Iterable[tuple[int, ArrayLike, float]], maps: ArrayLike) -> RankedPixels | None:
    """The pixels of all images and the overlap with their defects, a pixel ranked once for every defect that it is of.

    Arguments and errors as in spro; None where that is NaN.
    """
    scores = _checked_maps(maps)
    covered = np.zeros(scores.shape, dtype=bool)
    positives: list[NDArray[np.floating]] = []
    weights: list[NDArray[np.float64]] = []
    for image_index, mask, saturation_area in defects:
        defective = np.asarray(mask).astype(bool, copy=False)
        if not 0 <= image_index < len(scores):
            raise ValueError(f"image_index {image_index} is not in 0..{len(scores) - 1}")
        if defective.shape != scores.shape[1:]:
            raise ValueError(f"a defect's mask {list(defective.shape)} must be {list(scores.shape[1:])}")
        if not saturation_area > 0:
            raise ValueError(f"saturation_area must be positive, not {saturation_area}")
        if not defective.any():
            continue
        covered[image_index] |= defective
        inside = defective & ~np.isnan(scores[image_index])
        pixels = np.count_nonzero(inside)
        if not pixels:
            continue
        if pixels < np.count_nonzero(defective):
            defective, saturation_area = inside, min(saturation_area, pixels)
        found = np.minimum(np.arange(1, pixels + 1) / saturation_area, 1.0)
        positives.append(np.sort(scores[image_index][defective])[::-1])
        weights.append(np.diff(found, prepend=0.0))
    if not positives or not counting(covered, scores, None)[2]:
        return None
    ranked, group = crossings(scores, covered, np.concatenate(positives))
    return RankedPixels(ranked, reached(group, np.concatenate(weights) / len(positives)))


def counting(
    defective: NDArray[np.bool_], scores: NDArray[np.floating], regions: ArrayLike | None
) -> tuple[NDArray[np.bool_], ArrayLike | None, bool]:
    """Defective pixels and their regions, as of rank_pixels, without those whose score is NaN: they do not count.

    Besides, whether any pixel counts that is not defective.
    """
    if not scores.size or not np.isnan(scores.min()):
        return defective, regions, not defective.all()
    counts = ~np.isnan(scores)
    if regions is not None and (labels := np.asarray(regions)).shape == (np.count_nonzero(defective),):
        regions = labels[counts[defective]]
    return defective & counts, regions, bool((counts & ~defective).any())


def region_shares(defective: NDArray[np.bool_], given: ArrayLike | None) -> tuple[NDArray[np.float64], int]:
    """What share of its region every defective pixel is, in the order of boolean indexing [P]; the number of regions.

    Arguments and errors as of rank_pixels.
    """
    if given is not None:
        labels = np.asarray(given)
        if labels.shape != (np.count_nonzero(defective),) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"regions must be {np.count_nonzero(defective)} integers, one for every defective pixel, "
                f"not {labels.dtype} {list(labels.shape)}"
            )
        areas = np.bincount(labels)
        return 1.0 / areas[labels], int(np.count_nonzero(areas))
    shares: list[NDArray[np.float64]] = [np.empty(0)]
    regions = 0
    for mask in defective:
        if not mask.any():
            continue
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        inside = labels[mask]
        shares.append(1.0 / np.bincount(inside)[inside])
        regions += count - 1
    return np.concatenate(shares), regions


def _checked_maps(maps: ArrayLike) -> NDArray[np.floating]:
    scores = np.asarray(maps)
    if scores.ndim != 3:
        raise ValueError(f"maps must be [N, H, W], not {list(scores.shape)}")
    if scores.size and np.isinf([np.fmin.reduce(scores, axis=None), np.fmax.reduce(scores, axis=None)]).any():
        raise ValueError("maps must be finite")
    return scores


def _check_limits(*limits: float) -> None:
    for max_fpr in limits:
        if not 0 < max_fpr <= 1:
            raise ValueError(f"max_fpr must be in (0, 1], not {max_fpr}")
