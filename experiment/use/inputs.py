"""What predict reads: files, folders or a stream of paths; images by threads, a bounded number ahead."""

import io
import math
import sys
from collections import deque
from collections.abc import Iterator
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
    read_image,
    refuse_video,
    require_images,
    videos_in,
)
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
        tensor: the model's input, uint8 [3, H, W], once it is read.
        brightness: of that.
        size: width and height of the file's image.
        original: its pixels, where they are drawn.
        error: what is wrong with it.
    """

    path: str
    name: Path
    tensor: Tensor | None = None
    brightness: float = math.nan
    size: tuple[int, int] = (0, 0)
    original: NDArray[np.uint8] | None = None
    error: str = ""


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
        for path, name in self._found:
            yield Item(str(path), names.take(name))

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
                yield path, name.parent / Path(name.name).stem


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


def images_at_once(tiling: Tiling, batch_size: int) -> tuple[int, int]:
    """How many images are predicted at once in tiles, `batch_size` together, and how many are read before they are.

    One that has more tiles is large, and takes long: no other is read beside it.
    """
    images = tiling.images_in(batch_size)
    return images, 1 if tiling.count > batch_size else 2 * images


def read_ahead(
    items: Iterator[Item], transform: ImageTransform, threads: int, ahead: int, keep_originals: bool
) -> Iterator[Item]:
    """The items with their pixels or what is wrong with them, in order.

    Args:
        items: to read.
        transform: into the model's input.
        threads: so many read.
        ahead: so many items at most are read before they are asked for.
        keep_originals: whether the images' own pixels are kept too.
    """

    def read(item: Item) -> Item:
        try:
            path = Path(item.path)
            if path.is_dir():
                raise DataError(f"'{path}' is a folder, and a path on standard input is an image: give it as argument")
            refuse_video(path)
            image = read_image(path, transform.reading)
            tensor = transform.pixels(image)
            original = np.asarray(image) if keep_originals else None
            return Item(item.path, item.name, tensor, brightness_of(tensor), image.size, original)
        except DataError as error:
            return Item(item.path, item.name, error=str(error))
        except Exception as error:  # a damaged file may raise anything, a large one has no room
            return Item(item.path, item.name, error=f"'{item.path}' cannot be read: {first_line(error)}")

    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Item]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
