"""Files of text that grow while predict goes on, by whole pieces: whatever ends it, they are in place and valid."""

import csv
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from errors import UsageError
from experiment.record.sheets import BOM
from files import cannot_write, move, partial, readable, write_text

BLOCK = 1 << 16  # bytes


@contextmanager
def growing(path: Path, start: str, end: Callable[[], str] = str) -> Iterator[Callable[[str], None]]:
    """A file that is written piece by piece, with a byte order mark before text that is not ASCII.

    Args:
        path: where, once the block has ended, in whatever way, with all pieces that were written as a whole.
        start: what stands before them.
        end: gives what stands behind them.

    Raises:
        DataError: no room or no right to.
    """
    temporary = partial(path)
    complete, is_ascii = 0, True
    file = temporary.open("wb", buffering=0)

    def write(text: str) -> None:
        nonlocal complete, is_ascii
        text = readable(text)
        left = memoryview(text.encode())
        try:
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            raise cannot_write(path, error, len(left)) from error
        complete, is_ascii = file.tell(), is_ascii and text.isascii()

    try:
        write(start)
        yield write
    finally:
        with file:
            file.truncate(complete)
            file.seek(complete)
            write(end())
        if not is_ascii:
            _mark(temporary)
        move(temporary, path)


@contextmanager
def appending(path: Path, start: str) -> Iterator[Callable[[str], None]]:
    """As growing, of a table that grows at its place, row by row, behind those that it has already.

    Raises:
        UsageError: it starts otherwise.
        DataError: as growing.
    """
    if not path.exists() and partial(path).exists():  # of a process that was killed
        partial(path).rename(path)
    is_marked = path.exists() and _cut_to_whole_lines(path, start)

    def write(text: str) -> None:
        nonlocal is_marked
        if not path.exists():  # at first, or where it was moved away since
            write_text(path, start)
            is_marked = False
        text = readable(text)
        if not (is_marked or text.isascii()):
            _mark(path)
            is_marked = True
        try:
            with path.open("ab", buffering=0) as file:
                end, left = file.tell(), memoryview(text.encode())
                try:
                    while left:
                        left = left[file.write(left) :]
                except BaseException:
                    file.truncate(end)
                    raise
        except OSError as error:
            raise cannot_write(path, error, len(text)) from error

    write("")
    yield write


def _cut_to_whole_lines(path: Path, start: str) -> bool:
    """Take away a last line that was half written; whether the file has a byte order mark.

    Raises:
        UsageError: its first line is another.
    """
    with path.open("rb+") as file:
        first = file.readline()
        if first.decode("utf-8-sig", "replace") != start:
            raise UsageError(f"'{path}' has other columns than the rows that are to be added: choose another --out")
        end = length = file.seek(0, os.SEEK_END)
        while end > len(first):
            begin = max(len(first), end - BLOCK)
            file.seek(begin)
            if (found := file.read(end - begin).rfind(b"\n")) >= 0:
                end = begin + found + 1
                break
            end = begin
        if end < length:
            file.truncate(end)
    return first.startswith(BOM.encode())


def csv_lines(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as lines of a CSV file."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _mark(path: Path) -> None:
    """Put a byte order mark before a file's text, by which spreadsheets know it as UTF-8; no room leaves it without."""
    marked = partial(path)
    try:
        with path.open("rb") as file, marked.open("wb") as copy:
            copy.write(BOM.encode())
            shutil.copyfileobj(file, copy)
        os.replace(marked, path)
    except OSError:
        marked.unlink(missing_ok=True)
