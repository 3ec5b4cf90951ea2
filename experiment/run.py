"""All runs of one command line, from where an earlier process left them; tables after every job."""

import json
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import torch

import backbones
from errors import DataError, Interrupted, UsageError
from experiment.ablation import ABLATION, ablation_table, is_grid, write_ablation
from experiment.config import MODELS, DatasetConfig, DetectorConfig, JobName, RunConfig, point_names, precision_name
from experiment.job import STATE, check_trained
from experiment.lock import LOCK, only_writer
from experiment.parallel import choose_cluster
from experiment.plan import Plan, make_plan
from experiment.provenance import CONFIG, differences, read_config, run_config
from experiment.resolve import choose_device, choose_precision, create_directory, device_name
from experiment.results import (
    FAILURES,
    DamagedResultError,
    Failure,
    JobResult,
    Tables,
    make_tables,
    read_failures,
    read_result,
    read_run,
    recorded_jobs,
    write_failures,
    write_tables,
)
from experiment.tables import render, summary
from experiment.task import FeatureKey, Outcome, Task, group, work
from experiment.unused import refuse_unused
from files import PARTIAL, free_name, sha256_of, write_text

GRID = "grid.json"  # in the folder of a grid's runs, from its start: the names of theirs
Choice = tuple[Mapping[str, str], DetectorConfig, Sequence[DatasetConfig]]
Sources = dict[FeatureKey, backbones.FeatureExtractor]


def run(run: RunConfig, choices: Sequence[Choice]) -> None:
    """Run every job that is not finished yet, write the results and print the table.

    All flags, folders, image headers and layers are checked before anything is written or downloaded.

    Args:
        run: the run options.
        choices: of each run what --grid chose, by flag, and the detector and datasets made with it; without a grid it
            is one run, of which nothing was chosen.

    Raises:
        UsageError, DataError: what main.py shows the user; DataError too where --on_error skip left jobs out.
        Interrupted: with how far the runs have come.
    """
    if run.test and run.overwrite:
        raise UsageError("--test reads the run that --overwrite would move aside: leave one of them out")
    refuse_unused(run, choices)
    cluster = choose_cluster(run)
    device = torch.device("cpu") if cluster else choose_device(run.gpu)
    sources: Sources = {}
    plans = _make_plans(run, choices, sources, is_far=cluster is not None)
    several = bool(plans[0].run.grid)
    trained = (
        [check_trained(job, run) for plan in plans for task in plan.tasks for job in task.jobs] if run.test else []
    )
    for (*_, layers, imagesize, _), source in sources.items():
        source.build(layers, (imagesize, imagesize), device)
    create_directory(run.family, "--results_path")
    for plan in plans:
        _say_recipe(plan)
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        click.echo(note, err=True)
    click.echo(f"Results go to {run.family}{f', {len(plans)} runs' if several else ''}", err=True)
    if run.overwrite:
        _move_aside(run.family)
    with ExitStack() as stack:
        stack.enter_context(only_writer(run.family))
        _refuse_other_kind(run.family, several)
        if several:
            write_text(run.family / GRID, json.dumps([plan.run.point for plan in plans], indent=2) + "\n")
        wanted = precision_name(trained[0].dtype) if run.test else run.precision
        if cluster:
            stack.enter_context(cluster)
            name, precision = cluster.device_name, cluster.choose_precision(wanted)
        else:
            name, precision = device_name(device), choose_precision(wanted, device)
        runs = []
        for plan in plans:
            if several:
                plan.run.directory.mkdir(exist_ok=True)
                stack.enter_context(only_writer(plan.run.directory))
            runs.append(_Run(plan, name, precision))
        pending = [task for one in runs for task in one.pending]
        outcomes = cluster.work(pending, precision) if cluster else _work_here(pending, sources, device, precision)
        stack.enter_context(closing(outcomes))  # its bar ends before an error is shown
        try:
            _record(run, runs, outcomes)
        except Interrupted as stop:
            if not run.test:
                stop.advice = f"{_count(runs)} jobs are finished; the same command continues the run"
            raise
    _show(run, runs)


