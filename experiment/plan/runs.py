"""The runs that a command line stands for, found and checked before anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import ClassSamples, Reading
from detection.description import DESCRIPTION, read_description
from errors import DataError, UsageError
from experiment.config import JobName, RunConfig, job_names, point_names
from experiment.dataset_config import DatasetConfig
from experiment.detector_config import DetectorConfig
from experiment.plan.class_names import classes_of_one_model, notes_of_names
from experiment.plan.job import make_job
from experiment.plan.reading import ClassFound
from experiment.plan.resolve import Known, check_detector, find_classes, load_backbone, notes_of_roots, read_samples
from experiment.plan.task import Sources, Task
from experiment.plan.tiles import in_words_of_tiles
from files import partial, readable, sha256_of
from methods import DETECTORS
from options import declared

TABLE = "table"  # the dataset whose samples are no images
LONGEST_NAME = 255  # bytes, of nearly all file systems
ClassKey = tuple[int, str, int | None]  # a dataset of the command line, a class of it, the seed that draws its images
Choice = tuple[Mapping[str, str], DetectorConfig, Sequence[DatasetConfig]]  # of --grid, by flag, and what it makes


@dataclass(frozen=True)
class Run:
    """One configuration and its folder.

    Attributes:
        config, detector, datasets: what the command line says.
        classes: of every dataset.
        names: of all jobs, in order.
        tasks: the models to train for them, in order.
        notes: what to say of the images.
        called: its detector, among several of a command line; else "".
    """

    config: RunConfig
    detector: DetectorConfig
    datasets: tuple[DatasetConfig, ...]
    classes: list[list[str]]
    names: list[JobName]
    tasks: list[Task]
    notes: list[str]
    called: str = ""

    @property
    def directory(self) -> Path:
        """Its folder."""
        return self.config.directory

    @property
    def choices(self) -> dict[str, str]:
        """As of RunRecord."""
        return {"detector": self.called, **self.config.grid} if self.called else self.config.grid

    @property
    def title(self) -> str:
        """What tells it from the other runs of the command line; empty where there is no other."""
        return " ".join(filter(None, (self.called, self.config.point)))


def plan_runs(
    config: RunConfig, detectors: Mapping[str, Sequence[Choice]], sources: Sources, is_far: bool
) -> list[Run]:
    """A run for every detector of a command line and every choice of a grid.

    Args:
        config: the run options.
        detectors: the choices of each by what it is called; "" of one that has RUN_NAME's folder for itself.
        sources: the backbones are added to them.
        is_far: whether workers may not share this process's working directory, and need absolute paths.

    Raises:
        UsageError, DataError: as plan_run.
    """
    runs = []
    digests: dict[str, str | None] = {}
    known: Known = {}
    for called, choices in detectors.items():
        points = point_names([grid for grid, _, _ in choices])
        for point, (grid, detector, datasets) in zip(points, choices, strict=True):
            if is_far:
                datasets = [own.absolute() for own in datasets]
            weights = detector.backbone_weights
            if weights not in digests:
                digests[weights] = sha256_of(Path(weights)) if Path(weights).is_file() else None
            detector = replace(detector, backbone_weights_sha256=digests[weights], files_sha256=_digests(detector))
            own = replace(config.of_detector(called), grid=dict(grid), point=point)
            try:
                runs.append(plan_run(own, detector, datasets, sources, known, called))
            except UsageError as error:
                if len(detectors) > 1:
                    raise UsageError(f"{called}: {error}") from error
                raise
    return runs


def plan_run(
    config: RunConfig,
    detector: DetectorConfig,
    datasets: Sequence[DatasetConfig],
    sources: Sources,
    known: Known,
    called: str = "",
) -> Run:
    """Find and check all that a command line names.

    Args:
        config, detector, datasets: what it says.
        sources: backbones that are there, not built yet; what is missing is added.
        known: as of read_samples.
        called: as of Run.

    Raises:
        UsageError, DataError: something does not exist or cannot be used.
    """
    for backbone in detector.backbones:
        if backbone.seed is not None and len(config.seeds) > 1:
            raise UsageError(f"-b {backbone.label} has a seed of its own: give one --seed, or leave it out of the name")
    is_joint = DETECTORS[detector.command].JOINT
    _check_sizes(detector.command, is_joint, datasets)
    found = [find_classes(data) for data in datasets]
    classes = [own for _, own in found]
    names = job_names(
        [(data.name, own) for data, own in zip(datasets, classes, strict=True)],
        [backbone.label for backbone in detector.backbones],
        config.seeds,
    )
    _check_titles(names)
    looked_at, problems = _read_all(config, datasets, found, names, known)
    datasets = [
        _with_geometry(data, [one for key, one in looked_at.items() if key[0] == i]) for i, data in enumerate(datasets)
    ]
    sized = _with_one_size(datasets)
    groups = [[name] for name in names]
    if is_joint or datasets[0].one_model:
        groups = [
            [name for name in names if (name.backbone, name.seed) == key]
            for key in dict.fromkeys((name.backbone, name.seed) for name in names)
        ]
    tasks = []
    for group in groups:
        keys = [_key(name, datasets) for name in group]
        own = [looked_at[key] for key in keys]
        parts = _parts([one.samples for one in own]) if is_joint else [{} for _ in own]
        together = None if is_joint or len(group) == 1 else classes_of_one_model(detector, datasets[0], group)
        jobs = (
            make_job(name, config, detector, sized[name.dataset], found[name.dataset][0], *part, together)
            for name, part in zip(group, zip(own, parts, strict=True), strict=True)
        )
        problem = next((problems[key] for key in keys if key in problems), None)
        tasks.append(Task(tuple(jobs), config, detector, problem, called))
    checked, said = set(), []
    is_masked = any(data.mask_of_interest is not None for data in datasets)
    with in_words_of_tiles(datasets):
        for task in tasks:
            backbone = detector.backbones[task.name.backbone]
            if task.backbone not in sources:
                sources[task.backbone] = load_backbone(backbone, detector, task.name.seed, task.size)
            if backbone not in checked:
                options = task.jobs[0].identity["options"]
                own = replace(detector, options=options)
                said += check_detector(sources[task.backbone], backbone, own, task.size, is_masked)
                checked.add(backbone)
    notes = notes_of_roots(datasets, [root for root, _ in found]) + _geometry_notes(datasets, looked_at)
    notes += notes_of_names(detector, names) + said
    notes += dict.fromkeys(note for one in looked_at.values() for note in one.notes)
    return Run(config, detector, tuple(datasets), classes, names, tasks, notes, called)


def _digests(detector: DetectorConfig) -> dict[str, str]:
    """The SHA-256 of every file that an option names and that is there."""
    named = [own.name for own in declared(DETECTORS[detector.command].Options) if own.option.is_file]
    paths = {name: Path(detector.options[name]) for name in named if detector.options[name]}
    return {name: sha256_of(path) for name, path in paths.items() if path.is_file()}


def _check_sizes(command: str, is_joint: bool, datasets: Sequence[DatasetConfig]) -> None:
    """See that a detector can learn from datasets.

    Raises:
        UsageError: they are too many for the detector, not what it reads, or images of several sizes.
    """
    joint = " or ".join(name for name, kind in DETECTORS.items() if kind.JOINT)
    if not is_joint and len(datasets) > 1:
        raise UsageError(f"{command} is trained on one dataset, not {len(datasets)}: {joint} takes several")
    if not is_joint and datasets[0].name == TABLE:
        raise UsageError(f"{command} reads images, and dataset {TABLE} has none: {joint} reads tables")
    images = _images(datasets)
    if any(data.tile for data in images) and len(images) < len(datasets):
        raise UsageError(
            f"{command} takes no --tile where it learns from tables too, whose rows are whole: leave it out"
        )
    sizes = {data.tiling.tile: str(data.tile or data.imagesize) for data in images}
    if len(sizes) > 1:
        shown = " and ".join(sizes[size] for size in sorted(sizes))
        raise UsageError(f"one model sees images of one --imagesize, or tiles of one --tile, not of {shown}")


def _with_one_size(datasets: Sequence[DatasetConfig]) -> list[DatasetConfig]:
    """The datasets that a model learns from, tables with the images' sizes, which are the model's."""
    images = _images(datasets)
    size = {name: getattr(images[0], name) for name in ("resize", "imagesize", "resize_mode")}
    return [replace(data, **size) if data.name == TABLE else data for data in datasets]


def _check_titles(names: Sequence[JobName]) -> None:
    """Refuse two classes of one name, whose results would share a folder, and a name that no folder can have."""
    folders = [name.folder for name in names]
    for name in names:
        if readable(name.title) != name.title:
            raise UsageError(f"class '{readable(name.class_name)}' has a name that is not UTF-8: rename its folder")
        temporary = partial(Path(name.folder)).name
        if len(temporary.encode()) > LONGEST_NAME:
            longest = LONGEST_NAME - len(temporary.encode()) + len(name.class_name.encode())
            raise UsageError(
                f"class '{name.class_name}' has too long a name for the folder of its model: expected at most "
                f"{longest} bytes, rename it"
            )
        if folders.count(name.folder) > 1:
            raise UsageError(f"two classes are called '{name.title}': leave one out, or rename its file or folder")


def _images(datasets: Sequence[DatasetConfig]) -> list[DatasetConfig]:
    """The datasets of images; where there are none, the tables, which take nothing from each other."""
    return [data for data in datasets if data.name != TABLE] or list(datasets)


def _with_geometry(data: DatasetConfig, classes: Sequence[ClassFound]) -> DatasetConfig:
    """A dataset whose geometry is decided, by its training images where nothing else did: square unless they are."""
    if data.resize_mode is not None:
        return data
    return replace(data, resize_mode="aspect" if all(one.is_square for one in classes) else "square")


def _geometry_notes(datasets: Sequence[DatasetConfig], found: Mapping[ClassKey, ClassFound]) -> list[str]:
    """What is said of datasets whose images change their shape."""
    return [
        f"{data.name}: not all images are square; all are resized whole to {data.imagesize} x {data.imagesize} "
        "(--resize_mode square, without --resize)"
        for i, data in enumerate(datasets)
        if data.resize_mode == "square" and not all(one.is_square for key, one in found.items() if key[0] == i)
    ]


def _read_all(
    run: RunConfig,
    datasets: Sequence[DatasetConfig],
    found: Sequence[tuple[Path, list[str]]],
    names: Sequence[JobName],
    known: Known,
) -> tuple[dict[ClassKey, ClassFound], dict[ClassKey, str]]:
    """What every class holds, and what is wrong with the classes that --on_error skip leaves out."""
    looked_at, problems = {}, {}
    for name in names:
        key, data = _key(name, datasets), datasets[name.dataset]
        if key in looked_at:
            continue
        try:
            own, (root, _) = _as_trained(run, data, name), found[name.dataset]
            looked_at[key] = read_samples(own, root, name.class_name, known, name.seed)
        except DataError as error:
            if run.on_error == "stop":
                raise
            looked_at[key] = ClassFound(ClassSamples([], []), data.reading)
            problems[key] = str(error)
    return looked_at, problems


def _key(name: JobName, datasets: Sequence[DatasetConfig]) -> ClassKey:
    """Of the images of a job, which those of other seeds share unless they are drawn."""
    return name.dataset, name.class_name, name.seed if datasets[name.dataset].is_drawn else None


def _as_trained(run: RunConfig, data: DatasetConfig, name: JobName) -> DatasetConfig:
    """How a class is read; with --test as its model was, but for what is asked for."""
    folder = run.directory / name.folder
    if not run.test or not (folder / DESCRIPTION).is_file():
        return data
    trained = Reading(**read_description(folder, DETECTORS).reading, max_pixels=data.reading.max_pixels)
    return replace(data, reading=replace(trained, bit_depth=data.reading.bit_depth or trained.bit_depth))


def _parts(samples: Sequence[ClassSamples]) -> list[dict[str, Any]]:
    """The options of a JOINT detector that tell it what every class is made of, and which of them it predicts."""
    columns = [[] if own.table is None else own.table.widths for own in samples]
    return [{"columns": columns, "part": part} for part in range(len(samples))]
