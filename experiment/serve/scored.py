"""Images of this machine's that are scored beside the requests: those of a folder, and those that come into another."""

import csv
import math
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from errors import DataError, UsageError, first_line
from experiment.machine.memory import one_line_when_full
from experiment.machine.progress import progress
from experiment.record.sheets import unquoted
from experiment.serve.engine import ADVICE, Engine
from experiment.use.arrivals import Arrivals
from experiment.use.folder import TABLE
from experiment.use.inputs import Inputs, Item
from files import readable

GOOD = "good"  # the folder of good images; all others are of bad ones
MOST = 20_000  # rows that are kept, the newest


@dataclass(frozen=True)
class Row:
    """An image that was scored.

    Attributes:
        number: of all rows, from 0.
        name: below its folder.
        label: what its sub-folder calls it; empty where none does.
        is_bad: by that; None where it is not known.
        scores: by every model.
        error: what is wrong with it.
        path: of the file.
    """

    number: int
    name: str
    label: str = ""
    is_bad: bool | None = None
    scores: dict[str, float] = field(default_factory=dict)
    error: str = ""
    path: str = ""

    def told(self) -> dict[str, Any]:
        """What others are told of it: not where the file lies."""
        told = asdict(self)
        del told["path"]
        return told


class Scored:
    """The rows so far, and the threads that make them.

    Args:
        engine: whose models score.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rows: deque[Row] = deque(maxlen=MOST)
        self.total: int | None = None  # of the folder's images
        self.done = 0  # of those
        self.folder, self.watched = "", ""
        self._count = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def since(self, number: int) -> dict[str, Any]:
        """How far it is, and the rows from a number on."""
        with self._lock:
            rows = [row.told() for row in self.rows if row.number >= number]
            state = {"folder": self.folder, "total": self.total, "done": self.done, "watched": self.watched}
            return {**state, "next": self._count, "rows": rows}

    def row(self, number: int) -> Row:
        """One of them.

        Raises:
            UsageError: there is none of this number, or not any more.
        """
        with self._lock:
            if self.rows and 0 <= (place := number - self.rows[0].number) < len(self.rows):
                return self.rows[place]
        raise UsageError(f"no image {number} among those that were scored")

    def take_folder(self, place: Path) -> None:
        """Score the images of a folder, or take the scores of a predictions.csv.

        Raises:
            UsageError: neither of them, or a table beside several models.
            DataError: a table that is none of predict or of a run, or a folder without images.
        """
        self.folder = readable(str(place))
        if place.is_file():
            self._take_table(place)
        elif place.is_dir():
            inputs = Inputs((str(place),))
            self.total = inputs.total
            if self.total > MOST:
                raise UsageError(f"--folder '{place}' holds {self.total} images, and {MOST} are kept: give fewer")
            self._start(self._score_all, place, inputs)
        else:
            raise UsageError(f"--folder '{place}' is neither a folder of images nor a {TABLE}")

    def watch(self, folder: Path) -> None:
        """Score the images that come into a folder.

        Raises:
            UsageError: no such folder.
        """
        first = self.engine.finder(None)
        arrivals = Arrivals(folder, first.read, stop=self._stop)
        self.watched = readable(str(folder))
        self._start(self._score_arrivals, folder, arrivals)

    def stop(self) -> None:
        """End the threads, once the images that they are at are done."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _start(self, function: Any, *args: Any) -> None:
        self._threads.append(threading.Thread(target=function, args=args, daemon=True))
        self._threads[-1].start()

    def _score_all(self, folder: Path, inputs: Inputs) -> None:
        items = list(inputs)
        labels = [_label(Path(item.path), folder) for item in items]
        labels = labels if GOOD in labels else [""] * len(items)
        with progress("folder", total=len(items), unit="image") as bar:
            for item, label in zip(items, labels, strict=True):
                if self._stop.is_set():
                    return
                row = {"name": _below(Path(item.path), folder), "label": label, "path": item.path}
                self._add(**row, is_bad=label != GOOD if label else None, **self._scores(item))
                self.done += 1
                bar.update()

    def _score_arrivals(self, folder: Path, arrivals: Iterable[Item]) -> None:
        for item in arrivals:
            found = self._scores(item)
            if found["error"]:
                click.echo(f"Error: {found['error']}", err=True)
            self._add(name=_below(Path(item.path), folder), path=item.path, **found)

    def _scores(self, item: Item) -> dict[str, Any]:
        """The scores of all models, or what is wrong."""
        scores: dict[str, float] = {}
        try:
            for name in self.engine.finders:
                scores[name] = self.engine.submit(self._score, name, item).result()
        except Exception as error:  # as of other images, the next ones go on
            return {"scores": scores, "error": readable(first_line(error))}
        return {"scores": scores, "error": ""}

    def _score(self, name: str, item: Item) -> float:
        finder = self.engine.finder(name)
        with one_line_when_full(ADVICE):
            if item.error:
                raise DataError(item.error)
            if item.tensor is not None and finder is self.engine.finder(None):
                return finder.found(item, item.path).score
            return finder.find(Path(item.path), item.path).score

    def _add(self, **values: Any) -> None:
        with self._lock:
            self.rows.append(Row(number=self._count, **values))
            self._count += 1

    def _take_table(self, table: Path) -> None:
        names = list(self.engine.finders)
        if len(names) > 1:
            raise UsageError(f"--folder '{table}' holds the scores of one model: give one, not {len(names)}")
        with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            lines = list(csv.DictReader(file))
        columns = set(lines[0]) if lines else set()
        place = "path" if "path" in columns else "image"
        if not {place, "score"} <= columns:
            raise DataError(f"'{table}' is no {TABLE} that predict or a run wrote: expected a row with path and score")
        paths = [unquoted(line[place] or "") for line in lines]
        labels = [
            line["defect_type"] or "" if "defect_type" in line else Path(path).parent.name
            for path, line in zip(paths, lines, strict=True)
        ]
        is_known = "label" in columns or GOOD in labels
        for path, label, line in zip(paths, labels, lines, strict=True):
            score = _number(line["score"])
            is_bad = (line["label"] == "1" if "label" in line else label != GOOD) if is_known else None
            found = {} if score is None else {names[0]: score}
            error = "" if found else line.get("error") or "it has no score"
            self._add(name=path, label=label if is_known else "", is_bad=is_bad, scores=found, error=error, path=path)
        self.total = self.done = len(lines)


def _number(cell: str | None) -> float | None:
    try:
        number = float(cell or "nan")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _label(path: Path, folder: Path) -> str:
    """The sub-folder that an image lies in; empty where it lies in none."""
    return path.relative_to(folder).parts[0] if path.parent != folder else ""


def _below(path: Path, folder: Path) -> str:
    return readable(str(path.relative_to(folder)))
