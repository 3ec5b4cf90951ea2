"""Defects at the size of anomaly maps: regions are found at full size, and none that is seen is lost on the way."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.decode import read_header
from datasets.masks import read_mask
from datasets.sample import Sample, Saturation
from datasets.transforms import ImageTransform
from errors import DataError


class Defect(NamedTuple):
    """One defect: the index of its image, its mask bool [H, W], and the area in pixels that it saturates at."""

    image_index: int
    mask: NDArray[np.bool_]
    saturation_area: float


def read_regions(sample: Sample, transform: ImageTransform) -> NDArray[np.int32]:
    """The regions of a sample's masks together, as regions_seen gives them.

    Raises:
        DataError: a mask that cannot be read.
    """
    return regions_of(read_masks(sample), transform)


def read_masks(sample: Sample) -> list[NDArray[np.bool_]]:
    """The masks of a sample at full size, True where defective.

    Raises:
        DataError: a mask that cannot be read.
    """
    return [read_mask(path).values > 0 for path in sample.mask_paths]


def regions_of(masks: Sequence[NDArray[np.bool_]], transform: ImageTransform) -> NDArray[np.int32]:
    """The regions of masks of one image together, as regions_seen gives them."""
    if not masks:
        return np.zeros((transform.imagesize,) * 2, np.int32)
    height, width = max(mask.shape for mask in masks)
    united = np.zeros((height, width), np.uint8)
    for mask in masks:
        united |= cv2.resize(mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    return regions_seen(united, transform)


def regions_seen(mask: NDArray[np.uint8], transform: ImageTransform) -> NDArray[np.int32]:
    """The regions of a mask [h, w], non-zero where defective, as an anomaly map shows them.

    A region is an 8-connected component at full size. The network's geometry brings it to the map's size by nearest
    neighbour; one that falls between the pixels keeps a single one. What is cropped away is gone.

    Returns:
        int32 [imagesize, imagesize], 0 where nothing is defective, else the region's number.
    """
    return _reduced(cv2.connectedComponents(mask, connectivity=8)[1], transform)


def region_labels(samples: Sequence[Sample], transform: ImageTransform) -> NDArray[np.int32]:
    """What metrics.pixel_metrics takes as `regions`: of all samples the regions of their defective pixels, [P].

    Raises:
        DataError: as read_regions.
    """
    found: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    last = 0
    for sample in samples:
        if sample.mask_paths:
            regions = read_regions(sample, transform)
            found.append(regions[regions > 0] + last)
            last += int(regions.max())
    return np.concatenate(found)


def read_defects(
    samples: Sequence[Sample], saturation: Mapping[int, Saturation], transform: ImageTransform
) -> list[Defect]:
    """Every defect for metrics.spro, but those that were cropped out.

    Args:
        samples: images whose masks hold a defect each.
        saturation: by the pixel value of a mask; empty where a dataset defines none, and then there are no defects.
        transform: what brings the images to the size of their maps.

    Returns:
        A defect per mask file, its area in pixels of its mask.

    Raises:
        DataError: a mask that cannot be read or has a pixel value that `saturation` lacks.
    """
    defects: list[Defect] = []
    for index, sample in enumerate(samples if saturation else []):
        for path in sample.mask_paths:
            values = read_mask(path).values
            rule = _saturation_of(path, values, saturation)
            mask = _reduced((values > 0).astype(np.int32), transform) > 0
            area = float(mask.sum())
            if area:
                size = read_header(sample.image_path, transform.reading)[:2]
                unit = area if rule.relative else transform.area_scale(*size)
                defects.append(Defect(index, mask, min(rule.threshold * unit, area)))
    return defects


def _saturation_of(path: Path, values: NDArray[np.integer], saturation: Mapping[int, Saturation]) -> Saturation:
    found = np.unique(values[values > 0]).tolist()
    if len(found) != 1 or found[0] not in saturation:
        shown = ", ".join(map(str, found)) or "none but 0"
        raise DataError(f"mask '{path}' has pixel values {shown}: expected one that defects_config.json defines")
    return saturation[found[0]]


def _reduced(labels: NDArray[np.int32], transform: ImageTransform) -> NDArray[np.int32]:
    """Regions 1, 2, ... at full size [h, w], as the network sees them; each of which it sees a part has a pixel."""
    small = transform.nearest(Image.fromarray(labels))
    counts = np.bincount(small.ravel(), minlength=int(labels.max()) + 1)
    lost = counts == 0
    lost[0] = False
    if not lost.any():
        return small
    small, side = small.copy(), transform.imagesize
    left, top, right, bottom = transform.window(*labels.shape[::-1])
    rows, columns = np.nonzero(lost[labels])
    is_seen = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    rows, columns = rows[is_seen], columns[is_seen]
    order = np.argsort(labels[rows, columns], kind="stable")
    owners = labels[rows, columns][order]
    cells = np.stack([(rows - top + 0.5) / (bottom - top), (columns - left + 0.5) / (right - left)], axis=1)[order]
    for region, own in zip(*_grouped(owners, cells * side), strict=True):
        centre = own.mean(axis=0)
        cell = _nearest_free(np.unique(own.astype(int), axis=0), centre, small, counts)
        if cell is None:  # others fill all the pixels that this region has
            cell = _nearest_free(np.argwhere(np.ones_like(small)), centre, small, counts)
        if cell is not None:
            counts[small[cell]] -= 1
            small[cell] = region
            counts[region] = 1
    return small


def _grouped(owners: NDArray[np.int32], cells: NDArray[np.float64]) -> tuple[list[int], list[NDArray[np.float64]]]:
    """The regions that sorted owners [n] name, and the cells [n, 2] of each."""
    regions, starts = np.unique(owners, return_index=True)
    return regions.tolist(), np.split(cells, starts[1:]) if len(regions) else []


def _nearest_free(
    cells: NDArray[np.integer], centre: NDArray[np.float64], small: NDArray[np.int32], counts: NDArray[np.integer]
) -> tuple[int, int] | None:
    """Of cells [n, 2] the one nearest to a point that no region has or, if none, whose region has others as well."""
    owners = small[cells[:, 0], cells[:, 1]]
    is_free = (owners == 0) | (counts[owners] > 1)
    if not is_free.any():
        return None
    cells, owners = cells[is_free], owners[is_free]
    distances = np.linalg.norm(cells + 0.5 - centre, axis=1)
    row, column = cells[np.lexsort((distances, owners > 0))[0]]
    return int(row), int(column)
