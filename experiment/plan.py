"""What a command line stands for, found and checked before anything is written: classes, images, backbones, jobs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backbones
from datasets import ClassSamples
from errors import DataError, UsageError
from experiment.config import DatasetConfig, DetectorConfig, JobName, RunConfig, job_names
from experiment.job import Job
from experiment.resolve import check_detector, find_classes, load_backbone, read_samples
from experiment.task import FeatureKey, Task


@dataclass(frozen=True)
class Plan:
    """One run: its configuration, classes and tasks, in order."""

    run: RunConfig
    detector: DetectorConfig
    data: DatasetConfig
    classes: list[str]
    tasks: list[Task]


def make_plan(
    run: RunConfig,
    detector: DetectorConfig,
    data: DatasetConfig,
    sources: dict[FeatureKey, backbones.FeatureExtractor],
) -> Plan:
    """Find and check all that a command line names.

    Args:
        run, detector, data: what it says.
        sources: backbones that are there, not built yet; what is missing is added.

    Raises:
        UsageError, DataError: something does not exist or cannot be used.
    """
    for backbone in detector.backbones:
        if backbone.seed is not None and len(run.seeds) > 1:
            raise UsageError(f"-b {backbone.label} has a seed of its own: give one --seed, or leave it out of the name")
    root, classes = find_classes(data)
    samples, problems = _read_all(run, data, root, classes)
    names = job_names(data.name, classes, [backbone.label for backbone in detector.backbones], run.seeds)
    tasks = []
    for name in names:
        job = _job(name, run, detector, data, root, samples[name.class_name])
        tasks.append(Task(job, run, detector, data, problems.get(name.class_name)))
    checked = set()
    for task in tasks:
        backbone = detector.backbones[task.job.name.backbone]
        if task.backbone not in sources:
            sources[task.backbone] = load_backbone(backbone, detector, task.job.name.seed, data.imagesize)
        if backbone not in checked:
            check_detector(sources[task.backbone], backbone, detector, data.imagesize)
            checked.add(backbone)
    return Plan(run, detector, data, classes, tasks)


def _read_all(
    run: RunConfig, data: DatasetConfig, root: Path, classes: Sequence[str]
) -> tuple[dict[str, ClassSamples], dict[str, str]]:
    """The images of every class, and what is wrong with the classes that --on_error skip leaves out."""
    samples, problems = {}, {}
    for name in classes:
        try:
            samples[name] = read_samples(data, root, name)
        except DataError as error:
            if run.on_error == "stop":
                raise
            samples[name], problems[name] = ClassSamples([], []), str(error)
    return samples, problems


def _job(
    name: JobName, run: RunConfig, detector: DetectorConfig, data: DatasetConfig, root: Path, samples: ClassSamples
) -> Job:
    backbone, weights = detector.backbones[name.backbone], detector.backbone_weights
    seed = backbone.seed_in(name.seed)
    identity: dict[str, Any] = {
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
        "detector": detector.command,
        "options": detector.options,
        "seed": seed,
    }
    return Job(name, run.directory / name.folder, samples, root, seed, identity)
