"""All runs of one command line, from where an earlier process left them; tables after every task."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import click
import torch

from detection.precision import precision_name
from errors import DataError, Interrupted, UsageError
from experiment.config import RunConfig
from experiment.machine.device import choose_device, choose_precision, device_name
from experiment.plan.notes import data_notes
from experiment.plan.runs import Choice, Run, plan_runs
from experiment.plan.task import Sources
from experiment.plan.unused import refuse_unused
from experiment.record.cost import COSTS, FORMAT
from experiment.record.folders import (
    ABLATION,
    COMPARISON,
    GRID,
    create_directory,
    list_detectors,
    move_aside,
    refuse_other_kind,
)
from experiment.record.ledger import Ledger
from experiment.record.lock import only_writer
from experiment.record.read import RunRecord, read_run
from experiment.record.results import FAILURES
from experiment.scale.parallel import choose_cluster
from experiment.show.ablation import overview, read_runs, write_side_by_side
from experiment.show.tables import light_notes, render
from experiment.train.trained import check_trained
from experiment.train.work import work
from files import write_text
from methods import dataset_defaults
from options import as_flags


def run(config: RunConfig, detectors: Mapping[str, Sequence[Choice]]) -> None:
    """Run every job that is not finished yet, write the results and print the table.

    All flags, folders, image headers and layers are checked before anything is written or downloaded.

    Args:
        config: the run options.
        detectors: by what each is called, "" of one that has RUN_NAME's folder for itself: of each of its runs what
            --grid chose, by flag, and the detector and datasets made with it; without a grid it is one run, of which
            nothing was chosen.

    Raises:
        UsageError, DataError: what main.py shows the user; DataError too where --on_error skip left jobs out.
        Interrupted: with how far the runs have come.
    """
    if config.test and config.overwrite:
        raise UsageError("--test reads the run that --overwrite would move aside: leave one of them out")
    refuse_unused(config, detectors.values())
    cluster = choose_cluster(config)
    device = torch.device("cpu") if cluster else choose_device(config.gpu)
    sources: Sources = {}
    runs = plan_runs(config, detectors, sources, is_far=cluster is not None)
    wanted = config.precision
    if config.test:
        trained = [check_trained(job, config) for one in runs for task in one.tasks for job in task.jobs]
        wanted = precision_name(trained[0].dtype)
    for (*_, layers, size, _), source in sources.items():
        source.build(layers, size, device)
    create_directory(config.family, "--results_path")
    _say(config, runs)
    if config.overwrite:
        move_aside(config.family)
    with ExitStack() as stack:
        others = _claim(stack, config, runs)
        if cluster:
            stack.enter_context(cluster)
            name, precision = cluster.device_name, cluster.choose_precision(wanted)
        else:
            name, precision = device_name(device), choose_precision(wanted, device)
        ledgers = {one.directory: Ledger(one, name, precision) for one in runs}
        order = list(dict.fromkeys(task.images for one in runs for task in one.tasks))
        pending = [task for ledger in ledgers.values() for task in ledger.pending]
        pending.sort(key=lambda task: order.index(task.images))  # a class that was begun is ended first
        outcomes = cluster.work(pending, precision) if cluster else work(pending, sources, device, precision)
        stack.enter_context(closing(outcomes))  # its bar ends before an error is shown
        try:
            if not config.test and any(ledger.results for ledger in ledgers.values()):
                click.echo(f"{_count(ledgers.values())} jobs are finished already", err=True)
            for task, outcome in outcomes:
                if not isinstance(outcome, list):
                    if config.on_error == "stop":
                        raise outcome
                    click.echo(f"Skipping {task.title}: {outcome}", err=True)
                ledgers[task.run.directory].take_down(task, outcome)
                _write_side_by_side(config, ledgers.values(), others)
            _complete(config, ledgers.values(), others)
        except Interrupted as stop:
            if not config.test:
                stop.advice = f"{_count(ledgers.values())} jobs are finished; the same command continues the run"
            raise
    _show(config, list(ledgers.values()), others)


def _claim(stack: ExitStack, config: RunConfig, runs: Sequence[Run]) -> list[RunRecord]:
    """Lock the folders of the runs and those around them, where no run of another kind is.

    Returns:
        What earlier command lines left of other detectors in the folder of several.

    Raises:
        UsageError: a folder is another kind of run's, or another process writes into it.
    """
    stack.enter_context(only_writer(config.family))
    families: dict[Path, list[Run]] = {}
    for one in runs:
        families.setdefault(one.config.family, []).append(one)
    if runs[0].called:
        refuse_other_kind(config.family, "detectors")
    for family, own in families.items():
        refuse_other_kind(family, "grid" if own[0].config.grid else "run")
    for family, own in families.items():
        folders = [] if family == config.family else [family]
        if own[0].config.grid:
            family.mkdir(exist_ok=True)
            write_text(family / GRID, json.dumps([one.config.point for one in own], indent=2) + "\n")
            folders += [one.directory for one in own]
        for folder in folders:
            folder.mkdir(exist_ok=True)
            stack.enter_context(only_writer(folder))
    if not runs[0].called:
        return []
    names = [one.called for one in runs]
    list_detectors(config.family, names)
    return read_runs(config.family, without=names) if (config.family / COMPARISON).is_file() else []


def _data_by_recipe(run: Run) -> dict[str, Any]:
    """Those of dataset's options that have what the recipe of a run's detector sets."""
    usual = dataset_defaults(run.detector.command)
    preset = dataset_defaults(run.detector.command, run.detector.recipe)
    read = [{**vars(own), **vars(own.random)} for own in run.datasets]
    return {
        name: value
        for name, value in preset.items()
        if usual.get(name) != value and all(own[name] == value for own in read)
    }


def _say(config: RunConfig, runs: Sequence[Run]) -> None:
    """What a user should know before the runs begin: what recipes set, what images are like, where results go."""
    for one in runs:
        if one.detector.set_by_recipe:
            where = f" ({one.title})" if one.title else ""
            flags, data = as_flags(one.detector.set_by_recipe), _data_by_recipe(one)
            behind = f" dataset {as_flags(data)}" if data else ""
            click.echo(f"Recipe {one.detector.recipe}{where}: {flags}{behind}", err=True)
    for note in dict.fromkeys([*(note for one in runs for note in one.notes), *data_notes(runs)]):
        click.echo(note, err=True)
    count = f", {len(runs)} runs" if runs[0].title else ""
    click.echo(f"Results go to {config.family}{count}", err=True)


def _complete(config: RunConfig, ledgers: Collection[Ledger], others: Sequence[RunRecord]) -> None:
    """Make tables that were lost again."""
    for ledger in ledgers:
        if not ledger.pending and not ledger.failures:
            ledger.write()
    _write_side_by_side(config, ledgers, others)


def _write_side_by_side(config: RunConfig, ledgers: Collection[Ledger], others: Sequence[RunRecord]) -> None:
    """Write the table of every grid's runs, and that of several detectors, where any of their jobs has ended."""
    done = [one for one in ledgers if one.results or one.failures]
    for family in dict.fromkeys(one.run.config.family for one in done if one.run.config.grid):
        own = [one for one in done if one.run.config.family == family]
        chosen = [{"run": one.run.config.point, **one.run.config.grid} for one in own]
        write_side_by_side(family / ABLATION, chosen, [one.tables.results for one in own])
    if done and done[0].run.called:
        all_runs = [*others, *done]
        where = [*((one.directory, one.choices) for one in others), *((o.run.directory, o.run.choices) for o in done)]
        chosen = [{"run": path.relative_to(config.family).as_posix(), **own} for path, own in where]
        write_side_by_side(config.family / COMPARISON, chosen, [one.tables.results for one in all_runs])
        write_side_by_side(config.family / COSTS, chosen, [one.costs for one in all_runs], FORMAT)


def _count(ledgers: Iterable[Ledger]) -> str:
    finished, jobs = zip(*((len(one.results), len(one.names)) for one in ledgers), strict=True)
    return f"{sum(finished)} of {sum(jobs)}"


def _show(config: RunConfig, ledgers: Sequence[Ledger], others: Sequence[RunRecord]) -> None:
    """Print the table of all runs.

    Raises:
        DataError: jobs failed that --on_error skip left out.
    """
    records = [*others, *(read_run(one.run.directory, one.run.called) for one in ledgers)]
    click.echo(render(overview(records), "table"))
    for note in light_notes(records):
        click.echo(note, err=True)
    click.echo(f"Results are in {config.family}", err=True)
    if failed := [one.run.directory / FAILURES for one in ledgers if one.failures]:
        jobs, all_jobs = sum(len(one.failures) for one in ledgers), sum(len(one.names) for one in ledgers)
        where = ", ".join(f"'{path}'" for path in failed)
        raise DataError(
            f"{jobs} of {all_jobs} jobs failed: the reasons are in {where}, and the same command tries them again"
        )
