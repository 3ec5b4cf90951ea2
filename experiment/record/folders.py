"""The folder of a run, or of the runs of a grid: made, kept from another kind of run, moved aside."""

from pathlib import Path

import click

from errors import UsageError
from experiment.record.lock import LOCK, only_writer
from experiment.record.provenance import CONFIG
from files import free_name

GRID, ABLATION = "grid.json", "ablation.csv"  # of a grid's runs: their names, from its start; and the table of all
STATE = "state.pt"  # of training, while it lasts


def create_directory(path: Path, flag: str) -> None:
    """Make a folder that a flag names, and check that files can be written there.

    Raises:
        UsageError: they cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to '{path}' ({error.strerror}): choose another {flag}") from error


def refuse_other_kind(directory: Path, of_grid: bool) -> None:
    """Keep the runs of a grid and a run without one from using one folder."""
    names, kind = ((CONFIG,), "a run without --grid") if of_grid else ((GRID, ABLATION), "the runs of a --grid")
    if any((directory / name).is_file() for name in names):
        raise UsageError(
            f"'{directory}' holds {kind}: choose another --run_name, or --overwrite, which moves them aside"
        )


def move_aside(directory: Path) -> None:
    """Rename a run's folder, unless nothing is in it."""
    with only_writer(directory) as unlock:
        if all(path.name == LOCK for path in directory.iterdir()):
            return
        for lock in directory.rglob(f"*/{LOCK}"):  # runs whose names go on from this one's
            with only_writer(lock.parent):
                pass
        target = free_name(directory, "old")
        unlock()
        directory.rename(target)
        directory.mkdir()
    click.echo(f"The earlier run is now {target}", err=True)
