"""Rows on standard output, each as soon as it is known, for programs that read them there."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import click

from experiment.record.sheets import unquoted
from experiment.use.folder import FILES
from experiment.use.growing import csv_lines
from files import readable

OF_TEXT = ("path", "error", *FILES)  # the columns whose cells are no numbers


def telling(
    kind: Literal["csv", "jsonl"] | None, columns: Sequence[str]
) -> Callable[[Iterable[Mapping[str, str]]], None]:
    """What writes rows of predictions.csv to standard output, and flushes it.

    Args:
        kind: csv, with a first line of `columns`; jsonl, an object a line, in which numbers are numbers and what is
            not known is null; None writes nothing.
        columns: of the rows.
    """
    if kind == "csv":
        click.echo(csv_lines([columns]), nl=False)

    def tell(rows: Iterable[Mapping[str, str]]) -> None:
        for row in rows:
            if kind == "csv":
                click.echo(readable(csv_lines([row.values()])), nl=False)
            elif kind == "jsonl":
                click.echo(json.dumps({name: _value(name, cell) for name, cell in row.items()}))

    return tell


def _value(name: str, cell: str) -> str | float | int | None:
    """A cell as JSON has it; text without the apostrophe that is for spreadsheets."""
    if name in OF_TEXT:
        return readable(unquoted(cell)) or None
    number = float(cell or "nan")
    if not math.isfinite(number):
        return None
    return int(number) if cell.lstrip("-").isdecimal() else number
