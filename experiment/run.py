"""All runs of one command line, from where an earlier process left them; tables after every task."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing

import click
import torch

from detection.precision import precision_name
from errors import DataError, Interrupted, UsageError
from experiment.config import RunConfig
from experiment.dataset_config import DatasetConfig
from experiment.detector_config import DetectorConfig
from experiment.machine.device import choose_device, choose_precision, device_name
from experiment.plan.runs import Run, plan_runs
from experiment.plan.task import Sources
from experiment.plan.unused import refuse_unused
from experiment.record.folders import GRID, create_directory, move_aside, refuse_other_kind
from experiment.record.ledger import Ledger
from experiment.record.lock import only_writer
from experiment.record.read import read_run
from experiment.record.results import FAILURES
from experiment.scale.parallel import choose_cluster
from experiment.show.ablation import ablation_table, is_grid, write_ablation
from experiment.show.tables import light_notes, render, summary
from experiment.train.trained import check_trained
from experiment.train.work import work
from files import write_text


def run(
    config: RunConfig, choices: Sequence[tuple[Mapping[str, str], DetectorConfig, Sequence[DatasetConfig]]]
) -> None:
    """Run every job that is not finished yet, write the results and print the table.

    All flags, folders, image headers and layers are checked before anything is written or downloaded.

    Args:
        config: the run options.
        choices: of each run what --grid chose, by flag, and the detector and datasets made with it; without a grid it
            is one run, of which nothing was chosen.

    Raises:
        UsageError, DataError: what main.py shows the user; DataError too where --on_error skip left jobs out.
        Interrupted: with how far the runs have come.
    """
    if config.test and config.overwrite:
        raise UsageError("--test reads the run that --overwrite would move aside: leave one of them out")
    refuse_unused(config, choices)
    cluster = choose_cluster(config)
    device = torch.device("cpu") if cluster else choose_device(config.gpu)
    sources: Sources = {}
    runs = plan_runs(config, choices, sources, is_far=cluster is not None)
    wanted = config.precision
    if config.test:
        trained = [check_trained(job, config) for one in runs for task in one.tasks for job in task.jobs]
        wanted = precision_name(trained[0].dtype)
    for (*_, layers, imagesize, _), source in sources.items():
        source.build(layers, (imagesize, imagesize), device)
    create_directory(config.family, "--results_path")
    _say(config, runs)
    if config.overwrite:
        move_aside(config.family)
    with ExitStack() as stack:
        stack.enter_context(only_writer(config.family))
        several = bool(runs[0].config.grid)
        refuse_other_kind(config.family, several)
        if several:
            write_text(config.family / GRID, json.dumps([one.config.point for one in runs], indent=2) + "\n")
        if cluster:
            stack.enter_context(cluster)
            name, precision = cluster.device_name, cluster.choose_precision(wanted)
        else:
            name, precision = device_name(device), choose_precision(wanted, device)
        ledgers = {}
        for one in runs:
            if several:
                one.directory.mkdir(exist_ok=True)
                stack.enter_context(only_writer(one.directory))
            ledgers[one.directory] = Ledger(one, name, precision)
        pending = [task for ledger in ledgers.values() for task in ledger.pending]
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
                _write_ablation(ledgers.values())
            _complete(ledgers.values())
        except Interrupted as stop:
            if not config.test:
                stop.advice = f"{_count(ledgers.values())} jobs are finished; the same command continues the run"
            raise
    _show(config, list(ledgers.values()))


def _say(config: RunConfig, runs: Sequence[Run]) -> None:
    """What a user should know before the runs begin: what recipes set, what images are like, where results go."""
    for one in runs:
        if one.detector.set_by_recipe:
            flags = (
                f"--{name}" if value is True else f"--{name} {value}"
                for name, value in one.detector.set_by_recipe.items()
            )
            where = f" ({one.config.point})" if one.config.point else ""
            click.echo(f"Recipe {one.detector.recipe}{where}: {' '.join(flags)}", err=True)
    for note in dict.fromkeys(note for one in runs for note in one.notes):
        click.echo(note, err=True)
    count = f", {len(runs)} runs" if runs[0].config.grid else ""
    click.echo(f"Results go to {config.family}{count}", err=True)


def _complete(ledgers: Iterable[Ledger]) -> None:
    """Make tables that were lost again."""
    for ledger in ledgers:
        if not ledger.pending and not ledger.failures:
            ledger.write()
    _write_ablation(ledgers)


def _write_ablation(ledgers: Iterable[Ledger]) -> None:
    """Write the table of a grid's runs, where there is one and any of its jobs has ended."""
    rows = [(one.run.config, one.tables.results) for one in ledgers if one.results or one.failures]
    if rows and rows[0][0].grid:
        write_ablation(rows[0][0].family, rows)


def _count(ledgers: Iterable[Ledger]) -> str:
    finished, jobs = zip(*((len(one.results), len(one.names)) for one in ledgers), strict=True)
    return f"{sum(finished)} of {sum(jobs)}"


def _show(config: RunConfig, ledgers: Sequence[Ledger]) -> None:
    """Print the table of all runs.

    Raises:
        DataError: jobs failed that --on_error skip left out.
    """
    records = [read_run(one.run.directory) for one in ledgers]
    click.echo(render(ablation_table(records) if is_grid(records) else summary(records), "table"))
    for note in light_notes(records):
        click.echo(note, err=True)
    click.echo(f"Results are in {config.family}", err=True)
    if failed := [one.run.directory / FAILURES for one in ledgers if one.failures]:
        jobs, all_jobs = sum(len(one.failures) for one in ledgers), sum(len(one.names) for one in ledgers)
        where = ", ".join(f"'{path}'" for path in failed)
        raise DataError(
            f"{jobs} of {all_jobs} jobs failed: the reasons are in {where}, and the same command tries them again"
        )
