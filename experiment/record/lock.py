"""One writer per run: a lock that the system lets go of when its holder ends, however that happens."""

import io
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import click
from filelock import lock_descriptor

from errors import UsageError

LOCK = ".lock"
WHO = "process"
_held: set[io.FileIO] = set()


def _close_all() -> None:
    """Close the locks in a process that was forked: what reads images outlives a killed run by seconds."""
    for file in _held:
        file.close()


if hasattr(os, "register_at_fork"):  # where processes fork
    os.register_at_fork(after_in_child=_close_all)


@contextmanager
def only_writer(folder: Path, flag: str = "--run_name") -> Iterator[Callable[[], None]]:
    """Be the only process that writes into a folder, which a flag names.

    What a crashed process left is no lock: only the file's content is left of it, and is overwritten. Where the file
    system knows no locks, a warning says so.

    Yields:
        A function that removes the lock before the end, for who moves the folder.

    Raises:
        UsageError: another process is at it; its number and host are named.
    """
    path = folder / LOCK
    file = _locked(path, flag)
    _held.add(file)
    try:
        file.truncate(0)
        file.write(holder().encode())
        yield partial(_let_go, path, file)
    finally:
        _let_go(path, file)


def refuse_where_written(folder: Path, flag: str) -> None:
    """Change nothing, but raise what only_writer would where another process writes into a folder."""
    with suppress(FileNotFoundError, NotADirectoryError), (folder / LOCK).open("rb") as file:
        try:
            is_free = lock_descriptor(file.fileno(), blocking=False)
        except OSError:  # no locks here, as only_writer will say
            return
        if not is_free:
            raise _being_written(folder, flag)


def holder() -> str:
    """What this process writes into the locks that it holds."""
    return f"{WHO} {os.getpid()} on {socket.gethostname()}"


def holder_of(folder: Path) -> str:
    """What stands in the lock of a folder, as holder wrote it; empty where there is none or nothing in it."""
    try:
        with (folder / LOCK).open("rb") as file:
            file.seek(1)  # on Windows nobody else can read the byte that is locked; it is always the same
            rest = file.read().decode(errors="replace")
    except OSError:
        return ""
    return rest and WHO[0] + rest


def _locked(path: Path, flag: str) -> io.FileIO:
    while True:
        file = path.open("ab+", buffering=0)
        try:
            if not lock_descriptor(file.fileno(), blocking=False):
                file.close()
                raise _being_written(path.parent, flag)
        except OSError as error:
            click.echo(f"No lock on '{path.parent}' ({error.strerror}): let no other process write there", err=True)
            return file
        if _is_at(path, file):
            return file
        file.close()  # its holder ended and removed it between opening and locking


def _let_go(path: Path, file: io.FileIO) -> None:
    """Remove a lock once, if it is still there: a folder may have been moved, and another process have locked the next.

    It is removed before it is closed, where the system removes files that are open: nobody else can have it by then.
    """
    if file.closed:
        return
    with file:
        is_there = _is_at(path, file)
        if is_there:
            with suppress(PermissionError):
                path.unlink()
                is_there = False
        _held.discard(file)
    if is_there:
        with suppress(OSError):  # another process has it
            path.unlink()


def _is_at(path: Path, file: io.FileIO) -> bool:
    """Whether a path still leads to an open file."""
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _being_written(folder: Path, flag: str) -> UsageError:
    other = holder_of(folder) or f"another {WHO}"
    return UsageError(f"'{folder}' is being written by {other}: wait until it has ended, or choose another {flag}")
