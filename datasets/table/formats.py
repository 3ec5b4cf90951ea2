"""Files of rows: CSV, TSV, Parquet, and the arrays X and y of NumPy and MATLAB."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.table.text import SEPARATORS, Dialect, find_separator, with_points
from errors import DataError
from files import unreadable
from late import pandas as pd


@dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
        frame: as models read them, numbered from 1 by the index: NaN where a cell is missing, decimal points.
        cells: the same rows as they stand in the file; of files of text all cells are str.
        dialect: of a file of text; None of any other.
    """

    frame: pd.DataFrame
    cells: pd.DataFrame
    dialect: Dialect | None = None

    @property
    def said(self) -> str:
        """How a CSV file was read where that is not how most are, to stand behind its name; else empty."""
        if self.dialect is None or self.dialect.separator in (",", "\t"):
            return ""
        return f" ('{self.dialect.separator}' between columns, decimal '{self.dialect.decimal}')"


def read_table(path: Path) -> pd.DataFrame:
    """The rows of a file, numbered from 1 by the frame's index.

    Of a CSV file all cells are text as written, but for decimal commas in files whose columns are separated by `;`.
    Of X [N, F] the columns are called x1, x2, ..., and y [N], where there is one, is column "y".

    Raises:
        DataError: no such file, another format, a damaged file, one without rows, columns without a name of their own,
            a separator that is not clear, or numbers with both decimal points and commas.
    """
    return read_whole_table(path).frame


def read_whole_table(path: Path) -> Table:
    """The rows of a file as read_table gives them, and as they stand in it.

    Raises:
        DataError: as read_table.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise DataError(f"'{path}' is no table that can be read: expected a file ending in {', '.join(FORMATS)}")
    if not path.is_file():
        raise DataError(f"no file '{path}': expected a table with a row per record")
    try:
        table = FORMATS[suffix](path)
    except DataError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise unreadable(path, f"a {suffix} file", error) from error
    names = [str(name).strip() if table.dialect else str(name) for name in table.frame.columns]
    for position, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(f"column {position} of '{path}' has no name: name it or remove it")
        if names.index(name) < position - 1:
            raise DataError(f"'{path}' has two columns '{name}': rename or remove one of them")
    if table.frame.empty:
        raise DataError(f"'{path}' holds no rows: expected one per record")
    frame = table.frame.set_axis(names, axis=1).set_axis(pd.RangeIndex(1, len(table.frame) + 1))
    if table.dialect and table.dialect.separator == ";":
        frame, has_commas = with_points(frame, path)
        return Table(frame, table.cells, Dialect(";", "," if has_commas else "."))
    return Table(frame, table.cells, table.dialect)


def _read_text(path: Path, separators: tuple[str, ...] = SEPARATORS) -> Table:
    """A file whose first line names the columns, which is read as a row: of a header pandas makes sense its own way."""
    separator = find_separator(path, separators)
    how = {"sep": separator, "header": None, "dtype": str, "encoding": "utf-8-sig"}
    frame, cells = pd.read_csv(path, **how), pd.read_csv(path, **how, na_filter=False)
    names = list(cells.iloc[0])
    dialect = Dialect(separator) if separators == SEPARATORS else Dialect()  # a TSV file is written again as CSV
    return Table(frame.iloc[1:].set_axis(names, axis=1), cells.iloc[1:].set_axis(names, axis=1), dialect)


def _read_parquet(path: Path) -> Table:
    try:
        return Table(pd.read_parquet(path), pd.read_parquet(path, dtype_backend="numpy_nullable"))  # integers stay
    except ImportError as error:
        raise DataError(f"'{path}' needs the package pyarrow: pip install pyarrow, or save it as CSV") from error


def _read_npz(path: Path) -> Table:
    with np.load(path, allow_pickle=False) as arrays:
        return _from_arrays(path, arrays)


def _read_mat(path: Path) -> Table:
    from scipy.io import loadmat  # late: other datasets need not wait for it

    try:
        return _from_arrays(path, loadmat(path, variable_names=["X", "y"]))
    except NotImplementedError as error:
        raise DataError(
            f"'{path}' is a file of MATLAB 7.3, which cannot be read: save it as version 7 (save -v7) or as CSV"
        ) from error


def _from_arrays(path: Path, arrays: Mapping[str, Any]) -> Table:
    if "X" not in arrays:
        raise DataError(f"'{path}' has no array 'X': expected X [rows, columns] and y [rows]")
    rows = _native(path, "X", arrays["X"])
    if rows.ndim != 2:
        raise DataError(f"'{path}' has an array X of shape {list(rows.shape)}: expected [rows, columns]")
    frame = pd.DataFrame(rows, columns=[f"x{i}" for i in range(1, rows.shape[1] + 1)])
    if "y" in arrays:
        labels = _native(path, "y", arrays["y"])
        if labels.size != len(rows) or labels.size not in labels.shape:  # MATLAB knows no [N], only [N, 1] and [1, N]
            raise DataError(f"'{path}' has labels y of shape {list(labels.shape)}: expected [{len(rows)}], one per row")
        frame["y"] = labels.ravel()
    return Table(frame, frame)


def _native(path: Path, name: str, array: Any) -> np.ndarray:
    """An array of numbers as they are, bool, or str objects, whatever machine it was written on."""
    array = np.asarray(array)
    if array.dtype.kind not in "biufU":
        raise DataError(f"'{path}' has an array {name} of type {array.dtype}: expected numbers, truth values or text")
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        return array.astype(np.float64)  # pandas has no index of others
    return array.astype(array.dtype.newbyteorder("="))


FORMATS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_text,
    ".tsv": lambda path: _read_text(path, ("\t",)),
    ".parquet": _read_parquet,
    ".npz": _read_npz,
    ".mat": _read_mat,
}
