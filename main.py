"""Train and evaluate detectors of industrial anomalies from the command line.

python main.py [run options] net [model options] dataset [data options] NAME [DATA_PATH]
"""

import gc
import io
import os
import signal
import sys
import traceback
from typing import Any

import click

from cli import main
from errors import DataError, Interrupted, UsageError
from files import readable

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch, huge pages: large temporaries cost a third on Linux


def stop_on_signals() -> None:
    """End by Interrupted on Ctrl-C and SIGTERM; the processes that read images leave it to this one to end them."""
    owner = os.getpid()

    def stop(number: int, _: Any) -> None:
        if os.getpid() == owner:
            raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def said_of(error: BaseException) -> tuple[str, int]:
    """What a user is told of an error, and the exit code."""
    match error:
        case click.ClickException():
            return error.format_message(), error.exit_code
        case UsageError():
            return str(error), 2
        case DataError():
            return str(error), 1
        case OSError():
            return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1
        case Interrupted():
            return f"interrupted; {error.advice}", 128 + error.number
    raise error


def cli() -> int:
    """Run the command line; a user's mistake is one line on standard error and an exit code."""
    gc.disable()  # imports make few cycles, and a quarter of their time would go into looking for them
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what the terminal's encoding does not
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        stop_on_signals()
        return main(sys.argv[1:] or ["--help"], standalone_mode=False) or 0
    except (click.ClickException, UsageError, DataError, OSError, Interrupted) as error:
        message, code = said_of(error)
        if "--debug" in sys.argv[1:]:
            traceback.print_exc()
    finally:
        gc.enable()
    click.echo(f"Error: {' '.join(readable(message).split())}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(cli())
