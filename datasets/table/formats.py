"""Files of rows: CSV, TSV, Parquet, and the arrays X and y of NumPy and MATLAB."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from errors import DataError
from files import unreadable
from late import pandas as pd


def read_table(path: Path) -> pd.DataFrame:
    """The rows of a file, numbered from 1 by the frame's index.

    Of a CSV file all cells are text as written. Of X [N, F] the columns are called x1, x2, ..., and y [N], where there
    is one, is column "y".

    Raises:
        DataError: no such file, another format, a damaged file, one without rows, or columns without a name of their
            own.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise DataError(f"'{path}' is no table that can be read: expected a file ending in {', '.join(FORMATS)}")
    if not path.is_file():
        raise DataError(f"no file '{path}': expected a table with a row per record")
    try:
        frame = FORMATS[suffix](path)
    except DataError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise unreadable(path, f"a {suffix} file", error) from error
    names = [str(name) for name in frame.columns]
    for position, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(f"column {position} of '{path}' has no name: name it or remove it")
        if names.index(name) < position - 1:
            raise DataError(f"'{path}' has two columns '{name}': rename or remove one of them")
    if frame.empty:
        raise DataError(f"'{path}' holds no rows: expected one per record")
    return frame.set_axis(names, axis=1).set_axis(pd.RangeIndex(1, len(frame) + 1))


def _read_text(path: Path, separator: str) -> pd.DataFrame:
    """A file whose first line names the columns, which is read as a row: of a header pandas makes sense its own way."""
    how = {"sep": separator, "header": None, "dtype": str, "encoding": "utf-8-sig"}
    names = pd.read_csv(path, nrows=1, keep_default_na=False, **how).iloc[0].str.strip()
    return pd.read_csv(path, **how).iloc[1:].set_axis(list(names), axis=1)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError as error:
        raise DataError(f"'{path}' needs the package pyarrow: pip install pyarrow, or save it as CSV") from error


def _read_npz(path: Path) -> pd.DataFrame:
    with np.load(path, allow_pickle=False) as arrays:
        return _from_arrays(path, arrays)


def _read_mat(path: Path) -> pd.DataFrame:
    from scipy.io import loadmat  # late: other datasets need not wait for it

    try:
        return _from_arrays(path, loadmat(path, variable_names=["X", "y"]))
    except NotImplementedError as error:
        raise DataError(
            f"'{path}' is a file of MATLAB 7.3, which cannot be read: save it as version 7 (save -v7) or as CSV"
        ) from error


def _from_arrays(path: Path, arrays: Mapping[str, Any]) -> pd.DataFrame:
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
    return frame


def _native(path: Path, name: str, array: Any) -> np.ndarray:
    """An array of float64, bool, or str objects, whatever machine it was written on."""
    array = np.asarray(array)
    kinds = {"b": bool, "i": np.float64, "u": np.float64, "f": np.float64, "U": object}
    if array.dtype.kind not in kinds:
        raise DataError(f"'{path}' has an array {name} of type {array.dtype}: expected numbers, truth values or text")
    return array.astype(kinds[array.dtype.kind])


FORMATS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": partial(_read_text, separator=","),
    ".tsv": partial(_read_text, separator="\t"),
    ".parquet": _read_parquet,
    ".npz": _read_npz,
    ".mat": _read_mat,
}
