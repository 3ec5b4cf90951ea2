"""A folder that is watched: each image that comes into it, once, as soon as it is there as a whole."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

import click

from datasets import ImageTransform, images_in
from errors import UsageError
from experiment.record.sheets import unquoted
from experiment.show.names import Names
from experiment.use.folder import FILES, earlier_rows, holds_drawings
from experiment.use.inputs import Item, MaskOf, read_item
from files import readable

SECONDS = 1.0  # between two looks
PATIENCE = 10  # looks that a file may stay as it is and be no image, before it is one that cannot be read

State = tuple[int, int]  # a file's size and time


@dataclass
class _Waiting:
    """A file that is not taken yet: how it was at the last look, and for how many looks it has been so."""

    state: State
    looks: int = 0


class Arrivals:
    """The images of a folder and of all folders below it, one after another, those that lie there already first.

    A file is taken once its size and time are the same at two looks and it can be decoded; one that cannot for
    PATIENCE looks is taken as it is, with its error. One that changes later is another image. Where the folder
    vanishes, that is said once, and it is waited for.

    Args:
        folder: to watch.
        read: an item with its pixels, or its error.
        known: paths, as files.readable gives them, that were taken before: such are not again if they are there now.
        stop: ends it, when it is set.

    Raises:
        UsageError: no such folder.
    """

    def __init__(
        self, folder: Path, read: Callable[[Item], Item], known: Iterable[str] = (), stop: Event | None = None
    ) -> None:
        if not folder.is_dir():
            raise UsageError(f"--watch '{folder}' is not a folder: expected one that images come into")
        self.folder = folder
        self.read = read
        self.stop = stop or Event()
        self._place = _place(folder)
        self._is_readable = True
        self._known = set(known)
        self._taken: dict[Path, State] = {}
        self._waiting: dict[Path, _Waiting] = {}

    def __iter__(self) -> Iterator[Item]:
        """The images with their pixels or what is wrong with them; their names are those below the folder."""
        while True:
            for path in self._ready():
                if self.stop.is_set():
                    return
                relative = path.relative_to(self.folder)
                item = self.read(Item(str(path), relative.parent / relative.stem, relative))
                if item.error and self._waiting[path].looks < PATIENCE:
                    continue
                self._taken[path] = self._waiting.pop(path).state
                yield item
            if self.stop.wait(SECONDS):
                return

    def _ready(self) -> list[Path]:
        """The files that did not change since the last look."""
        found = self._look()
        if found is None:
            return []
        if _place(self.folder) == self._place:  # what is mounted there may have gone, and come again
            self._taken = {path: state for path, state in self._taken.items() if path in found}
        self._waiting = {path: own for path, own in self._waiting.items() if path in found}
        ready = []
        for path, state in found.items():
            if readable(str(path)) in self._known:
                self._taken[path] = state
            if self._taken.get(path) == state:
                continue
            own = self._waiting.setdefault(path, _Waiting(state))
            own.looks = own.looks + 1 if own.state == state else 1
            own.state = state
            if own.looks > 1:
                ready.append(path)
        self._known.clear()  # a later file of such a name is another
        return ready

    def _look(self) -> dict[Path, State] | None:
        """All image files and their states; None where the folder is not there."""
        try:
            os.scandir(self.folder).close()
            drawn: dict[Path, bool] = {}
            found = {}
            for path in images_in(self.folder, recursive=True):
                if path.parent not in drawn:
                    drawn[path.parent] = holds_drawings(path.parent)
                if not drawn[path.parent] and path.is_file():
                    status = path.stat()
                    found[path] = (status.st_size, status.st_mtime_ns)
        except OSError as error:
            if _place(self.folder) is None:
                self._say(False, f"'{self.folder}' is not there any more: waiting for it")
            elif not isinstance(error, FileNotFoundError):  # else something in it went while it was looked at
                self._say(False, f"'{error.filename or self.folder}' cannot be read ({error.strerror}): trying again")
            return None
        self._say(True, f"'{self.folder}' is there again")
        return found

    def _say(self, is_readable: bool, text: str) -> None:
        """Tell the user once."""
        if is_readable != self._is_readable:
            click.echo(readable(text), err=True)
        self._is_readable = is_readable


def _place(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another of its name; None where there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def watched(
    folder: Path, out: Path, transform: ImageTransform, keep_originals: bool, mask_of: MaskOf | None = None
) -> Iterator[Item]:
    """The images that come into a folder, but those that a row in `out` is of; none has the name of another.

    Args:
        folder: to watch.
        out: where predict writes.
        transform, keep_originals, mask_of: as in read_ahead.
    """
    names, known = Names(), set()
    for row in earlier_rows(out):
        known.add(unquoted(row["path"]))
        for written in filter(None, (row.get(column) for column in FILES)):
            names.take(Path(*Path(written).with_suffix("").parts[1:]))

    def read(item: Item) -> Item:
        return read_item(item, transform, keep_originals, mask_of)

    for item in Arrivals(folder, read, known):
        yield replace(item, name=names.take(item.name))
