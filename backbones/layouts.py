"""What a layer gives, and how its output is read as a map of the image: which of its axes grow with the image, seen at
two sizes."""

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from backbones.centres import Centres

Size = tuple[int, int]
Shape = tuple[int, ...]
MOST_PREFIX = 64  # tokens that are no patches: class tokens, registers
BATCH = 2  # images that shapes are traced with


@dataclass(frozen=True)
class LayerInfo:
    """What a layer gives: its name, channels, the input pixels between neighbouring cells, rows and columns of cells.

    Attributes:
        centres: where its rows and its columns look; None of a layer that is of no network.
        signed: whether its values may be below 0; those of a layer that ends with a ReLU are not.
    """

    name: str
    channels: int
    stride: int
    grid: tuple[int, int]
    centres: tuple[Centres, Centres] | None = None
    signed: bool = True


@dataclass(frozen=True)
class Layout:
    """Where a layer's output [B, ...] holds its map.

    Attributes:
        axes: of channels, rows and columns; of tokens those of channels and of tokens.
        grid: rows and columns.
        prefix: so many tokens before those of patches are none.
    """

    axes: tuple[int, ...]
    grid: Size
    prefix: int = 0

    def fold(self, output: Tensor) -> Tensor:
        """The map [B, C, H, W] in an output."""
        maps = output.permute(0, *self.axes)
        return maps if len(self.axes) == 3 else maps[:, :, self.prefix :].unflatten(2, self.grid)


class NoMapError(Exception):
    """An output is no map, or cannot be told to be one; says why."""


def shape_of(output: Any) -> Shape | str:
    """The shape of a tensor; of anything else the name of its type."""
    return tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__


def find_layout(
    first: Shape | str,
    second: Shape | str | None,
    sizes: tuple[Size, Size],
    maps: tuple[Collection[Size], Collection[Size]] = ((), ()),
) -> Layout:
    """The layout of a layer from the shapes of its outputs for BATCH images of two sizes (height, width).

    Args:
        first: for images of the size that is wanted.
        second: for larger ones; None where the network takes no others.
        sizes: of both.
        maps: rows and columns of the maps on the way, of both, which tokens may have been.

    Raises:
        NoMapError: there is none, or there might be several.
    """
    if isinstance(first, str):
        raise NoMapError(f"gives a {first} of several outputs and no single map: choose a layer inside it")
    shown = list(first)
    if len(first) not in (3, 4) or first[0] != BATCH:
        raise NoMapError(f"gives no spatial map (its output is {shown} for {BATCH} images)")
    if second is None:
        raise NoMapError(
            f"gives {shown}, and the network takes no images of another size that would tell which axes are rows and "
            "columns: choose another backbone"
        )
    growing = [axis for axis in range(1, len(first)) if first[axis] != second[axis]]
    if len(second) != len(first) or not growing:
        raise NoMapError(f"gives no spatial map (its output is {shown} at every size of the image)")
    others = [axis for axis in range(1, len(first)) if axis not in growing]
    if len(growing) == 2 and len(others) == 1 and _are_rows_and_columns(first, second, growing, sizes):
        rows, columns = growing
        return Layout((*others, rows, columns), (first[rows], first[columns]))
    if len(growing) == 1 and len(first) == 3:
        (axis,) = growing
        counts = first[axis], second[axis]
        grids = _patch_grids(counts, sizes) or _grids_of_maps(counts, maps)
        if len(grids) == 1:
            grid, prefix = grids[0]
            return Layout((*others, axis), grid, prefix)
    raise NoMapError(
        f"gives {shown} for images of {sizes[0][0]} x {sizes[0][1]} and {list(second)} for {sizes[1][0]} x "
        f"{sizes[1][1]}, which is not clearly a map of rows and columns: choose another layer"
    )


def _are_rows_and_columns(first: Shape, second: Shape, axes: list[int], sizes: tuple[Size, Size]) -> bool:
    """Whether two axes, in this order, grow as height and width do, but for what borders add or take."""
    grown = [second[axis] / first[axis] for axis in axes]
    wanted = [after / before for before, after in zip(*sizes, strict=True)]
    if min(first[axis] for axis in axes) < 4:  # a cell more or less is much of so few
        return grown[0] <= grown[1] and all(1 < own <= 2 * factor for own, factor in zip(grown, wanted, strict=True))
    return all(abs(own / factor - 1) < 0.2 for own, factor in zip(grown, wanted, strict=True))


def _patch_grids(counts: Size, sizes: tuple[Size, Size]) -> list[tuple[Size, int]]:
    """The grids that so many tokens may be of, with the tokens before them: those of patches of one side.

    Sides that divide both sizes come first and, where there are any, alone.
    """
    found: dict[bool, dict[Size, int]] = {True: {}, False: {}}
    for side in range(1, min(sizes[0]) + 1):
        divides = all(length % side == 0 for length in sizes[0])
        for rounded in (math.floor, math.ceil):
            grids = [tuple(rounded(length / side) for length in size) for size in sizes]
            if (prefix := _prefix(counts, grids)) is not None:
                found[divides][grids[0]] = prefix
    return list((found[True] or found[False]).items())


def _grids_of_maps(counts: Size, maps: tuple[Collection[Size], Collection[Size]]) -> list[tuple[Size, int]]:
    """As _patch_grids, of maps that were seen on the way."""
    prefixes = {grids[0]: _prefix(counts, grids) for grids in itertools.product(*maps)}
    return [(grid, prefix) for grid, prefix in prefixes.items() if prefix is not None]


def _prefix(counts: Size, grids: Sequence[Size]) -> int | None:
    """How many of so many tokens of two images are none of two grids, where it is as many of both and few."""
    first, second = (count - math.prod(grid) for count, grid in zip(counts, grids, strict=True))
    return first if first == second and 0 <= first <= MOST_PREFIX else None
