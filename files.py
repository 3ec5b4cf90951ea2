"""Files: written under a temporary name and renamed, so that none is ever half there; JSON of unknown origin read."""

import json
import os
from pathlib import Path
from typing import Any

from errors import DataError, first_line

PARTIAL = ".partial"


def partial(path: Path) -> Path:
    """The temporary name of a file or folder, beside it."""
    return path.with_name(f".{path.name}{PARTIAL}")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; folders above it are made.

    Raises:
        DataError: no room or no right to; what was there before still is.
    """
    temporary = partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error, len(content)) from error


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
