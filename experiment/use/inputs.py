"""What predict reads: files, folders or a stream of paths; images by threads, a bounded number ahead."""

import io
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datasets import (
    ImageTransform,
    Tiling,
    brightness_of,
    images_in,
    pixels_of_interest,
    read_image,
    refuse_video,
    require_images,
    videos_in,
)
from datasets.interest import Interest
from errors import DataError, UsageError, first_line
from experiment.show.names import Names
from experiment.use.folder import holds_drawings

STDIN = "-"


@dataclass(frozen=True)
class Item:
    """An image to predict.

    Attributes:
        path: as given.
        name: of what is written for it, without an ending; no other item's.
        relative: its path below the folder that was given, or its name; other items may have the same.
        tensor: the model's input, uint8 [3 or 4, H, W], once it is read; see ImageTransform.pixels.
        brightness: of that.
        size: width and height of the file's image.
        original: its pixels, where they are drawn.
        error: what is wrong with it.
        seconds: that reading took.
    """

    path: str
    name: Path
    relative: Path = Path()
    tensor: Tensor | None = None
    brightness: float = math.nan
    size: tuple[int, int] = (0, 0)
    original: NDArray[np.uint8] | None = None
    error: str = ""
    seconds: float = 0.0


MaskOf = Callable[[Item], tuple[Interest, Path]]  # the mask of an item, and where it is


class Inputs:
    """Paths to predict, as items; pictures that predict or a run wrote are none of them.

    Args:
        paths: files and folders, or none or STDIN for a path a line on standard input.

    Attributes:
        total: their number; None where they come on standard input.
        passed_over: how many pictures of predict's or a run's own were met so far.

    Raises:
        UsageError: no path, or one that does not exist.
        DataError: a folder without images.
    """

    def __init__(self, paths: tuple[str, ...]) -> None:
        self.passed_over = 0
        self.total: int | None = None
        if paths in ((), (STDIN,)):
            self._found = self._without_drawn(_of_lines())
            return
        found = list(self._without_drawn(_of_paths(paths)))
        if not found:
            raise DataError(f"nothing to predict: {self.said}")
        self._found, self.total = iter(found), len(found)

    def __iter__(self) -> Iterator[Item]:
        names = Names()
        for path, relative in self._found:
            yield Item(str(path), names.take(relative.parent / relative.stem), relative)

    @property
    def said(self) -> str:
        """What was passed over, in words; empty where nothing was."""
        return f"{self.passed_over} pictures that predict or a run drew are left out" if self.passed_over else ""

    def _without_drawn(self, pairs: Iterator[tuple[Path, Path]]) -> Iterator[tuple[Path, Path]]:
        of_drawings = lru_cache(maxsize=4096)(holds_drawings)  # of many images in few folders
        for path, name in pairs:
            if of_drawings(path.parent):
                self.passed_over += 1
            else:
                yield path, name


def _of_lines() -> Iterator[tuple[Path, Path]]:
    """The paths on standard input, in whatever encoding file names have, each with the name of what is written."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=sys.getfilesystemencoding(), errors=sys.getfilesystemencodeerrors())
    lines = (line.rstrip("\r\n") for line in sys.stdin if line.strip())
    first = None if sys.stdin.isatty() else next(lines, None)
    if first is None:
        raise UsageError("predict needs images: give files or folders, or pipe paths into it, one a line")
    return ((Path(line), Path(Path(line).name)) for line in chain([first], lines))


def _of_paths(paths: tuple[str, ...]) -> Iterator[tuple[Path, Path]]:
    """The files that are named, and those in folders, each with the name of what is written."""
    for path in map(Path, paths):
        if path.is_dir():
            inside = images_in(path, recursive=True)
            if not inside and (videos := videos_in(path)):
                refuse_video(videos[0])
            require_images(inside, path)
            yield from ((one, one.relative_to(path)) for one in inside)
        elif path.exists():
            yield path, Path(path.name)
        else:
            raise UsageError(f"no such file or folder: '{path}'")


def allowing(transform: ImageTransform, max_pixels: int | None) -> ImageTransform:
    """The same that reads images of up to so many pixels; None: as it is."""
    if max_pixels is None:
        return transform
    return replace(transform, reading=replace(transform.reading, max_pixels=max_pixels))


def read_item(item: Item, transform: ImageTransform, keep_original: bool, mask_of: MaskOf | None = None) -> Item:
    """An item with its pixels, or with what is wrong with it; mask_of gives its mask of interest, and where it is."""
    try:
        start = time.perf_counter()
        path = Path(item.path)
        if path.is_dir():
            raise DataError(f"'{path}' is a folder, and a path on standard input is an image: give it as argument")
        refuse_video(path)
        image = read_image(path, transform.reading)
        if mask_of is None:
            tensor = transform.pixels(image)
        else:
            tensor = pixels_of_interest(transform, image, *mask_of(item), path)
        original = np.asarray(image) if keep_original else None
        known = {"tensor": tensor, "brightness": brightness_of(tensor), "size": image.size, "original": original}
        return replace(item, seconds=time.perf_counter() - start, **known)
    except DataError as error:
        return replace(item, error=str(error))
    except Exception as error:  # a damaged file may raise anything, a large one has no room
        return replace(item, error=f"'{item.path}' cannot be read: {first_line(error)}")


def images_at_once(tiling: Tiling, batch_size: int) -> tuple[int, int]:
    """How many images are predicted at once in tiles, `batch_size` together, and how many are read before they are.

    One that has more tiles is large, and takes long: no other is read beside it.
    """
    images = tiling.images_in(batch_size)
    return images, 1 if tiling.count > batch_size else 2 * images


def read_ahead(
    items: Iterator[Item],
    transform: ImageTransform,
    threads: int,
    ahead: int,
    keep_originals: bool,
    mask_of: MaskOf | None = None,
) -> Iterator[Item]:
    """The items with their pixels or what is wrong with them, in order.

    Args:
        items: to read.
        transform: into the model's input.
        threads: so many read.
        ahead: so many items at most are read before they are asked for.
        keep_originals: whether the images' own pixels are kept too.
        mask_of: see read_item.
    """
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Item]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(read_item, item, transform, keep_originals, mask_of))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
