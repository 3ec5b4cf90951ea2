"""Predict the rows of one's own tables: every file again as it is, with the score and the decision of each row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import torch

from datasets import read_whole_table
from datasets.table import Table
from detection import TrainedModel, is_anomalous
from detection.checkpoint import ROWS
from errors import DataError
from experiment.machine.progress import progress
from experiment.record.sheets import quote_formula, with_mark
from experiment.use.folder import OF_TABLES
from experiment.use.normal import among_normal, normal_said
from files import readable, write_text
from late import pandas as pd


def predict_tables(model: TrainedModel, inputs: Sequence[tuple[Path, Path]], threshold: float, out: Path) -> int:
    """Write every table to OUT/NAME.csv, with columns score, decision, percentile and p_value behind its own.

    Args:
        model: of a table with such columns.
        inputs: of every table its path, and the name of what is written for it, without an ending.
        threshold: of scores, above which a row is anomalous.
        out: a folder that exists.

    Returns:
        The exit code: 1 if any table could not be predicted, of which it says why; else 0.
    """
    code = beyond = 0
    normal = model.thresholds.normal
    for path, name in inputs:
        try:
            table = read_whole_table(path)
            if clash := [name for name in OF_TABLES if name in table.frame]:
                raise DataError(f"'{path}' has a column '{clash[0]}', which predict adds: rename it")
            rows = torch.from_numpy(model.table.encode(table.frame, str(path)))
        except DataError as error:
            code = 1
            click.echo(f"Error: {readable(str(error))}", err=True)
            continue
        batches = progress(path.name, rows.split(ROWS))
        scores = torch.cat([model.predict(batch).scores for batch in batches]).cpu().numpy()
        decisions = is_anomalous(scores, threshold).astype(int)
        shown = [f"{score:.9g}" for score in scores.tolist()]
        among = [among_normal(own) for own in normal.p_values(scores).tolist()] if normal else [("", "")] * len(scores)
        beyond += normal.beyond(scores) if normal else 0
        others = [[own[i] for own in among] for i in range(2)]
        write_text(out / f"{name}.csv", _again(table, shown, decisions.tolist(), *others))
        click.echo(
            f"{path}{table.said}: {decisions.sum()} of {len(scores)} rows anomalous at threshold {threshold:.4g}; "
            f"written to {out / f'{name}.csv'}",
            err=True,
        )
    click.echo(normal_said(model.thresholds, beyond), err=True)
    return code


def _again(table: Table, scores: list[str], decisions: list[int], *others: Sequence[str]) -> str:
    """A CSV file of a table's own cells, in the dialect of a file of text, with the columns OF_TABLES behind them.

    Text that a spreadsheet would run as a formula has an apostrophe before it where it did not come from such a file.
    """
    cells, separator = table.cells, ","
    if table.dialect is None:
        text = [name for name in cells.columns if not pd.api.types.is_numeric_dtype(cells[name])]
        cells = cells.assign(**{name: cells[name].map(_quoted, na_action="ignore") for name in text})
    else:
        separator = table.dialect.separator
        scores, *others = ([cell.replace(".", table.dialect.decimal) for cell in own] for own in (scores, *others))
    whole = cells.assign(**dict(zip(OF_TABLES, (scores, decisions, *others), strict=True)))
    return with_mark(whole.to_csv(index=False, sep=separator, lineterminator="\n"))


def _quoted(cell: object) -> object:
    """As quote_formula, but only text: a sign before a number is no formula."""
    return quote_formula(cell) if isinstance(cell, str) and not _is_number(cell) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
