"""The folder of a run, or of the runs of a grid or of several detectors: kept from another kind of run, moved aside."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from errors import UsageError
from experiment.config import check_names
from experiment.record.lock import LOCK, only_writer
from experiment.record.provenance import CONFIG
from files import free_name, read_json, unreadable, write_text

GRID, ABLATION = "grid.json", "ablation.csv"  # of a grid's runs: their names, from its start; and the table of all
DETECTORS, COMPARISON = "detectors.json", "comparison.csv"  # the same of several detectors
Kind = Literal["run", "grid", "detectors"]
HOLDS: dict[Kind, tuple[tuple[str, ...], str]] = {  # by what is in a folder the files that say so, and what it is
    "run": ((CONFIG,), "a run without --grid or further detectors"),
    "grid": ((GRID, ABLATION), "the runs of a --grid"),
    "detectors": ((DETECTORS, COMPARISON), "the runs of several detectors"),
}
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


def refuse_other_kind(directory: Path, kind: Kind) -> None:
    """Keep a run, those of a grid and those of several detectors from using one folder.

    Raises:
        UsageError: something else is in it.
    """
    for other, (names, what) in HOLDS.items():
        if other != kind and any((directory / name).is_file() for name in names):
            raise UsageError(
                f"'{directory}' holds {what}: choose another --run_name, or --overwrite, which moves them aside"
            )


def list_detectors(directory: Path, names: Sequence[str]) -> list[str]:
    """Write down which detectors have a folder in one, those of earlier command lines first; returns all.

    Raises:
        DataError: the list that is there is damaged.
    """
    path = directory / DETECTORS
    try:
        known = read_json(path, "a list of detectors")
        check_names(known)
    except FileNotFoundError:
        known = []
    except (TypeError, UsageError) as error:
        raise unreadable(path, "a list of detectors", error) from error
    names = list(dict.fromkeys([*known, *names]))
    write_text(path, json.dumps(names, indent=2) + "\n")
    return names


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
