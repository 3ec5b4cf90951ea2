"""The runs of a --grid, or of several detectors, side by side: ablation.csv or comparison.csv, and a table of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from errors import DataError
from experiment.record.folders import ABLATION, COMPARISON
from experiment.record.read import RunRecord, read_run
from experiment.record.sheets import write_csv
from experiment.show.tables import BEST, LAST, Table, cell, summary
from files import unreadable
from late import pandas as pd
from metrics import LOCO_METRICS, METRICS


def write_side_by_side(
    path: Path, choices: Sequence[Mapping[str, str]], tables: Sequence[pd.DataFrame], float_format: str = "%.6f"
) -> None:
    """Write a table such as ablation.csv: the rows of every run's own table behind what tells it from the others.

    Args:
        path: of the table.
        choices: of every run its folder below the table's, as "run", and its choices by name.
        tables: of the runs.
        float_format: of numbers.
    """
    heads = list(dict.fromkeys(name for chosen in choices for name in chosen))
    rows = []
    for chosen, table in zip(choices, tables, strict=True):
        own = table.copy()
        for i, name in enumerate(heads):
            own.insert(i, name, chosen.get(name, ""))
        rows.append(own)
    write_csv(path, pd.concat(rows, ignore_index=True), float_format)


def read_runs(directory: Path, without: Collection[str] = ()) -> list[RunRecord]:
    """What the runs in a folder left: its own, or those of a grid or of several detectors, in order.

    Args:
        directory: of them.
        without: detectors whose runs are left out.

    Raises:
        UsageError, DataError: as read_run; a table of runs that is damaged.
    """
    if not (directory / COMPARISON).is_file():
        return [read_run(folder) for folder in point_folders(directory)]
    runs = _listed(directory / COMPARISON, "the table of several detectors", depth=2)
    named = ((Path(name).parts[0], directory / name) for name in runs)
    return [read_run(folder, called) for called, folder in named if called not in without]


def point_folders(directory: Path) -> list[Path]:
    """The folders of a grid's runs in order; of a folder that is no grid's, itself.

    Raises:
        DataError: ablation.csv is damaged.
    """
    path = directory / ABLATION
    return [directory / name for name in _listed(path, "the table of a grid")] if path.is_file() else [directory]


def _listed(path: Path, kind: str, depth: int = 1) -> Iterator[str]:
    """The folders of runs that a table names, below its own by at most so many."""
    try:
        names = pd.read_csv(path, dtype=str)["run"].dropna().unique()
    except (OSError, ValueError, KeyError) as error:
        raise unreadable(path, kind, error) from error
    for name in names:
        parts = Path(name).parts
        if "/".join(parts) != name or not 1 <= len(parts) <= depth or ".." in parts or Path(name).is_absolute():
            raise DataError(f"'{path}' names run '{name}', which is no folder's name")
        yield name


def are_side_by_side(records: Sequence[RunRecord]) -> bool:
    """Whether runs are those of grids over the same flags, or of several detectors, which all are told apart."""
    if records and all(record.called for record in records):
        return len({tuple(record.choices.items()) for record in records}) == len(records)
    flags = {tuple(record.choices) for record in records}
    return len(flags) == 1 and flags != {()}


def is_grid(records: Sequence[RunRecord]) -> bool:
    """Whether options tell some of the runs apart, which no paper's numbers are of."""
    return any(set(record.choices) - {"detector"} for record in records)


def overview(records: Sequence[RunRecord], best_epoch: bool = False) -> Table:
    """The table that suits some runs: ablation_table, or summary for those that are not told apart by choices."""
    return (ablation_table if are_side_by_side(records) else summary)(records, best_epoch)


def ablation_table(records: Sequence[RunRecord], best_epoch: bool = False) -> Table:
    """Of every class, then of their mean: the choices down, metrics in percent across, the best ones in bold.

    Args:
        records: the runs of a grid or of several detectors.
        best_epoch: of results_best_epoch.csv instead of results.csv.
    """
    own = (record.tables.best_epoch if best_epoch else record.tables.results for record in records)
    tables = [table.set_index("class") for table in own]
    names = [name for name in dict.fromkeys(name for table in tables for name in table.index) if name != "Mean"]
    known = METRICS | LOCO_METRICS
    metrics = [known[m] for m in known if any(m in table and table[m].notna().any() for table in tables)]
    flags = list(dict.fromkeys(flag for record in records for flag in record.choices))
    rows, bold = [], set()
    for name in [*names, "Mean"]:
        shown = [[cell(table, name, metric.name) for metric in metrics] for table in tables]
        for j, metric in enumerate(metrics):
            values = pd.Series([table.get(metric.name, {}).get(name) for table in tables], dtype=float)
            best = values.max() if metric.higher_is_better else values.min()
            for i in values.index[values == best]:
                bold.add((len(rows) + i, 1 + len(flags) + j))
        chosen = ([record.choices.get(flag, "") for flag in flags] for record in records)
        rows += [[name, *own, *cells] for own, cells in zip(chosen, shown, strict=True)]
    title = f"{BEST if best_epoch else LAST}, percent"
    heads = ["class", *flags, *(metric.title for metric in metrics)]
    return Table(title, heads, rows, frozenset(bold), names=1 + len(flags))
