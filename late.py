"""A package that most commands have no use for: imported when something of it is first used.

In annotations it is not used where `from __future__ import annotations` stands.
"""

import importlib
from typing import TYPE_CHECKING, Any


class _Pandas:
    def __getattr__(self, attribute: str) -> Any:
        package = importlib.import_module("pandas")
        if package.get_option("mode.string_storage") != "python":  # PyArrow's strings hold no file name but UTF-8
            package.set_option("mode.string_storage", "python")
        return getattr(package, attribute)


if TYPE_CHECKING:
    import pandas
else:
    pandas = _Pandas()

__all__ = ["pandas"]
