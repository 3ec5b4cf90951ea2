"""The runs of a --grid side by side: ablation.csv, and a table of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from errors import DataError
from experiment.config import RunConfig
from experiment.record.folders import ABLATION
from experiment.record.read import RunRecord
from experiment.record.sheets import write_csv
from experiment.show.tables import BEST, LAST, Table, cell
from files import unreadable
from late import pandas as pd
from metrics import LOCO_METRICS, METRICS


def write_ablation(family: Path, runs: Sequence[tuple[RunConfig, pd.DataFrame]]) -> None:
    """Write ablation.csv: the rows of every run's results.csv behind its folder and what --grid chose for it."""
    rows = []
    for run, results in runs:
        own = results.copy()
        for i, (name, value) in enumerate({"run": run.point, **run.grid}.items()):
            own.insert(i, name, value)
        rows.append(own)
    write_csv(family / ABLATION, pd.concat(rows, ignore_index=True))


def point_folders(directory: Path) -> list[Path]:
    """The folders of a grid's runs in order; of a folder that is no grid's, itself.

    Raises:
        DataError: ablation.csv is damaged.
    """
    path = directory / ABLATION
    if not path.is_file():
        return [directory]
    try:
        names = pd.read_csv(path, dtype=str)["run"].dropna().unique()
    except (OSError, ValueError, KeyError) as error:
        raise unreadable(path, "the table of a grid", error) from error
    for name in names:
        if Path(name).name != name or name in (".", ".."):
            raise DataError(f"'{path}' names run '{name}', which is no folder's name")
    return [directory / name for name in names]


def is_grid(records: Sequence[RunRecord]) -> bool:
    """Whether runs are those of grids over the same flags."""
    flags = {tuple(record.grid) for record in records}
    return len(flags) == 1 and flags != {()}


def ablation_table(records: Sequence[RunRecord], best_epoch: bool = False) -> Table:
    """Of every class, then of their mean: the grid's choices down, metrics in percent across, the best ones in bold.

    Args:
        records: the runs of a grid.
        best_epoch: of results_best_epoch.csv instead of results.csv.
    """
    own = (record.tables.best_epoch if best_epoch else record.tables.results for record in records)
    tables = [table.set_index("class") for table in own]
    names = [name for name in dict.fromkeys(name for table in tables for name in table.index) if name != "Mean"]
    known = METRICS | LOCO_METRICS
    metrics = [known[m] for m in known if any(m in table and table[m].notna().any() for table in tables)]
    flags = list(records[0].grid)
    rows, bold = [], set()
    for name in [*names, "Mean"]:
        shown = [[cell(table, name, metric.name) for metric in metrics] for table in tables]
        for j, metric in enumerate(metrics):
            values = pd.Series([table.get(metric.name, {}).get(name) for table in tables], dtype=float)
            best = values.max() if metric.higher_is_better else values.min()
            for i in values.index[values == best]:
                bold.add((len(rows) + i, 1 + len(flags) + j))
        rows += [[name, *record.grid.values(), *cells] for record, cells in zip(records, shown, strict=True)]
    title = f"{BEST if best_epoch else LAST}, percent"
    return Table(title, ["class", *flags, *(metric.title for metric in metrics)], rows, frozenset(bold))
