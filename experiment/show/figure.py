"""Figures for a paper: main.py figure. Images with masks and every detector's maps, ranks, and AUROC against time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from errors import UsageError
from experiment.config import FigureConfig
from experiment.record.read import RunRecord
from experiment.show.ablation import read_runs
from experiment.show.figure_charts import draw_cost, draw_ranks
from experiment.show.figure_images import draw_images
from files import move, partial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARK = "main.py figure"  # in every file that is written here
SUFFIXES = {".pdf": "Creator", ".svg": "Creator", ".png": "Software"}  # and the entry that holds the mark
DATELESS = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {}}  # the same runs give the same bytes
UNUSED = ("images", "rows", "subdatasets", "seed", "gpu")  # where no images are drawn
STYLE = {
    "pdf.fonttype": 42,  # text stays text, in fonts that journals take
    "svg.fonttype": "none",
    "svg.hashsalt": "figure",
    "font.family": "sans-serif",
    "font.size": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 300,
}


def figure(config: FigureConfig) -> None:
    """Draw a figure of finished runs and write it.

    Raises:
        UsageError: folders that are no runs', runs that the figure cannot be of, flags without effect, or a file that
            is not a figure of this command in its place.
        DataError: damaged files, or data that are not there any more.
    """
    _check(config)
    records = [record for directory in config.directories for record in read_runs(directory)]
    from matplotlib import rc_context  # late: other commands need not wait for it

    with rc_context(STYLE):
        drawn = _drawn(config, records)
        _write(config.out, drawn)
    click.echo(f"The figure is {config.out}", err=True)


def _drawn(config: FigureConfig, records: Sequence[RunRecord]) -> Figure:
    if config.ranks:
        return draw_ranks(records, config.width)
    if config.cost:
        return draw_cost(records, config.width)
    return draw_images(config, records)


def _check(config: FigureConfig) -> None:
    if config.ranks and config.cost:
        raise UsageError("--ranks and --cost are two figures: give one of them, with an --out each")
    if config.ranks or config.cost:
        unset = FigureConfig(config.directories)
        given = [name for name in UNUSED if getattr(config, name) != getattr(unset, name)]
        if given:
            flag = "-d" if given[0] == "subdatasets" else f"--{given[0]}"
            raise UsageError(f"{flag} is of images, which --{'ranks' if config.ranks else 'cost'} draws none of")
    suffix = config.out.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"--out {config.out}: expected a name that ends in {', '.join(SUFFIXES)}")
    if config.out.is_dir():
        raise UsageError(f"--out {config.out} is a folder: expected a file")
    if config.out.exists() and MARK.encode() not in config.out.read_bytes():
        raise UsageError(f"'{config.out}' is there already and no figure of this command: give another --out")


def _write(path: Path, drawn: Figure) -> None:
    suffix, temporary = path.suffix.lower(), partial(path)
    metadata = {SUFFIXES[suffix]: MARK, **DATELESS[suffix]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(lambda: temporary.unlink(missing_ok=True))
        drawn.savefig(temporary, format=suffix[1:], metadata=metadata)
        move(temporary, path)
