"""How tables are written as text: what stands between their columns, and decimal commas."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from errors import DataError
from late import pandas as pd

SEPARATORS = (",", ";", "\t", "|")
SAMPLE = 1 << 16  # bytes of a file by which its separator is known
WITH_COMMA = r"\s*[+-]?(?:\d+,\d*|,\d+)(?:[eE][+-]?\d+)?\s*"  # numbers
WITH_POINT = WITH_COMMA.replace(",", r"\.") + r"|\s*[+-]?\d{1,3}(?:\.\d{3})+(?:,\d+)?\s*"  # decimal, or of thousands


@dataclass(frozen=True)
class Dialect:
    """How a file of text is written: what stands between columns, and whether numbers have decimal commas."""

    separator: str = ","
    decimal: str = "."


def find_separator(path: Path, separators: tuple[str, ...]) -> str:
    """What stands between the columns of a file of text: it splits the first line, and all lines into as many cells.

    Raises:
        DataError: several do.
    """
    with path.open("rb") as file:
        sample = file.read(SAMPLE).decode("utf-8-sig", "replace")
    found = {}
    for separator in separators:
        try:
            rows = [row for row in csv.reader(io.StringIO(sample), delimiter=separator) if row]
        except csv.Error:
            continue
        if rows and len(rows[0]) > 1:
            whole = rows[:-1] if len(sample) >= SAMPLE and len(rows) > 1 else rows  # the last one may be cut
            found[separator] = all(len(row) == len(rows[0]) for row in whole)
    fitting = [separator for separator in found if len(found) == 1 or found[separator]]
    if len(fitting) > 1:
        shown = " and ".join("tab" if separator == "\t" else f"'{separator}'" for separator in fitting)
        raise DataError(f"'{path}' has {shown} in every line: put names and cells that hold one of them into quotes")
    return fitting[0] if fitting else separators[0]


def with_points(frame: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, bool]:
    """Text cells whose numbers have decimal points, and whether any had a comma.

    Raises:
        DataError: a column has numbers with commas and others with points, of which one may stand for thousands.
    """
    changed = {}
    for name in frame.columns:
        cells = frame[name].dropna()
        commas, points = cells.str.fullmatch(WITH_COMMA), cells.str.fullmatch(WITH_POINT)
        if not commas.any():
            continue
        if points.any():
            row = points.index[points][0]
            raise DataError(
                f"'{path}' row {row}, column '{name}': '{cells[row].strip()}' has a point, and other numbers of the "
                "column a decimal comma: write all with the same, and none with a mark for thousands"
            )
        rows = commas.index[commas]
        changed[name] = frame[name].mask(frame.index.isin(rows), frame[name].str.replace(",", "."))
    return frame.assign(**changed), bool(changed)
