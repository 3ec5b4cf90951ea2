"""CSV files that spreadsheets open as they are meant: text that is no formula, and known as UTF-8."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from files import readable, write_text
from late import pandas as pd

BOM = "\ufeff"
FORMULA = re.compile(r"('*)[=+\-@\t\r]")  # what a spreadsheet takes for one, maybe hidden already


def with_mark(text: str) -> str:
    """A CSV file's text, where it is not ASCII with the mark by which spreadsheets know it as UTF-8."""
    text = readable(text)
    return text if text.isascii() else BOM + text


def quote_formula(text: str) -> str:
    """Text that starts as a spreadsheet's formula does, with an apostrophe before it."""
    return f"'{text}" if FORMULA.match(text) else text


def write_csv(
    path: Path, table: pd.DataFrame, float_format: str = "%.6f", quote: Callable[[str], str] = quote_formula
) -> None:
    """Write a table; text that a spreadsheet would run as a formula has an apostrophe before it."""
    text = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    quoted = table.assign(**{name: table[name].map(quote, na_action="ignore") for name in text})
    write_text(path, with_mark(quoted.to_csv(index=False, float_format=float_format, lineterminator="\n")))


def unquoted(text: str) -> str:
    """What quote_formula was given."""
    return text[1:] if (hidden := FORMULA.match(text)) and hidden[1] else text
