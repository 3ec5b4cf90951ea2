"""Where under a path a dataset lies: archives unpack a folder deeper or higher than expected."""

from pathlib import Path

from datasets.folders import folders
from datasets.sample import DatasetReader
from errors import DataError


def find_root(reader: DatasetReader, path: Path) -> tuple[Path, list[str]]:
    """The folder a dataset is read from, and its classes.

    That is the path itself; else the one folder in it that has classes; else, where the path is a class, the folder
    above it, with only that class.

    Raises:
        DataError: no class there, or several folders that have classes.
    """
    if classes := reader.find_classes(path):
        return path, classes
    below = {folder: classes for folder in folders(path) if (classes := _classes(reader, folder))}
    if len(below) > 1:
        names = ", ".join(folder.name for folder in below)
        raise DataError(f"'{path}' holds dataset '{reader.name}' several times, in {names}: give one of these folders")
    if below:
        return next(iter(below.items()))
    full = path.resolve()
    if full.name in _classes(reader, full.parent):
        return full.parent, [full.name]
    raise DataError(f"no class of dataset '{reader.name}' in '{path}': expected {reader.layout}")


def _classes(reader: DatasetReader, folder: Path) -> list[str]:
    """The classes in a folder beside the one given, which may be one that nobody may look into."""
    try:
        return reader.find_classes(folder)
    except OSError:
        return []
