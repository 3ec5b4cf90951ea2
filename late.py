"""Packages that most commands have no use for: imported when something of them is first used.

In annotations they are not used where `from __future__ import annotations` stands.
"""

import importlib
from typing import TYPE_CHECKING, Any


class _Late:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:
    import pandas
else:
    pandas = _Late("pandas")

__all__ = ["pandas"]
