"""What a command line stands for, found and checked before anything is written: classes, images, backbones, jobs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import backbones
from datasets import ClassSamples
from errors import DataError, UsageError
from experiment.config import DatasetConfig, DetectorConfig, JobName, RunConfig, job_names
from experiment.job import Job
from experiment.resolve import check_detector, find_classes, load_backbone, read_samples
from experiment.task import FeatureKey, Task
from methods import DETECTORS

TABLE = "table"  # the dataset whose samples are no images
ClassKey = tuple[int, str]  # a dataset of the command line, and a class of it


@dataclass(frozen=True)
class Plan:
    """One run: its configuration, the classes of every dataset, and its jobs and tasks, in order."""

    run: RunConfig
    detector: DetectorConfig
    datasets: tuple[DatasetConfig, ...]
    classes: list[list[str]]
    names: list[JobName]
    tasks: list[Task]


def make_plan(
    run: RunConfig,
    detector: DetectorConfig,
    datasets: Sequence[DatasetConfig],
    sources: dict[FeatureKey, backbones.FeatureExtractor],
) -> Plan:
    """Find and check all that a command line names.

    Args:
        run, detector, datasets: what it says.
        sources: backbones that are there, not built yet; what is missing is added.

    Raises:
        UsageError, DataError: something does not exist or cannot be used.
    """
    for backbone in detector.backbones:
        if backbone.seed is not None and len(run.seeds) > 1:
            raise UsageError(f"-b {backbone.label} has a seed of its own: give one --seed, or leave it out of the name")
    is_joint = DETECTORS[detector.command].JOINT
    sized = _with_one_size(detector.command, is_joint, datasets)
    found = [find_classes(data) for data in datasets]
    classes = [own for _, own in found]
    names = job_names(
        [(data.name, own) for data, own in zip(datasets, classes, strict=True)],
        [backbone.label for backbone in detector.backbones],
        run.seeds,
    )
    _check_titles(names)
    samples, problems = _read_all(run, datasets, found)
    groups = [[name] for name in names]
    if is_joint:
        groups = [
            [name for name in names if (name.backbone, name.seed) == key]
            for key in dict.fromkeys((name.backbone, name.seed) for name in names)
        ]
    tasks = []
    for group in groups:
        keys = [(name.dataset, name.class_name) for name in group]
        own = [samples[key] for key in keys]
        parts = _parts(own) if is_joint else [{}]
        jobs = (
            _job(name, run, detector, sized[name.dataset], found[name.dataset][0], *part)
            for name, part in zip(group, zip(own, parts, strict=True), strict=True)
        )
        tasks.append(Task(tuple(jobs), run, detector, next((problems[key] for key in keys if key in problems), None)))
    checked = set()
    for task in tasks:
        backbone = detector.backbones[task.name.backbone]
        if task.backbone not in sources:
            sources[task.backbone] = load_backbone(backbone, detector, task.name.seed, task.imagesize)
        if backbone not in checked:
            options = task.jobs[0].identity["options"]
            check_detector(sources[task.backbone], backbone, replace(detector, options=options), task.imagesize)
            checked.add(backbone)
    return Plan(run, detector, tuple(datasets), classes, names, tasks)


def _with_one_size(command: str, is_joint: bool, datasets: Sequence[DatasetConfig]) -> list[DatasetConfig]:
    """The datasets that a model learns from, tables with the images' sizes, which are the model's.

    Raises:
        UsageError: they are too many for the detector, not what it reads, or images of several sizes.
    """
    joint = " or ".join(name for name, kind in DETECTORS.items() if kind.JOINT)
    if not is_joint and len(datasets) > 1:
        raise UsageError(f"{command} is trained on one dataset, not {len(datasets)}: {joint} takes several")
    if not is_joint and datasets[0].name == TABLE:
        raise UsageError(f"{command} reads images, and dataset {TABLE} has none: {joint} reads tables")
    images = [data for data in datasets if data.name != TABLE] or list(datasets)
    sizes = {data.imagesize for data in images}
    if len(sizes) > 1:
        raise UsageError(f"one model sees images of one --imagesize, not of {' and '.join(map(str, sorted(sizes)))}")
    size = {name: getattr(images[0], name) for name in ("resize", "imagesize", "resize_mode")}
    return [replace(data, **size) if data.name == TABLE else data for data in datasets]


def _check_titles(names: Sequence[JobName]) -> None:
    """Refuse two classes of one name, whose results would share a folder."""
    folders = [name.folder for name in names]
    for name in names:
        if folders.count(name.folder) > 1:
            raise UsageError(f"two classes are called '{name.title}': leave one out, or rename its file or folder")


def _read_all(
    run: RunConfig, datasets: Sequence[DatasetConfig], found: Sequence[tuple[Path, list[str]]]
) -> tuple[dict[ClassKey, ClassSamples], dict[ClassKey, str]]:
    """The samples of every class, and what is wrong with the classes that --on_error skip leaves out."""
    samples, problems = {}, {}
    for i, (data, (root, classes)) in enumerate(zip(datasets, found, strict=True)):
        for name in classes:
            try:
                samples[i, name] = read_samples(data, root, name)
            except DataError as error:
                if run.on_error == "stop":
                    raise
                samples[i, name], problems[i, name] = ClassSamples([], []), str(error)
    return samples, problems


def _parts(samples: Sequence[ClassSamples]) -> list[dict[str, Any]]:
    """The options of a JOINT detector that tell it what every class is made of, and which of them it predicts."""
    columns = [[] if own.table is None else own.table.widths for own in samples]
    return [{"columns": columns, "part": part} for part in range(len(samples))]


def _job(
    name: JobName,
    run: RunConfig,
    detector: DetectorConfig,
    data: DatasetConfig,
    root: Path,
    samples: ClassSamples,
    part: dict[str, Any],
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
            "normalisation": asdict(backbones.normalisation_of(backbone.name, detector.normalisation)),
        },
        "transform": {"resize": data.resize, "imagesize": data.imagesize, "resize_mode": data.resize_mode},
        "table": None if samples.table is None else samples.table.to_dict(),
        "detector": detector.command,
        "options": {**detector.options, **part},
        "seed": seed,
    }
    return Job(name, run.directory / name.folder, samples, data, root, seed, identity)
