"""Tiles: images cut into parts of one size, and what is drawn of the parts put together again at the images' size."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of an image lie: in rows from its upper left corner, the last of a row or column moved inwards.

    One tile that is the whole image stands for images that are not cut; samples of any shape pass it as they are.

    Attributes:
        image, tile: height and width in pixels.
        overlap: the share of its height and width that a tile has in common with the next, to whole pixels; the last of
            a row or column may have more.

    Raises:
        ValueError: a tile larger than the image, or an overlap that is negative or not below 1.
    """

    image: Size
    tile: Size
    overlap: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 < own <= whole for own, whole in zip(self.tile, self.image, strict=True)):
            raise ValueError(f"tiles of {self.tile} cannot be cut from images of {self.image}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"the overlap is {self.overlap}")

    @cached_property
    def starts(self) -> tuple[list[int], list[int]]:
        """The first row of every row of tiles, and the first column of every column of them."""
        rows, columns = (
            [*range(0, whole - side, max(1, side - round(side * self.overlap))), whole - side]
            for whole, side in zip(self.image, self.tile, strict=True)
        )
        return rows, columns

    @property
    def count(self) -> int:
        """How many tiles an image has."""
        rows, columns = self.starts
        return len(rows) * len(columns)

    def box(self, number: int) -> tuple[slice, slice]:
        """The rows and columns of a tile, from 0, row by row."""
        rows, columns = self.starts
        row, column = divmod(number, len(columns))
        top, left = rows[row], columns[column]
        return slice(top, top + self.tile[0]), slice(left, left + self.tile[1])

    def cut(self, image: Tensor, number: int) -> Tensor:
        """A tile [..., h, w] of an image [..., H, W], which shares its memory."""
        return image if self.count == 1 else image[(..., *self.box(number))]

    def images_in(self, tiles: int) -> int:
        """How many images have at most so many tiles together; at least one."""
        return max(1, tiles // self.count)

    def numbers(self, images: NDArray[np.integer]) -> NDArray[np.integer]:
        """The places of the tiles of images, by the images' places [N], among those of all images: [N count]."""
        return (np.asarray(images, np.intp)[:, None] * self.count + np.arange(self.count)).ravel()

    def batches(self, images: Tensor, size: int) -> Iterator[Tensor]:
        """The tiles of images [B, ..., H, W], image by image, at most `size` in a batch [b, ..., h, w].

        Raises:
            ValueError: images of another size.
        """
        if self.count == 1:
            yield from images.split(size)
            return
        if images.shape[-2:] != self.image:
            raise ValueError(f"expected images of {list(self.image)}, not {list(images.shape[-2:])}")
        total = len(images) * self.count
        for start in range(0, total, size):
            places = (divmod(i, self.count) for i in range(start, min(start + size, total)))
            yield torch.stack([self.cut(images[image], number) for image, number in places])


class Stitch:
    """The map of an image, of which those of its tiles are laid one by one.

    Without overlap each is put in its place; where the last of a row or column was moved over the one before, it lies
    above. With overlap the map is their mean, by the weight sin^2 (pi (i + 1/2) / n) of the i-th of a tile's n rows,
    times that of the column: it goes to zero at the tile's border, so that no seam is seen.

    Attributes:
        map: float32 [H, W], complete when all tiles are laid.
    """

    def __init__(self, tiling: Tiling) -> None:
        self.tiling = tiling
        self.map = (torch.zeros if tiling.overlap else torch.empty)(tiling.image)

    def lay(self, number: int, tile_map: Tensor) -> None:
        """Lay a tile's map, float32 [h, w] of the CPU; each tile once."""
        target = self.map[self.tiling.box(number)]
        if not self.tiling.overlap:
            target.copy_(tile_map)
            return
        row, column = divmod(number, len(self.tiling.starts[1]))
        rows, columns = self._weights
        target.add_(tile_map * rows[row][:, None] * columns[column])

    @cached_property
    def _weights(self) -> tuple[Tensor, Tensor]:
        """Of every row of tiles the weights [rows, h] of its lines, and of columns [columns, w]."""
        tiling = self.tiling
        rows, columns = map(_shares, tiling.starts, tiling.tile, tiling.image)
        return rows, columns


def _shares(starts: list[int], side: int, length: int) -> Tensor:
    """Along one axis the weights [N, side] of tiles, which have the sum 1 wherever they lie."""
    window = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    total = np.zeros(length)
    for start in starts:
        total[start : start + side] += window
    return torch.from_numpy(np.stack([window / total[start : start + side] for start in starts])).float()


def spread(image: Tensor) -> float:
    """The standard deviation of an image's grey values, 0 to 127.5, of RGB pixels uint8 [3, h, w]."""
    grey = cv2.cvtColor(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2GRAY)
    return float(cv2.meanStdDev(grey)[1].item())
