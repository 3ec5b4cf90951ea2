"""Predict the rows of one's own tables: every file again, with the score and the decision of each row."""

from collections.abc import Sequence
from pathlib import Path

import click
import torch

from datasets import read_table
from detection import TrainedModel
from detection.checkpoint import ROWS
from errors import DataError
from experiment.progress import progress
from experiment.results import quote_formula, write_csv

ADDED = ("score", "decision")


def predict_tables(model: TrainedModel, inputs: Sequence[tuple[Path, Path]], threshold: float, out: Path) -> int:
    """Write every table to OUT/NAME.csv, with columns score and decision behind its own.

    Args:
        model: of a table with such columns.
        inputs: of every table its path, and the name of what is written for it, without an ending.
        threshold: of scores, above which a row is anomalous.
        out: a folder that exists.

    Returns:
        The exit code: 1 if any table could not be predicted, of which it says why; else 0.
    """
    code = 0
    for path, name in inputs:
        try:
            frame = read_table(path)
            if clash := [name for name in ADDED if name in frame]:
                raise DataError(f"'{path}' has a column '{clash[0]}', which predict adds: rename it")
            rows = torch.from_numpy(model.table.encode(frame, str(path)))
        except DataError as error:
            code = 1
            click.echo(f"Error: {error}", err=True)
            continue
        batches = progress(path.name, rows.split(ROWS))
        scores = torch.cat([model.predict(batch).scores for batch in batches]).cpu().numpy()
        decisions = (scores > threshold).astype(int)
        table = frame.assign(score=[f"{score:.9g}" for score in scores.tolist()], decision=decisions)
        write_csv(out / f"{name}.csv", table, quote=quote_words)
        click.echo(
            f"{path}: {decisions.sum()} of {len(table)} rows anomalous at threshold {threshold:.4g}; "
            f"written to {out / f'{name}.csv'}",
            err=True,
        )
    return code


def quote_words(text: str) -> str:
    """As quote_formula, but numbers stay as they were read: a sign before them is no formula."""
    try:
        float(text)
    except ValueError:
        return quote_formula(text)
    return text
