"""A run: all jobs of one command line, in order, from where an earlier process left it; tables after every one."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch

import backbones
from datasets import ClassSamples
from errors import DataError, Interrupted, UsageError
from experiment.config import DatasetConfig, DetectorConfig, JobName, RunConfig, job_names, precision_name
from experiment.features import ClassBanks, build_banks
from experiment.job import STATE, Job, check_trained, run_job, test_job
from experiment.lock import LOCK, only_writer
from experiment.memory import one_line_when_full
from experiment.provenance import CONFIG, differences, read_config, run_config
from experiment.resolve import (
    FeatureKey,
    choose_device,
    choose_precision,
    create_directory,
    feature_key,
    find_classes,
    load_backbone,
    read_samples,
)
from experiment.results import (
    FAILURES,
    Failure,
    JobResult,
    make_tables,
    read_failures,
    read_results,
    read_run,
    recorded_jobs,
    write_failures,
    write_tables,
)
from experiment.tables import render, summary
from files import PARTIAL, write_text
from simplenet import SimpleNet

FailureOf = dict[tuple[str, int], Failure]


@dataclass(frozen=True)
class Plan:
    """What a command line stands for, found and checked.

    Attributes:
        classes: in order.
        jobs: in order.
        unreadable: what is wrong with the classes that --on_error skip leaves out.
        keys: what the features of every job depend on.
        sources: a backbone for every key.
        device, precision: to compute on and in.
    """

    classes: list[str]
    jobs: list[Job]
    unreadable: dict[str, DataError]
    keys: dict[JobName, FeatureKey]
    sources: dict[FeatureKey, backbones.FeatureExtractor]
    device: torch.device
    precision: torch.dtype


def run(run: RunConfig, detector: DetectorConfig, data: DatasetConfig) -> pd.DataFrame:
    """Run every job that is not finished yet, write the results and print the table.

    All flags, folders, image headers and layers are checked before anything is written or downloaded.

    Returns:
        The table of results.csv.

    Raises:
        UsageError, DataError: what main.py shows the user; DataError too where --on_error skip left jobs out.
        Interrupted: with how far the run has come.
    """
    plan = _plan(run, detector, data)
    create_directory(run.directory, "--results_path")
    if detector.set_by_recipe:
        flags = (
            f"--{name}" if value is True else f"--{name} {value}" for name, value in detector.set_by_recipe.items()
        )
        click.echo(f"Recipe {detector.recipe}: {' '.join(flags)}", err=True)
    click.echo(f"Results go to {run.directory}", err=True)
    if run.overwrite:
        _move_aside(run.directory)
    with only_writer(run.directory):
        if run.test:
            names = recorded_jobs(run.directory / CONFIG, read_config(run.directory / CONFIG))
        else:
            names = [job.name for job in plan.jobs]
            config = run_config(run, detector, data, plan.classes, plan.device, plan.precision)
            _continue_or_start(run.directory, config)
        results = _finished(run.directory, names)
        try:
            failures = _run_jobs(run, detector, data, plan, names, results)
        except Interrupted as stop:
            if not run.test:
                stop.advice = f"{len(results)} of {len(names)} jobs are finished; the same command continues the run"
            raise
    recorded = read_run(run.directory)
    click.echo(render(summary([recorded]), "table"))
    click.echo(f"Results are in {run.directory}", err=True)
    if failures:
        raise DataError(
            f"{len(failures)} of {len(names)} jobs failed: the reasons are in '{run.directory / FAILURES}', "
            "and the same command tries them again"
        )
    return recorded.tables.results


def _plan(run: RunConfig, detector: DetectorConfig, data: DatasetConfig) -> Plan:
    """Find and check all that a command line names.

    Raises:
        UsageError, DataError: something does not exist or cannot be used.
    """
    for backbone in detector.backbones:
        if backbone.seed is not None and len(run.seeds) > 1:
            raise UsageError(f"-b {backbone.label} has a seed of its own: give one --seed, or leave it out of the name")
    if run.test and run.overwrite:
        raise UsageError("--test reads the run that --overwrite would move aside: leave one of them out")
    root, classes = find_classes(data)
    samples, unreadable = _read_all(run, data, root, classes)
    names = job_names(data.name, classes, [backbone.label for backbone in detector.backbones], run.seeds)
    jobs = [_job(name, run, detector, data, root, samples[name.class_name]) for name in names]
    trained = [check_trained(job, run) for job in jobs] if run.test else []
    keys = {name: feature_key(detector.backbones[name.backbone], detector, name.seed) for name in names}
    sources: dict[FeatureKey, backbones.FeatureExtractor] = {}
    for name, key in keys.items():
        if key not in sources:
            sources[key] = load_backbone(detector.backbones[name.backbone], detector, name.seed, data.imagesize)
    device = choose_device(run.gpu)
    precision = choose_precision(precision_name(trained[0].dtype) if run.test else run.precision, device)
    for key, extractor in sources.items():
        extractor.build(key[1], (data.imagesize, data.imagesize), device)
    return Plan(classes, jobs, unreadable, keys, sources, device, precision)


def _run_jobs(
    run: RunConfig,
    detector: DetectorConfig,
    data: DatasetConfig,
    plan: Plan,
    names: Sequence[JobName],
    results: dict[JobName, JobResult],
) -> FailureOf:
    """Run the jobs that have no result yet, or test all; the tables are written after every one.

    Args:
        run, detector, data, plan: what to do.
        names: all jobs of the tables.
        results: of the finished jobs; those of others are added.

    Returns:
        What --on_error skip went on without, by title and seed.
    """
    pending = [job for job in plan.jobs if run.test or job.name not in results]
    if not run.test and results:
        click.echo(f"{len(results)} of {len(names)} jobs are finished already", err=True)
    failures: FailureOf = {}
    if run.test:
        failures = {(one.title, one.seed): one for one in read_failures(run.directory)}
    bank_keys = [(job.name.class_name, plan.keys[job.name]) for job in pending]
    banks: dict[tuple[str, FeatureKey], ClassBanks] = {}
    for i, (job, bank_key) in enumerate(zip(pending, bank_keys, strict=True)):
        try:
            if problem := plan.unreadable.get(job.name.class_name):
                raise problem
            with one_line_when_full():
                model = SimpleNet(
                    plan.sources[bank_key[1]],
                    detector.backbones[job.name.backbone].layers,
                    (data.imagesize, data.imagesize),
                    seed=job.seed,
                    precision=plan.precision,
                    **detector.options,
                ).to(plan.device)
                if run.feature_bank != "off" and not model.train_backbone and bank_key not in banks:
                    banks[bank_key] = build_banks(job.name.title, model, job.samples, data, run.feature_bank, run.test)
            work = test_job if run.test else run_job
            results[job.name] = work(job, model, run, data, banks.get(bank_key))
            failures.pop((job.name.title, job.name.seed), None)
        except (DataError, OSError) as error:
            if run.on_error == "stop":
                raise
            click.echo(f"Skipping {job.name.title}, seed {job.name.seed}: {error}", err=True)
            results.pop(job.name, None)  # what --test found before
            failures[job.name.title, job.name.seed] = Failure(job.name.title, job.name.seed, str(error))
        write_failures(run.directory, list(failures.values()))
        write_tables(run.directory, make_tables(names, results, list(failures.values())))
        if bank_key not in bank_keys[i + 1 :]:  # no later job reads these features
            banks.pop(bank_key, None)
    if not pending:  # tables that were lost are made again
        write_tables(run.directory, make_tables(names, results))
    return failures


def _read_all(
    run: RunConfig, data: DatasetConfig, root: Path, classes: Sequence[str]
) -> tuple[dict[str, ClassSamples], dict[str, DataError]]:
    """The images of every class, and what is wrong with the classes that --on_error skip leaves out."""
    samples, unreadable = {}, {}
    for name in classes:
        try:
            samples[name] = read_samples(data, root, name)
        except DataError as error:
            if run.on_error == "stop":
                raise
            samples[name], unreadable[name] = ClassSamples([], []), error
    return samples, unreadable


def _continue_or_start(directory: Path, config: dict[str, Any]) -> None:
    """Write config.json; where jobs were finished or begun, compare it first, and remove what a killed process left.

    Raises:
        UsageError: the folder holds a run with other options.
    """
    begun = {path.parent for path in directory.glob(f"models/*/.*{PARTIAL}/{STATE}")}
    if begun or any(not path.name.startswith(".") for path in directory.glob("models/*/*")):
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
    for path in list(directory.rglob(f".*{PARTIAL}")):
        if path.is_dir() and path not in begun:
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def _finished(directory: Path, names: Sequence[JobName]) -> dict[JobName, JobResult]:
    """The results of the jobs that were finished before."""
    results = read_results(directory, names)
    for name in results:
        (directory / name.folder / STATE).unlink(missing_ok=True)
    return results


def _move_aside(directory: Path) -> None:
    """Rename a run's folder, unless nothing is in it."""
    with only_writer(directory):
        if all(path.name == LOCK for path in directory.iterdir()):
            return
        number = 1
        while (target := directory.with_name(f"{directory.name}.old-{number}")).exists():
            number += 1
        (directory / LOCK).unlink()
        directory.rename(target)
        directory.mkdir()
    click.echo(f"The earlier run is now {target}", err=True)


def _job(
    name: JobName, run: RunConfig, detector: DetectorConfig, data: DatasetConfig, root: Path, samples: ClassSamples
) -> Job:
    backbone, weights = detector.backbones[name.backbone], detector.backbone_weights
    seed = backbone.seed_in(name.seed)
    identity = {
        "title": name.title,
        "dataset": data.name,
        "class_name": name.class_name,
        "backbone": {
            "name": backbone.name,
            "layers": list(backbone.layers),
            "weights": weights if weights in ("pretrained", "random") else str(Path(weights).resolve()),
            "seed": seed,
        },
        "transform": {"resize": data.resize, "imagesize": data.imagesize, "resize_mode": data.resize_mode},
        "options": detector.options,
        "seed": seed,
    }
    return Job(name, run.directory / name.folder, samples, root, seed, identity)
