"""Progress bars: in this process, or in the one that shows those of all workers."""

from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

_make_bar: Callable[..., tqdm] = tqdm


def draw_with(make_bar: Callable[..., tqdm]) -> None:
    """Let all further bars of this process be made by something else than tqdm."""
    global _make_bar
    _make_bar = make_bar


def progress(title: str, items: Iterable[Any] | None = None, total: float | None = None, unit: str = "batch") -> tqdm:
    """A bar; where the output is no terminal, a line twice a minute at most."""
    bar = _make_bar(items, total=total, desc=title, unit=unit, dynamic_ncols=True, leave=False)
    if _make_bar is tqdm and not bar.fp.isatty():
        bar.mininterval = bar.maxinterval = 30
    return bar
