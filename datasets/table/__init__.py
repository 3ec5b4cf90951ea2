"""Tables: one file with a row per record and a column that says which rows are anomalous.

The split is ours: half of the normal rows, drawn by --split_seed, are trained on; the others and all anomalous rows are
tested on. With --test_file the normal rows of one file are trained on, and all rows of the other tested on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from datasets.columns import Categorical, Column, Numeric, TableTransform, as_text, name_list, quoted
from datasets.sample import ClassSamples, DatasetReader, Sample
from datasets.table.formats import FORMATS, Table, read_table, read_whole_table
from errors import DataError, UsageError
from late import pandas as pd
from options import option

__all__ = [
    "TABLE",
    "Categorical",
    "Column",
    "Numeric",
    "Table",
    "TableOptions",
    "TableTransform",
    "read_table",
    "read_whole_table",
    "table_reader",
]

ANOMALOUS = ("1", "true", "anomaly", "anomalous")
NORMAL = ("0", "false", "normal", "good")
LAYOUT = f"a file ({', '.join(FORMATS)}) with a row per record and a column of labels (--label)"


@dataclass(frozen=True)
class TableOptions:
    """Which rows are trained and tested on."""

    label: str = option("", "The column that is 1 for anomalous rows.", shown="y of .npz and .mat")
    test_file: Path | None = option(
        None,
        "Rows to test on; then all normal rows of DATA_PATH are trained on.",
        shown="half of the normal rows, and all anomalous ones",
    )
    split_seed: int = option(0, "Draws the normal rows to train on.", at_least=0)


def table_reader(options: TableOptions) -> DatasetReader:
    """The reader of a table's rows; its root is the file."""

    def find_classes(root: Path) -> list[str]:
        """The file's name without its ending."""
        return [root.stem] if root.is_file() else []

    def read_class(root: Path, class_name: str) -> ClassSamples:
        """The rows of a file, in its order, encoded by those that are trained on.

        Raises:
            UsageError: the file to test on is the same.
            DataError: what read_table and TableTransform raise, no label or one that says nothing, or too few rows.
        """
        rows = _read_rows(root, options.label, labelled=options.test_file is None)
        if rows.anomalous.all():
            raise DataError(f"'{root}' has no normal rows to train on: all {len(rows.frame)} are labelled anomalous")
        if options.test_file is None:
            drawn = _half(~rows.anomalous, options.split_seed)
            train, test = rows.take(drawn), rows.take(~drawn)
        elif options.test_file.resolve() == root.resolve():
            raise UsageError("--test_file is DATA_PATH itself: leave it out, and that file is split")
        else:
            train, test = rows.take(~rows.anomalous), _read_rows(options.test_file, options.label)
        if len(train.frame) < 2:
            raise DataError(
                f"'{root}' has {(~rows.anomalous).sum()} normal rows: expected at least 4, half of them to train on, "
                "or 2 and a --test_file"
            )
        if test.anomalous.all() or not test.anomalous.any():
            kind = "anomalous" if test.anomalous.all() else "normal"
            raise DataError(
                f"'{test.path}' has only {kind} rows to test on: expected normal and anomalous ones; --test_file names "
                "a file that has both"
            )
        transform = TableTransform.fit(train.frame, str(root))
        return ClassSamples(train.samples(class_name, transform), test.samples(class_name, transform), table=transform)

    return DatasetReader(
        "table",
        "rows of a file with --label, for multimodal: DATA_PATH is a .csv, .tsv, .parquet, .npz or .mat",
        LAYOUT,
        find_classes,
        read_class,
        is_file=True,
        options=options,
        of=table_reader,
    )


@dataclass(frozen=True)
class _Rows:
    """Rows of a file.

    Attributes:
        path: the file.
        frame: [N, columns], without the label.
        anomalous: bool [N].
    """

    path: Path
    frame: pd.DataFrame
    anomalous: NDArray[np.bool_]

    def take(self, chosen: NDArray[np.bool_]) -> _Rows:
        """Those of a mask [N]."""
        return _Rows(self.path, self.frame[chosen], self.anomalous[chosen])

    def samples(self, class_name: str, transform: TableTransform) -> list[Sample]:
        """A record of every row."""
        encoded = transform.encode(self.frame, str(self.path))
        kinds = {False: "good", True: "anomaly"}
        return [
            Sample(self.path / f"row {number}", (), anomalous, class_name, kinds[anomalous], values=values)
            for number, anomalous, values in zip(self.frame.index, self.anomalous.tolist(), encoded, strict=True)
        ]


def _read_rows(path: Path, label: str, labelled: bool = True) -> _Rows:
    """The rows of a file; where they need not be labelled and no column is called so, all are normal."""
    table = read_whole_table(path)
    if table.said:
        click.echo(f"Reading '{path}'{table.said}", err=True)
    frame = table.frame
    label = label or ("y" if path.suffix.lower() in (".npz", ".mat") else "")
    if label in frame:
        return _Rows(path, frame.drop(columns=label), _anomalous(frame[label], path))
    if labelled:
        lacking = f"has no column '{label}'" if label else "needs to be told its column of labels"
        raise DataError(f"'{path}' {lacking}: --label names one of {name_list(frame.columns)}")
    return _Rows(path, frame, np.zeros(len(frame), bool))


def _anomalous(labels: pd.Series, path: Path) -> NDArray[np.bool_]:
    """Labels [N] as truth values."""
    words = as_text(labels).map(lambda word: word.lower().removesuffix(".0"), na_action="ignore")
    wrong = words[~words.isin(ANOMALOUS + NORMAL)]
    if len(wrong):
        found = "none" if pd.isna(wrong.iloc[0]) else quoted(labels[wrong.index[0]])
        raise DataError(
            f"'{path}' row {wrong.index[0]}, column '{labels.name}': expected {', '.join(ANOMALOUS)} for an anomalous "
            f"row, {', '.join(NORMAL)} for a normal one, found {found}"
        )
    return words.isin(ANOMALOUS).to_numpy()


def _half(normal: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """Half of the rows of a mask [N], rounded down, as another."""
    rows = np.flatnonzero(normal)
    drawn = np.zeros(len(normal), bool)
    drawn[np.random.default_rng(seed).permutation(rows)[: len(rows) // 2]] = True
    return drawn


TABLE = table_reader(TableOptions())
