"""What runs in Ray's workers: tasks of the same images, with progress and messages sent to the display."""

import contextlib
import io
import socket
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import backbones
from datasets import reader_count
from errors import DataError, UsageError
from experiment.machine.device import best_precision, choose_device, choose_precision, device_name
from experiment.machine.progress import draw_with
from experiment.plan.task import Task
from experiment.record.ledger import Outcome
from experiment.record.lock import holder_of
from experiment.train.work import work
from files import sha256_of


class Settings(NamedTuple):
    """How workers compute: their precision, threads, and whether on a GPU; who holds the runs' locks, and where; and
    how many of them share a machine's cores."""

    precision: str
    threads: int
    on_gpu: bool
    holder: str
    host: str
    jobs: int = 1

    def naming_host(self, error: Exception) -> DataError:
        """An error of a worker, with its host where that is another machine than the one that shows it."""
        own = socket.gethostname()
        return DataError(str(error) if own == self.host or own in str(error) else f"{error} (on host {own})")


class Answer(NamedTuple):
    """What a task gave, and the files of its jobs' folders where the worker could not write them into the run."""

    outcome: Outcome
    archives: list[bytes] | None


class Display:
    """What the jobs say, until it is asked for."""

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}
        self.lines: list[str] = []

    def progress(self, label: str, share: float) -> None:
        self.shares[label] = share

    def say(self, line: str) -> None:
        self.lines.append(line)

    def take(self) -> tuple[dict[str, float], list[str]]:
        lines, self.lines = self.lines, []
        return self.shares, lines


class Lines(io.StringIO):
    """A stream whose lines go to the display."""

    def __init__(self, display: Any) -> None:
        super().__init__()
        self.display = display

    def write(self, text: str) -> int:
        for line in filter(None, text.split("\n")):
            self.display.say.remote(line)
        return len(text)


class Bar(tqdm):
    """A bar that tells the display how far it is, if it is that of the job that is being done."""

    job: tuple[str, str] = ("", "")  # the bar's title, and what the display calls the job
    to: Any = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options, file=io.StringIO(), mininterval=0.5)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        title, label = Bar.job
        if msg is None and self.total and self.desc.removesuffix(": ") == title:
            Bar.to.progress.remote(label, self.n / self.total)


def describe(threads: int, on_gpu: bool) -> tuple[str, str]:
    """Name and best precision of a worker's device."""
    torch.set_num_threads(threads)
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    return device_name(device), best_precision(device)


def do(tasks: Sequence[Task], settings: Settings, display: Any) -> Iterator[Answer]:
    """Do tasks of the same images, in order; those that a worker finished before it died are read."""
    import torch._dynamo

    torch.set_num_threads(settings.threads)
    Bar.to = display
    draw_with(Bar)
    with contextlib.redirect_stderr(io.StringIO()):
        device = choose_device((0,)) if settings.on_gpu else torch.device("cpu")
        precision = choose_precision(settings.precision, device)
    with contextlib.redirect_stderr(Lines(display)), tempfile.TemporaryDirectory() as scratch:
        try:
            sources = {task.backbone: _source(task, device) for task in {own.backbone: own for own in tasks}.values()}
            ready = [_with_readers(task, settings.jobs) for task in tasks]
            own = [_placed(task, settings.holder, Path(scratch) / str(i)) for i, task in enumerate(ready)]
        except (UsageError, DataError) as error:
            yield from [Answer(settings.naming_host(error), None) for _ in tasks]
            return
        outcomes = work(own, sources, device, precision)
        for task, placed in zip(ready, own, strict=True):
            Bar.job = task.label, task.title
            _, outcome = next(outcomes)
            display.progress.remote(task.title, 1.0)
            if not isinstance(outcome, list):
                yield Answer(settings.naming_host(outcome), None)
            else:
                yield Answer(outcome, None if placed is task else [_packed(job.folder) for job in placed.jobs])


def _source(task: Task, device: torch.device) -> backbones.FeatureExtractor:
    """The task's backbone, on a device.

    Raises:
        UsageError, DataError: it or the data is not on this machine.
    """
    for job in task.jobs:
        if not task.problem and not job.root.exists():
            raise DataError(
                f"DATA_PATH '{job.root}' does not exist on host {socket.gethostname()}: "
                "all machines must have the data at the same path"
            )
    name, weights, normalisation, layers, size, seed = task.backbone
    expected = task.detector.backbone_weights_sha256
    if expected is not None and Path(weights).is_file() and sha256_of(Path(weights)) != expected:
        raise DataError(f"backbone weights '{weights}' on host {socket.gethostname()} are another file's than here")
    source = backbones.load(name, weights, seed or 0, normalisation)
    source.build(layers, size, device)
    return source


def _with_readers(task: Task, jobs: int) -> Task:
    """A task that reads by this worker's share of the cores, where nobody says by how many."""
    data = (replace(job.data, num_workers=reader_count(job.data.num_workers, jobs)) for job in task.jobs)
    return replace(task, jobs=tuple(replace(job, data=own) for job, own in zip(task.jobs, data, strict=True)))


def _placed(task: Task, holder: str, scratch: Path) -> Task:
    """The task itself where this machine sees the run's folder, else one that writes into a scratch folder.

    Raises:
        DataError: of --test, which reads the models of that folder.
    """
    folder = task.jobs[0].folder
    if holder_of(folder.parents[2]) == holder:
        return task
    if task.run.test:
        raise DataError(
            f"'{folder}' is not there on host {socket.gethostname()}: --test needs a --results_path "
            "that all machines see"
        )
    return replace(task, jobs=tuple(replace(job, folder=scratch / job.folder.name) for job in task.jobs))


def _packed(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, arcname=".")
    return buffer.getvalue()
