"""A run's folder, read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from errors import DataError, UsageError
from experiment.config import JobName, job_names
from experiment.record.cost import Cost, cost_table, read_costs
from experiment.record.pixels import PIXELS, parse_pixels
from experiment.record.provenance import CONFIG, KIND, datasets_of, read_config
from experiment.record.results import JobResult, Tables, make_tables, read_failures, read_results
from experiment.record.sheets import unquoted
from files import unreadable
from late import pandas as pd
from metrics import PixelCounts


@dataclass(frozen=True)
class RunRecord:
    """A run that was read: its folder, config.json, the finished jobs in order, and the tables of their results.

    Attributes:
        called: its detector, among several of a command line; else "".
    """

    directory: Path
    config: dict[str, Any]
    results_of: dict[JobName, JobResult]
    tables: Tables
    called: str = ""

    @property
    def seeds(self) -> list[int]:
        return self.config["run"]["seeds"]

    @cached_property
    def cost_of(self) -> dict[JobName, Cost]:
        """What the models of those jobs cost of which it is known."""
        return read_costs(self.directory, self.jobs)

    @property
    def costs(self) -> pd.DataFrame:
        """What the models cost, as cost.csv; empty where that is not known."""
        return cost_table(self.cost_of)

    @property
    def grid(self) -> dict[str, str]:
        """What --grid chose for this run, by flag."""
        return {str(flag): str(value) for flag, value in self.config["run"].get("grid", {}).items()}

    @property
    def choices(self) -> dict[str, str]:
        """What tells it from the other runs of its command line: its detector, and what --grid chose."""
        return {"detector": self.called, **self.grid} if self.called else self.grid

    @property
    def jobs(self) -> list[JobName]:
        """The finished jobs of the run, in order."""
        return list(self.results_of)

    def read(self, job: JobName, name: str) -> bytes:
        """A file of a finished job, which must be as the job left it.

        Raises:
            DataError: it is missing or was changed.
        """
        path = self.directory / job.folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"'{path}' cannot be read ({error.strerror}): evaluate again with --test") from error
        if hashlib.sha256(content).hexdigest() != self.results_of[job].sha256.get(name):
            raise DataError(f"'{path}' is damaged or was changed since it was written: evaluate again with --test")
        return content

    def predictions(self, job: JobName) -> pd.DataFrame:
        """predictions.csv of a finished job: image, label, defect_type, score, decision, and what else the
        score is made of.

        Raises:
            DataError: it is missing or was changed.
        """
        table = pd.read_csv(io.BytesIO(self.read(job, "predictions.csv")), dtype={"image": str, "defect_type": str})
        for name in ("image", "defect_type"):
            table[name] = table[name].map(unquoted, na_action="ignore")
        return table

    def pixels(self, job: JobName, images: int) -> PixelCounts | None:
        """pixels.npz of a finished job, of so many test images; None without masks or maps, and of an earlier version.

        Raises:
            DataError: it is missing or was changed.
        """
        if PIXELS not in self.results_of[job].sha256:
            return None
        return parse_pixels(self.directory / job.folder / PIXELS, self.read(job, PIXELS), images)


def read_run(directory: Path, called: str = "") -> RunRecord:
    """Read what a run left; `called` as of RunRecord.

    Raises:
        UsageError: no run's folder; those below it are named.
        DataError: a file that is damaged.
    """
    if not (directory / CONFIG).is_file():
        below = sorted(path.parent for path in directory.glob(f"**/{CONFIG}")) if directory.is_dir() else []
        found = f"; there are runs in {', '.join(map(str, below))}" if below else ""
        raise UsageError(f"'{directory}' is not the folder of a run: expected {CONFIG} in it{found}")
    config = read_config(directory / CONFIG)
    names = recorded_jobs(directory / CONFIG, config)
    results = read_results(directory, names)
    failures = read_failures(directory)
    if not results and not failures:
        raise UsageError(f"no job of the run in '{directory}' is finished yet: its command continues it")
    return RunRecord(directory, config, results, make_tables(names, results, failures), called)


def recorded_jobs(path: Path, config: Mapping[str, Any]) -> list[JobName]:
    """All jobs that a config.json stands for, in order.

    Raises:
        DataError: entries are missing or not what they should be.
    """
    try:
        net, run = config["net"], config["run"]
        datasets = [(str(own["name"]), [str(name) for name in own["subdatasets"]]) for own in datasets_of(config)]
        labels, seeds = [str(backbone["label"]) for backbone in net["backbones"]], [int(seed) for seed in run["seeds"]]
        names = job_names(datasets, labels, seeds)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise unreadable(path, KIND, error) from error
    for name in names:
        if Path(name.folder).name in (".", "..") or len(Path(name.folder).parts) != 3:
            raise DataError(f"'{path}' names class '{name.class_name}', which is no folder's name")
    return names
