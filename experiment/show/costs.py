"""What models cost, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from experiment.record.read import RunRecord
from experiment.show.tables import NONE, Table, run_labels
from late import pandas as pd

HEADS = {  # by the column of cost.csv: head, what it is divided by, and decimals
    "fit_seconds": ("fit s", 1, 1),
    "ms_from_file": ("ms an image", 1, 1),
    "ms_from_features": ("ms from features", 1, 1),
    "parameters": ("million parameters", 1e6, 2),
    "model_mb": ("model MB", 1, 1),
    "peak_host_mb": ("peak host MB", 1, 0),
    "peak_device_mb": ("peak device MB", 1, 0),
}


def cost_table(records: Sequence[RunRecord]) -> Table:
    """What models cost: of one run every class and their mean, of several the means."""
    labels = [record.called or label for record, label in zip(records, run_labels(records), strict=True)]
    rows = []
    for record, label in zip(records, labels, strict=True):
        costs = record.costs
        for _, row in costs.iterrows() if len(records) == 1 else costs[costs["class"] == "Mean"].iterrows():
            cells = [_cell(row[name], *shown) for name, (_, *shown) in HEADS.items()]
            rows.append([row["class"] if len(records) == 1 else label, *cells])
    heads = ["class" if len(records) == 1 else "run", *(head for head, *_ in HEADS.values())]
    return Table("cost", heads, rows)


def _cell(value: float, unit: float, digits: int) -> str:
    return NONE if pd.isna(value) else f"{value / unit:.{digits}f}"
