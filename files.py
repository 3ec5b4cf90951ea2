"""Files: written under a temporary name and renamed, so that none is ever half there; JSON of unknown origin read."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from errors import DataError, first_line

PARTIAL = ".partial"


def partial(path: Path) -> Path:
    """The temporary name of a file or folder, beside it."""
    return path.with_name(f".{path.name}{PARTIAL}")


@contextmanager
def new_file(path: Path, size: int, flush: bool = True) -> Iterator[IO[bytes]]:
    """A file to write: it is there when the block has ended well, whole or not at all, also through a power cut.

    Args:
        path: where; folders above it are made.
        size: in bytes, about, for the message where there is no room.
        flush: wait until it is on the disk. Of thousands of pictures, which can be made again, that takes minutes.

    Raises:
        DataError: no room or no right to; what was there before still is.
    """
    temporary = partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())  # or a power cut leaves an empty file under the new name
        move(temporary, path) if flush else os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error, size) from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill: it is there when the block has ended well, with all that is in it, or not at all.

    Raises:
        DataError: no room or no right to.
    """
    temporary = partial(path)
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that died
    try:
        temporary.mkdir(parents=True)
        yield temporary
        move(temporary, path)
    except OSError as error:
        raise DataError(f"'{path}' cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, content: bytes, flush: bool = True) -> None:
    """Write a file whole or not at all, as new_file."""
    with new_file(path, len(content), flush) as file:
        file.write(content)


def share(source: Path, target: Path) -> None:
    """Give a file's content another name too, whole or not at all: by a link, or a copy where there are no links.

    Raises:
        DataError: as new_file.
    """
    temporary = partial(target)
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        move(temporary, target)
    except OSError:
        write_bytes(target, source.read_bytes())


def move(source: Path, target: Path) -> None:
    """Give a file or folder another name in its folder, in place of what has it; it survives a power cut."""
    os.replace(source, target)
    with suppress(OSError):  # a system or file system that flushes no folders
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def free_name(path: Path, word: str) -> Path:
    """A name beside a file or folder that nothing has, not even a link to nothing, such as run.old-1."""
    number = 1
    while os.path.lexists(name := path.with_name(f"{path.name}.{word}-{number}")):
        number += 1
    return name


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text, as write_bytes."""
    write_bytes(path, readable(text).encode())


def readable(text: str) -> str:
    """Text with the names of files in it, as UTF-8 can hold it: bytes that are none as \\xe9."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a pair, which no name of a file holds
        return text.encode("utf-8", "backslashreplace").decode()


def cannot_write(path: Path, error: OSError, size: int) -> DataError:
    """What to tell a user whose file of `size` bytes could not be written."""
    return DataError(f"'{path}' cannot be written: {error.strerror}; it needs {size:,} bytes")


def read_json(path: Path, kind: str) -> Any:
    """What a JSON file holds.

    Args:
        path: the file.
        kind: what it should be, for the message.

    Raises:
        FileNotFoundError: there is none.
        DataError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, kind, error) from error


def unreadable(path: Path, kind: str, error: Exception) -> DataError:
    """What to tell a user whose file is not what it should be."""
    return DataError(f"'{path}' cannot be read as {kind}: {first_line(error)}")
