"""One writer per run: a lock that the system lets go of when its holder ends, however that happens."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import click

from errors import UsageError

LOCK = ".lock"
_held_files: set[TextIO] = set()


def _let_go() -> None:
    """Close the locks in a process that was forked: what reads images outlives a killed run by seconds."""
    for file in _held_files:
        file.close()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def only_writer(folder: Path, flag: str = "--run_name") -> Iterator[None]:
    """Be the only process that writes into a folder, which a flag names.

    What a crashed process left is no lock: only the file's content is left of it, and is overwritten. Where the file
    system knows no locks, a warning says so.

    Raises:
        UsageError: another process is at it; its number and host are named.
    """
    path = folder / LOCK
    with _held(path, flag) as file:
        file.truncate(0)
        file.write(holder())
        file.flush()
        _held_files.add(file)
        try:
            yield
        finally:
            _held_files.discard(file)
            if _is_at(path, file):  # a folder may have been moved, and another process have locked the next
                path.unlink()


def refuse_where_written(folder: Path, flag: str) -> None:
    """Change nothing, but raise what only_writer would where another process writes into a folder."""
    with suppress(FileNotFoundError, NotADirectoryError), (folder / LOCK).open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _being_written(folder, file, flag) from error
        except OSError:
            pass  # no locks here, as only_writer will say


def holder() -> str:
    """What this process writes into the locks that it holds."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def _held(path: Path, flag: str) -> TextIO:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                raise _being_written(path.parent, file, flag) from error
        except OSError as error:
            click.echo(f"No lock on '{path.parent}' ({error.strerror}): let no other process write there", err=True)
            return file
        if _is_at(path, file):
            return file
        file.close()  # its holder ended and removed it between opening and locking


def _is_at(path: Path, file: TextIO) -> bool:
    """Whether a path still leads to an open file."""
    return path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino


def _being_written(folder: Path, file: TextIO, flag: str) -> UsageError:
    file.seek(0)
    other = file.read() or "another process"
    return UsageError(f"'{folder}' is being written by {other}: wait until it has ended, or choose another {flag}")
