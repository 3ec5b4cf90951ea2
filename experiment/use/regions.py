"""Regions of an anomaly map: connected pixels above the pixel threshold, in the coordinates of the image.

Coordinates are in pixels from the image's upper left corner: the first pixel reaches from 0 to 1, its centre is 0.5.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets import ImageTransform
from detection import is_anomalous

Window = tuple[int, int, int, int]  # left, top, right and bottom of what the network saw


@dataclass(frozen=True)
class Region:
    """A region.

    Attributes:
        box: left, top, width and height.
        area: in pixels.
        share: of the image, in percent.
        centre: x and y of its centroid.
        mean, highest: of its pixel scores.
        touches_border: whether it reaches the edge of what the network saw, beyond which it may go on.
    """

    box: tuple[int, int, int, int]
    area: int
    share: float
    centre: tuple[float, float]
    mean: float
    highest: float
    touches_border: bool


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of an image, the one with the highest score first.

    Attributes:
        found: they.
        labels: int32 [H, W], of each pixel the number of its region, from 1; 0 elsewhere.
        window: of what the network saw.
    """

    found: list[Region]
    labels: NDArray[np.int32]
    window: Window

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where they are, [H, W]."""
        return self.labels > 0

    def seen(self, side: int) -> NDArray[np.bool_]:
        """The same at the size of the model's map, [side, side]."""
        left, top, right, bottom = self.window
        inside = self.mask[top:bottom, left:right].astype(np.uint8)
        return cv2.resize(inside, (side, side), interpolation=cv2.INTER_NEAREST) > 0

    def rings(self, number: int) -> list[NDArray[np.int32]]:
        """The outlines [N, 2] (x, y) of a region along the edges of its pixels: the outer one, then those of its holes.

        The last point is not the first again. The area that they enclose is the region's.
        """
        left, top, width, height = self.found[number - 1].box
        inside = self.labels[top : top + height, left : left + width] == number
        return [ring + np.array([left, top], np.int32) for ring in outlines(inside)]


def find_regions(
    anomaly_map: NDArray[np.float32], transform: ImageTransform, threshold: float, min_area: int
) -> Regions:
    """The 8-connected regions of pixels above a threshold.

    Args:
        anomaly_map: [H, W] of the image's size; NaN where the network did not look.
        transform: that the image went through.
        threshold: of pixel scores.
        min_area: in pixels, of the smallest that counts.
    """
    height, width = anomaly_map.shape
    window = transform.window(width, height)
    above = is_anomalous(anomaly_map, threshold)
    count, labels, stats, centres = cv2.connectedComponentsWithStats(above.view(np.uint8), connectivity=8)
    owners, values = labels[above], anomaly_map[above]
    sums = np.bincount(owners, values.astype(np.float64), minlength=count)
    highest = np.full(count, -np.inf, np.float32)
    np.maximum.at(highest, owners, values)
    areas = stats[:, cv2.CC_STAT_AREA]
    kept = np.flatnonzero(areas >= min_area)
    kept = kept[kept > 0]  # 0 are all other pixels
    kept = kept[np.argsort(-highest[kept], kind="stable")]
    numbers = np.zeros(count, np.int32)
    numbers[kept] = np.arange(len(kept)) + 1
    found = [
        Region(
            box=(left, top, own_width, own_height),
            area=area,
            share=100 * area / (width * height),
            centre=(float(x) + 0.5, float(y) + 0.5),
            mean=float(sums[i] / area),
            highest=float(highest[i]),
            touches_border=left <= window[0]
            or top <= window[1]
            or left + own_width >= window[2]
            or top + own_height >= window[3],
        )
        for i in kept
        for (left, top, own_width, own_height, area), (x, y) in [(stats[i].tolist(), centres[i])]
    ]
    return Regions(found, numbers[labels], window)


def outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.int32]]:
    """The outlines [N, 2] (x, y) of one 8-connected region [H, W] along the edges of its pixels, the outer one first.

    OpenCV's contours run through the centres of pixels. With every pixel doubled, those of its left and upper half are
    even and lie on its near edge, those of the other half are odd and lie on the far one.
    """
    doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    rings, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    order = np.argsort(hierarchy[0, :, 3], kind="stable")  # the outer one has no parent: -1
    return [_corners((rings[i][:, 0] + 1) // 2) for i in order]


def _corners(ring: NDArray[np.int32]) -> NDArray[np.int32]:
    """A closed line [N, 2] without points that are there twice in a row, or between others on a straight line."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
