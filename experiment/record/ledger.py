"""A run's results as they come: taken up where an earlier process left them, and written after every task."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import click
import torch

from errors import DataError, UsageError
from experiment.config import MODELS, JobName
from experiment.plan.runs import Run
from experiment.plan.task import Task
from experiment.record.cost import cost_table, read_costs, write_costs
from experiment.record.folders import STATE
from experiment.record.provenance import CONFIG, differences, read_config, run_config
from experiment.record.read import recorded_jobs
from experiment.record.results import (
    DamagedResultError,
    Failure,
    JobResult,
    Tables,
    make_tables,
    read_failures,
    read_result,
    write_failures,
    write_tables,
)
from files import PARTIAL, free_name, partial, write_text
from late import pandas as pd

Outcome = list[JobResult] | DataError | OSError  # what a task's jobs gave, or what main.py shows the user


class Ledger:
    """The results of a run so far: which of its jobs have them, which failed, and their tables.

    Args:
        run: whose jobs are done; of one that was begun before, config.json is compared and what is finished is read.
        device: the name of what computes.
        precision: of the computation.

    Raises:
        UsageError: the folder holds a run with other options, or of other images.
        DataError: a file of the run that is damaged, where it is not made again.
    """

    def __init__(self, run: Run, device: str, precision: torch.dtype) -> None:
        self.run = run
        self.failures: dict[tuple[str, int], Failure] = {}
        self.names: list[JobName]
        if run.config.test:
            self.names = recorded_jobs(run.directory / CONFIG, read_config(run.directory / CONFIG))
            self.failures = {(one.title, one.seed): one for one in read_failures(run.directory)}
        else:
            self.names = run.names
            config = run_config(run.config, run.detector, run.datasets, run.classes, device, precision)
            _continue_or_start(run, config)
        self.results = _finished(run, self.names)
        self._costs = read_costs(run.directory, self.results)

    @property
    def pending(self) -> list[Task]:
        """The tasks that have no result yet; of --test all."""
        return [
            task
            for task in self.run.tasks
            if self.run.config.test or any(job.name not in self.results for job in task.jobs)
        ]

    @property
    def costs(self) -> pd.DataFrame:
        """What the models so far cost."""
        return cost_table({name: self._costs[name] for name in self.names if name in self._costs})

    @cached_property
    def tables(self) -> Tables:
        """Of the results so far."""
        return make_tables(self.names, self.results, list(self.failures.values()))

    def take_down(self, task: Task, outcome: Outcome) -> None:
        """Take the results of a task's jobs down, or the failure of all of them, and write them."""
        self.__dict__.pop("tables", None)  # they are others now
        for i, job in enumerate(task.jobs):
            name = job.name
            if isinstance(outcome, list):
                self.results[name] = outcome[i]
                self._costs |= read_costs(self.run.directory, [name])
                self.failures.pop((name.title, name.seed), None)
            else:
                self.results.pop(name, None)  # what --test found before
                self.failures[name.title, name.seed] = Failure(name.title, name.seed, str(outcome))
        self.write()

    def write(self) -> None:
        """Write failed.json, the tables and what the models cost."""
        write_failures(self.run.directory, list(self.failures.values()))
        write_costs(self.run.directory, self.costs)
        write_tables(self.run.directory, self.tables)


def _continue_or_start(run: Run, config: dict[str, Any]) -> None:
    """Write config.json; where jobs were finished or begun, compare it first, and remove what a killed process left.

    Raises:
        UsageError: the folder holds a run with other options.
    """
    directory = run.directory
    begun = {path.parent for path in directory.glob(f"{MODELS}/*/.*{PARTIAL}/{STATE}")}
    for task in run.tasks:  # of several jobs the first has the state of all
        folders = [partial(job.folder) for job in task.jobs]
        begun.update(folders if folders[0] in begun else ())
    if begun or any(not path.name.startswith(".") for path in directory.glob(f"{MODELS}/*/*")):
        if not (directory / CONFIG).is_file():
            raise UsageError(f"'{directory}' holds models but no {CONFIG}: choose another --run_name or --overwrite")
        asked, around = differences(read_config(directory / CONFIG), config)
        if asked:
            raise UsageError(
                f"'{directory}' holds a run with other options ({'; '.join(asked)}): choose another --run_name, "
                "or --overwrite, which moves that run aside"
            )
        if around:
            click.echo(f"Continuing a run that differs in {'; '.join(around)}", err=True)
    else:
        write_text(directory / CONFIG, json.dumps(config, indent=2) + "\n")
    for path in [*directory.glob(f".*{PARTIAL}"), *directory.glob(f"{MODELS}/**/.*{PARTIAL}")]:  # others' lie elsewhere
        if path.is_dir() and path not in begun:
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def _finished(run: Run, names: Sequence[JobName]) -> dict[JobName, JobResult]:
    """The results of the jobs that were finished before; what is damaged of them is put aside, to be made again.

    Raises:
        UsageError: a job was of other images.
    """
    results = {}
    jobs = {job.name: job for task in run.tasks if not task.problem for job in task.jobs}
    for name in names:
        folder = run.directory / name.folder
        try:
            result = read_result(folder, name) if folder.exists() else None
        except DamagedResultError as error:
            if run.config.test:
                raise
            aside = free_name(folder, "damaged")
            folder.rename(aside)
            click.echo(f"{error}; '{folder.name}' is made again, and what is left of it is in '{aside}'", err=True)
            continue
        if result is None:
            continue
        (folder / STATE).unlink(missing_ok=True)
        job = jobs.get(name)
        if job and result.inputs and not run.config.test and not result.inputs.are_those_of(job.samples, job.root):
            raise UsageError(
                f"'{folder}' is of other images than those that are now in '{job.root}': choose another --run_name, "
                "or --overwrite, which moves the run aside"
            )
        results[name] = result
    return results
