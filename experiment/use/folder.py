"""The folder that predict writes into: new, empty, or with earlier predictions alone, of which none is lost.

No file marks it as predict's own, for predictions.csv names all others that belong to it.
"""

import csv
import filecmp
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from datasets.table.text import SEPARATORS
from detection.description import WEIGHTS
from errors import UsageError
from experiment.record.folders import create_directory
from experiment.record.lock import LOCK, WHO, holder_of, only_writer, refuse_where_written
from files import PARTIAL, free_name, partial

TABLE, OVERLAYS, MAPS = "predictions.csv", "overlays", "maps"
REGIONS, MASKS, CONTOURS, COCO = "regions.csv", "masks", "contours", "coco.json"
FILES = ("picture", "map", "mask", "contours")  # the columns that name files
SECONDS = "seconds"
LATENCY = ("decode_ms", "embed_ms", "score_ms")
TIMED = (SECONDS, *LATENCY)  # the columns that differ between two predictions of the same
COLUMNS = ("path", "score", "decision", "percentile", "p_value", SECONDS, "error", "picture", "map")
WITH_REGIONS = (*COLUMNS, "regions", "mask", "contours")
EVER = ("path", "score", "decision", SECONDS, "error")  # of predictions.csv, also before it had the others
OF_TABLES = ("score", "decision", "percentile", "p_value")  # what is added behind a table's own columns
BEFORE = ("score", "decision")  # what was
OF_REGIONS = ("image", "region", "left", "top", "width", "height", "area", "area_percent", "centre_x", "centre_y")
OF_REGIONS += ("mean_score", "highest_score", "touches_border")
COCO_START = (
    '{"info": {"description": "Regions that predict found"}, "categories": [{"id": 1, "name": "anomaly"}], '
    '"annotations": ['
)
FIRST_LINES = {REGIONS: ",".join(OF_REGIONS), COCO: COCO_START}  # by which predict's own are known
ENDS_OF_TABLES = tuple(sign.join(own) for sign in SEPARATORS for own in (OF_TABLES, BEFORE))
DRAWN = {
    OVERLAYS: TABLE,
    MAPS: TABLE,
    MASKS: TABLE,
    "examples": WEIGHTS,
    "segmentations": WEIGHTS,
}  # folders, and what lies beside
FLAG = "--out"


def check_free(out: Path) -> None:
    """See that predict may write into a folder, and change nothing.

    Raises:
        UsageError: it holds anything that predict did not write, or another process writes into it.
    """
    refuse_where_written(out, FLAG)
    _refuse_others(out)


@contextmanager
def own_folder(out: Path, goes_on: bool = False) -> Iterator[None]:
    """Have an empty folder that nobody else writes into; what predict wrote there before is kept beside it.

    If the block ends well and has written all of that again, the earlier files are removed.

    Args:
        out: the folder.
        goes_on: what is there stays, for it is added to.

    Raises:
        UsageError: as check_free, or the folder cannot be written or moved.
    """
    check_free(out)
    create_directory(out, FLAG)
    with ExitStack() as stack:
        unlock = stack.enter_context(only_writer(out, FLAG))
        _refuse_others(out)
        earlier = None if goes_on else _move_aside(out, unlock)
        if earlier is None:
            yield
            return
        stack.enter_context(only_writer(out, FLAG))  # the folder is a new one
        stack.callback(_say_where, out, earlier)
        yield
        if _holds_all(out, earlier):
            shutil.rmtree(earlier)


def holds_drawings(folder: Path) -> bool:
    """Whether a folder is one of pictures or maps that predict or a run drew, known by where it lies."""
    try:
        real = Path(os.path.realpath(folder))
    except (OSError, ValueError):  # no path at all, as whoever reads an image there will say
        return False
    for part in (real, *real.parents):
        sign = part.parent / DRAWN.get(part.name, "")
        if sign.name == TABLE and (_is_predictions(sign) or _is_predictions(partial(sign))):
            return True
        if sign.name == WEIGHTS and sign.is_file():
            return True
    return False


def _is_predictions(path: Path) -> bool:
    """Whether a file is a predictions.csv of images that predict wrote, be it an earlier version of it."""
    columns = _first_line(path).split(",")
    return columns[:3] == [*EVER[:3]] and set(EVER) <= set(columns)


