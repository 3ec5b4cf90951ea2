"""Writing files: under a temporary name first, then renamed, so that none is ever half there."""

import os
from pathlib import Path

from errors import DataError

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
    write_bytes(path, text.encode())


def cannot_write(path: Path, error: OSError, size: int) -> DataError:
    """What to tell a user whose file of `size` bytes could not be written."""
    return DataError(f"'{path}' cannot be written: {error.strerror}; it needs {size:,} bytes")