class _Run:
    """One run in progress: which of its jobs have results, which failed, and their tables.

    Args:
        plan: what the run is of.
        device: the name of what computes.
        precision: of the computation.
    """

    def __init__(self, plan: Plan, device: str, precision: torch.dtype) -> None:
        self.plan = plan
        self.directory = plan.run.directory
        self.failures: dict[tuple[str, int], Failure] = {}
        self.names: list[JobName]
        if plan.run.test:
            self.names = recorded_jobs(self.directory / CONFIG, read_config(self.directory / CONFIG))
            self.failures = {(one.title, one.seed): one for one in read_failures(self.directory)}
        else:
            self.names = plan.names
            config = run_config(plan.run, plan.detector, plan.datasets, plan.classes, device, precision)
            _continue_or_start(self.directory, config)
        self.results = _finished(plan, self.names)

    @property
    def pending(self) -> list[Task]:
        """The tasks that have no result yet; of --test all."""
        return [
            task
            for task in self.plan.tasks
            if self.plan.run.test or any(job.name not in self.results for job in task.jobs)
        ]

    @cached_property
    def tables(self) -> Tables:
        """Of the results so far."""
        return make_tables(self.names, self.results, list(self.failures.values()))

    def record(self, task: Task, outcome: Outcome) -> None:
        """Take the results of a task's jobs down, or the failure of all of them."""
        self.__dict__.pop("tables", None)  # they are others now
        for i, job in enumerate(task.jobs):
            name = job.name
            if isinstance(outcome, list):
                self.results[name] = outcome[i]
                self.failures.pop((name.title, name.seed), None)
            else:
                self.results.pop(name, None)  # what --test found before
                self.failures[name.title, name.seed] = Failure(name.title, name.seed, str(outcome))

    def write(self) -> None:
        """Write failed.json and the tables."""
        write_failures(self.directory, list(self.failures.values()))
        write_tables(self.directory, self.tables)


def _make_plans(
    run: RunConfig,
    choices: Sequence[Choice],
    sources: Sources,
    is_far: bool,
) -> list[Plan]:
    """A plan for every choice; their backbones are added to the sources. Workers that are far need absolute paths."""
    plans = []
    digests = {}
    for name, (grid, detector, datasets) in zip(point_names([grid for grid, _, _ in choices]), choices, strict=True):
        if is_far:
            datasets = [own.absolute() for own in datasets]
        weights = detector.backbone_weights
        if weights not in digests:
            digests[weights] = sha256_of(Path(weights)) if Path(weights).is_file() else None
        detector = replace(detector, backbone_weights_sha256=digests[weights])
        plans.append(make_plan(replace(run, grid=dict(grid), point=name), detector, datasets, sources))
    return plans


def _show(run: RunConfig, runs: Sequence[_Run]) -> None:
    """Print the table of all runs.

    Raises:
        DataError: jobs failed that --on_error skip left out.
    """
    records = [read_run(one.directory) for one in runs]
    click.echo(render(ablation_table(records) if is_grid(records) else summary(records), "table"))
    click.echo(f"Results are in {run.family}", err=True)
    if failed := [one.directory / FAILURES for one in runs if one.failures]:
        jobs, all_jobs = sum(len(one.failures) for one in runs), sum(len(one.names) for one in runs)
        where = ", ".join(f"'{path}'" for path in failed)
        raise DataError(
            f"{jobs} of {all_jobs} jobs failed: the reasons are in {where}, and the same command tries them again"
        )


def _work_here(
    tasks: Sequence[Task], sources: Sources, device: torch.device, precision: torch.dtype
) -> Generator[tuple[Task, Outcome], None, None]:
    """One job after the other in this process."""
    for shared in group(tasks):
        yield from zip(shared, work(shared, sources[shared[0].backbone], device, precision), strict=True)