def _first_line(path: Path) -> str:
    """Of a file of text; empty where there is none."""
    try:
        with path.open("rb") as file:
            return file.readline(1 << 20).decode("utf-8-sig", "replace").rstrip("\r\n")
    except OSError:
        return ""


def _refuse_others(out: Path) -> None:
    if out.is_dir() and (other := _foreign(out)):
        raise UsageError(
            f"{FLAG} '{out}' holds '{other}', which predict did not write: it writes into a folder that is new, empty "
            f"or holds earlier predictions alone; choose another {FLAG}"
        )


def _foreign(out: Path) -> str | None:
    """The first file in a folder that predict did not write there."""
    was_killed = _is_predictions(partial(out / TABLE))  # before it could name its pictures
    named = _named(out / TABLE) if _is_predictions(out / TABLE) else set()
    for path in _files(out):
        name = path.relative_to(out)
        if path.name.startswith(".") and path.name.endswith(PARTIAL):
            continue
        if str(name) == LOCK and (holder_of(out).startswith(f"{WHO} ") or not path.stat().st_size):
            continue
        if str(name) == TABLE and _is_predictions(path):
            continue
        if _composed(name) in named or (was_killed and name.parts[0] in (OVERLAYS, MAPS, MASKS, CONTOURS)):
            continue
        if str(name) in FIRST_LINES and _first_line(path) == FIRST_LINES[str(name)]:
            continue
        if path.suffix == ".csv" and _first_line(path).endswith(ENDS_OF_TABLES):
            continue
        return str(name)
    return None


def earlier_rows(out: Path) -> Iterator[dict[str, str]]:
    """The rows of a folder's predictions.csv; none where there is none."""
    if (out / TABLE).is_file():
        yield from _rows(out / TABLE)


def _named(table: Path) -> set[str]:
    """The files that the rows of a predictions.csv name."""
    return {_composed(Path(row[own])) for row in _rows(table) for own in FILES if row.get(own)}


def _rows(table: Path) -> Iterator[dict[str, str]]:
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        yield from csv.DictReader(file)


def _files(folder: Path) -> Iterator[Path]:
    """All that is below a folder and no folder itself, in order."""
    for where, folders, names in os.walk(folder):
        folders.sort()
        links = [name for name in folders if Path(where, name).is_symlink()]
        yield from (Path(where, name) for name in sorted(names + links))


def _composed(name: Path) -> str:
    """A name as some file systems do not keep it."""
    return unicodedata.normalize("NFC", str(name))


def _move_aside(out: Path, unlock: Callable[[], None]) -> Path | None:
    """Rename a folder with predictions to NAME.old-1 or the next that is free, and make a new one; None: none is in it.

    Raises:
        UsageError: it cannot be renamed, as the place where a disk is mounted.
    """
    if all(path.name == LOCK for path in _files(out)):
        return None
    out = out.resolve()
    target = free_name(out, "old")
    try:
        unlock()
        out.rename(target)
        out.mkdir()
    except OSError as error:
        raise UsageError(
            f"{FLAG} '{out}' holds earlier predictions, and they cannot be moved aside ({error.strerror}): choose "
            f"another {FLAG}"
        ) from error
    table = target / TABLE
    if partial(table).exists() and not table.exists():  # of a process that was killed
        partial(table).rename(table)
    return target


def _holds_all(new: Path, old: Path) -> bool:
    """Whether all files of an earlier folder are in another again, and the same."""
    return all(_same(new / path.relative_to(old), path) for path in _files(old) if not path.name.endswith(PARTIAL))


def _same(new: Path, old: Path) -> bool:
    if not new.is_file() or old.is_symlink():
        return False
    if old.name == TABLE and _is_predictions(old):
        return _untimed(old) <= _untimed(new)
    return filecmp.cmp(new, old, shallow=False)


def _untimed(table: Path) -> set[tuple[str, ...]]:
    """What the rows of a predictions.csv say but for the time that they took."""
    return {tuple(f"{name} {cell}" for name, cell in row.items() if name not in TIMED) for row in _rows(table)}


def _say_where(out: Path, earlier: Path) -> None:
    if earlier.exists():
        click.echo(f"The earlier predictions of '{out}' are now in '{earlier}'", err=True)
