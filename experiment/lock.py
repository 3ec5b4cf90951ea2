"""One writer per run: a lock that the system lets go of when its holder ends, however that happens."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import click

from errors import UsageError

LOCK = ".lock"


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Be the only process that writes into a run's folder.

    What a crashed process left is no lock: only the file's content is left of it, and is overwritten. Where the file
    system knows no locks, a warning says so.

    Raises:
        UsageError: another process is at it; its number and host are named.
    """
    with _held(folder / LOCK) as file:
        file.truncate(0)
        file.write(holder())
        file.flush()
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def holder() -> str:
    """What this process writes into the locks that it holds."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def _held(path: Path) -> TextIO:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            other = file.read() or "another process"
            file.close()
            raise UsageError(
                f"'{path.parent}' is being written by {other}: wait until it has ended, or choose another --run_name"
            ) from error
        except OSError as error:
            click.echo(f"No lock on '{path.parent}' ({error.strerror}): let no other process write there", err=True)
            return file
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            return file
        file.close()  # its holder ended and removed it between opening and locking