def _record(run: RunConfig, runs: Sequence[_Run], outcomes: Iterator[tuple[Task, Outcome]]) -> None:
    """Take all outcomes down as they come.

    Raises:
        DataError, OSError: the first failure, unless --on_error skip goes on.
    """
    if not run.test and any(one.results for one in runs):
        click.echo(f"{_count(runs)} jobs are finished already", err=True)
    by_directory = {one.directory: one for one in runs}
    for task, outcome in outcomes:
        if not isinstance(outcome, list):
            if run.on_error == "stop":
                raise outcome
            click.echo(f"Skipping {task.title}: {outcome}", err=True)
        one = by_directory[task.run.directory]
        one.record(task, outcome)
        one.write()
        _write_ablation(runs)
    for one in runs:  # tables that were lost are made again
        if not one.pending and not one.failures:
            one.write()
    _write_ablation(runs)


def _write_ablation(runs: Sequence[_Run]) -> None:
    rows = [(one.plan.run, one.tables.results) for one in runs if one.results or one.failures]
    if rows and rows[0][0].grid:
        write_ablation(rows[0][0].family, rows)


def _count(runs: Sequence[_Run]) -> str:
    return f"{sum(len(one.results) for one in runs)} of {sum(len(one.names) for one in runs)}"


def _say_recipe(plan: Plan) -> None:
    if not plan.detector.set_by_recipe:
        return
    flags = (
        f"--{name}" if value is True else f"--{name} {value}" for name, value in plan.detector.set_by_recipe.items()
    )
    where = f" ({plan.run.point})" if plan.run.point else ""
    click.echo(f"Recipe {plan.detector.recipe}{where}: {' '.join(flags)}", err=True)


def _refuse_other_kind(directory: Path, of_grid: bool) -> None:
    """Keep the runs of a grid and a run without one from using one folder."""
    names, kind = ((CONFIG,), "a run without --grid") if of_grid else ((GRID, ABLATION), "the runs of a --grid")
    if any((directory / name).is_file() for name in names):
        raise UsageError(
            f"'{directory}' holds {kind}: choose another --run_name, or --overwrite, which moves them aside"
        )


def _continue_or_start(directory: Path, config: dict[str, Any]) -> None:
    """Write config.json; where jobs were finished or begun, compare it first, and remove what a killed process left.

    Raises:
        UsageError: the folder holds a run with other options.
    """
    begun = {path.parent for path in directory.glob(f"{MODELS}/*/.*{PARTIAL}/{STATE}")}
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


def _finished(plan: Plan, names: Sequence[JobName]) -> dict[JobName, JobResult]:
    """The results of the jobs that were finished before; what is damaged of them is put aside, to be made again.

    Raises:
        UsageError: a job was of other images.
    """
    results = {}
    jobs = {job.name: job for task in plan.tasks if not task.problem for job in task.jobs}
    for name in names:
        folder = plan.run.directory / name.folder
        try:
            result = read_result(folder, name) if folder.exists() else None
        except DamagedResultError as error:
            if plan.run.test:
                raise
            aside = free_name(folder, "damaged")
            folder.rename(aside)
            click.echo(f"{error}; '{folder.name}' is made again, and what is left of it is in '{aside}'", err=True)
            continue
        if result is None:
            continue
        (folder / STATE).unlink(missing_ok=True)
        job = jobs.get(name)
        if job and result.inputs and not plan.run.test and not result.inputs.are_those_of(job.samples, job.root):
            raise UsageError(
                f"'{folder}' is of other images than those that are now in '{job.root}': choose another --run_name, "
                "or --overwrite, which moves the run aside"
            )
        results[name] = result
    return results


def _move_aside(directory: Path) -> None:
    """Rename a run's folder, unless nothing is in it."""
    with only_writer(directory) as unlock:
        if all(path.name == LOCK for path in directory.iterdir()):
            return
        for lock in directory.rglob(f"*/{LOCK}"):  # runs whose names go on from this one's
            with only_writer(lock.parent):
                pass
        target = free_name(directory, "old")
        unlock()
        directory.rename(target)
        directory.mkdir()
    click.echo(f"The earlier run is now {target}", err=True)
