"""Files of text that grow while predict goes on, by whole pieces: whatever ends it, they are in place and valid."""

import csv
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiment.record.sheets import BOM
from files import cannot_write, move, partial, readable


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
