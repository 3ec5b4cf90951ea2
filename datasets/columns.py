"""The columns of a table as numbers that a network reads, by what its training rows hold.

Numbers are standardised; text and truth values are one-hot. Whether a column holds numbers is decided by its cells, so
that a table means the same in every format. Rows are named in messages by their frame's index, which `read_table`
counts from 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from errors import DataError
from late import pandas as pd

MAX_CATEGORIES = 100  # of a column; one with more is an id, a date, or numbers with something else among them
MAX_VALUES = 65536  # of an encoded row
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Numeric:
    """A column of numbers, standardised.

    Attributes:
        name: the column's.
        fill: the median of the training rows, which missing cells take.
        mean: of the training rows, filled.
        scale: their standard deviation; 1 where all are the same.

    Raises:
        ValueError: a value of another type, one that is not finite, or a scale that is not positive.
    """

    name: str
    fill: float
    mean: float
    scale: float

    width = 1

    def __post_init__(self) -> None:
        _check_name(self.name)
        for value in (self.fill, self.mean, self.scale):
            if type(value) not in (int, float) or not -LARGEST <= value <= LARGEST:
                raise ValueError(f"column '{self.name}': expected finite numbers, found {value!r}")
        if self.scale <= 0:
            raise ValueError(f"column '{self.name}': expected a positive scale, found {self.scale}")

    @classmethod
    def fit(cls, cells: pd.Series, where: str) -> Numeric:
        """What the training rows say of a column.

        Raises:
            DataError: a number that is infinite or too large.
        """
        values = _numbers(cells, where)
        fill = float(np.nanmedian(values))
        values = np.where(np.isnan(values), fill, values)
        if values.min() == values.max():  # asked of the values, for their deviation need not come out as 0
            return cls(str(cells.name), fill, fill, 1.0)
        return cls(str(cells.name), fill, float(values.mean()), float(values.std()) or 1.0)

    def encode(self, cells: pd.Series, where: str) -> NDArray[np.float32]:
        """Cells [N] as float32 [N, 1].

        Raises:
            DataError: a cell that is no number, or one that is infinite or too large.
        """
        values = _numbers(cells, where)
        with np.errstate(over="ignore"):
            values = (np.where(np.isnan(values), self.fill, values) - self.mean) / self.scale
        _check_finite(values, cells, where)
        return values.astype(np.float32)[:, None]


@dataclass(frozen=True)
class Categorical:
    """A column of text or truth values, one-hot.

    Attributes:
        name: the column's.
        categories: what the training rows hold, sorted; any other encodes as zeros.
        fill: the most frequent of them, which missing cells take.

    Raises:
        ValueError: categories that are no distinct, non-empty strings, or a fill that is none of them.
    """

    name: str
    categories: tuple[str, ...]
    fill: str

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not isinstance(self.categories, tuple) or not all(isinstance(c, str) and c for c in self.categories):
            raise ValueError(f"column '{self.name}': expected non-empty strings as categories")
        if len(set(self.categories)) < len(self.categories):
            raise ValueError(f"column '{self.name}': expected distinct categories")
        if self.fill not in self.categories:
            raise ValueError(f"column '{self.name}': expected one of its categories as fill, found {self.fill!r}")

    @classmethod
    def fit(cls, cells: pd.Series, where: str) -> Categorical:
        """What the training rows say of a column.

        Raises:
            DataError: more than 100 categories, or one in every row.
        """
        text = as_text(cells)
        categories = sorted(text.dropna().unique())
        if len(categories) > MAX_CATEGORIES or len(categories) == len(text) > 2:
            wrong = text[text.notna() & pd.to_numeric(text, errors="coerce").isna()]
            raise DataError(
                f"'{where}' column '{cells.name}' holds text ({quoted(wrong.iloc[0])} in row {wrong.index[0]}) with "
                f"{len(categories)} different values in {len(text)} training rows: expected numbers, or at most "
                f"{MAX_CATEGORIES} categories that recur; correct the cells or remove the column from the file"
            )
        return cls(str(cells.name), tuple(categories), text.mode()[0])

    @property
    def width(self) -> int:
        return len(self.categories)

    def encode(self, cells: pd.Series, where: str) -> NDArray[np.float32]:
        """Cells [N] as float32 [N, width]; `where` is not needed, for any cell can be encoded."""
        words = as_text(cells).astype(object).fillna(self.fill)
        codes = pd.Index(self.categories).get_indexer(words)  # -1: not seen in training
        return (codes[:, None] == np.arange(self.width)).astype(np.float32)


Column = Numeric | Categorical


@dataclass(frozen=True)
class TableTransform:
    """How rows become numbers.

    Attributes:
        columns: those read, in the order of their values; other columns of a table are ignored.

    Raises:
        ValueError: no columns, two of one name, or too many values.
    """

    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        if len({column.name for column in self.columns}) < len(self.columns):
            raise ValueError("expected columns of different names")
        if not 0 < sum(self.widths) <= MAX_VALUES:
            raise ValueError(f"expected columns with 1 to {MAX_VALUES} values in all, found {sum(self.widths)}")

    @classmethod
    def fit(cls, frame: pd.DataFrame, where: str = "the table") -> TableTransform:
        """What training rows, without their labels, say of all columns.

        Args:
            frame: [N, columns], at least one row.
            where: the table's file, for messages.

        Raises:
            DataError: no columns, one that holds nothing, that is infinite, or that is an id; none that varies; or too
                many.
        """
        if frame.columns.empty:
            raise DataError(f"'{where}' has no column beside the label: expected numbers or categories to learn from")
        try:
            transform = cls(tuple(_fit(frame[name], where) for name in frame.columns))
        except ValueError as error:
            raise DataError(f"'{where}': {error}") from error
        values = transform.encode(frame, where)
        if (values == values[0]).all():
            raise DataError(
                f"no column of '{where}' varies in its {len(frame)} training rows: there is nothing to learn from them"
            )
        return transform

    def encode(self, frame: pd.DataFrame, where: str) -> NDArray[np.float32]:
        """Rows as numbers.

        Args:
            frame: [N, columns], in any order.
            where: the table's file, for messages.

        Returns:
            float32 [N, sum(widths)].

        Raises:
            DataError: a missing column, or a cell of a column of numbers that is none, infinite or too large.
        """
        missing = [column.name for column in self.columns if column.name not in frame]
        if missing:
            expected = name_list(column.name for column in self.columns)
            raise DataError(f"'{where}' lacks column '{missing[0]}': expected the columns of training, {expected}")
        return np.concatenate([column.encode(frame[column.name], where) for column in self.columns], axis=1)

    @property
    def widths(self) -> list[int]:
        """How many values every column has: 1, or as many as categories."""
        return [column.width for column in self.columns]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {"columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_dict(cls, content: Any) -> TableTransform:
        """The transform that to_dict described.

        Raises:
            ValueError: it did not.
        """
        if not isinstance(content, dict) or content.keys() != {"columns"} or not isinstance(content["columns"], list):
            raise ValueError("expected a table's columns")
        return cls(tuple(_column(entry) for entry in content["columns"]))


def as_text(cells: pd.Series) -> pd.Series:
    """Cells [N] as a CSV file would hold them: str, without blanks around; NaN where missing or blank."""

    def word(cell: Any) -> Any:
        text = str(cell).strip()
        return (text.removesuffix(".0") if isinstance(cell, float) else text) or np.nan

    return cells.astype(object).where(cells.notna(), np.nan).map(word, na_action="ignore")


def quoted(cell: Any) -> str:
    """A cell for a message: on one line, and no longer than fits there."""
    text = str(cell)
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def name_list(names: Iterable[str]) -> str:
    """Names of columns for a message, of many the first twenty."""
    names = list(names)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _fit(cells: pd.Series, where: str) -> Column:
    known = _plain(cells).dropna()
    if known.empty:
        raise DataError(f"'{where}' column '{cells.name}' is empty in all training rows: remove it from the file")
    kind = Numeric if pd.to_numeric(known, errors="coerce").notna().all() else Categorical
    return kind.fit(cells, where)


def _plain(cells: pd.Series) -> pd.Series:
    """Numbers as they are, all else as text."""
    return cells if pd.api.types.is_numeric_dtype(cells) and not pd.api.types.is_bool_dtype(cells) else as_text(cells)


def _numbers(cells: pd.Series, where: str) -> NDArray[np.float64]:
    """Cells [N] as float64, NaN where missing."""
    plain = _plain(cells)
    values = pd.to_numeric(plain, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    wrong = np.flatnonzero(np.isnan(values) & plain.notna().to_numpy())
    if len(wrong):
        raise DataError(
            f"{_place(cells, wrong[0], where)} is no number, which the column held in training: correct it or leave it "
            "empty"
        )
    _check_finite(values, cells, where)
    return values


def _check_finite(values: NDArray[np.float64], cells: pd.Series, where: str) -> None:
    """Refuse what float32 cannot hold; NaN is a missing cell."""
    wrong = np.flatnonzero(np.abs(values) > LARGEST)
    if len(wrong):
        raise DataError(
            f"{_place(cells, wrong[0], where)} is infinite or too large to compute with: correct it or leave it empty"
        )


def _place(cells: pd.Series, position: int, where: str) -> str:
    return f"'{where}' row {cells.index[position]}, column '{cells.name}': {quoted(cells.iloc[position])}"


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"expected the name of a column, found {name!r}")


def _column(entry: Any) -> Column:
    """A column as asdict described it, categories being a list since.

    Raises:
        ValueError: it did not.
    """
    kind = Categorical if isinstance(entry, dict) and "categories" in entry else Numeric
    names = {field.name for field in fields(kind)}
    if not isinstance(entry, dict) or entry.keys() != names:
        raise ValueError(f"expected a column of {', '.join(sorted(names))}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()})
