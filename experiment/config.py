"""What the command line says, typed. These are plain records: config.json is their copy."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from datasets import (
    DATASETS,
    MAX_PIXELS,
    AssemblyOptions,
    DatasetReader,
    FolderNames,
    ImageTransform,
    RandomTransform,
    Reading,
    TableOptions,
    assembly_reader,
    folder_reader,
    table_reader,
)
from errors import UsageError
from files import readable

MODELS = "models"  # the folder in a run's that its models are in
LONGEST_NUMBER = 20  # digits; Python makes no number of thousands of them
LARGEST_SEED = 2**32 - 1  # of NumPy and scikit-learn; PyTorch takes more
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_seed(flag: str, seed: int) -> None:
    """See that all that a seed is given to can take it.

    Raises:
        UsageError: it is too large.
    """
    if seed > LARGEST_SEED:
        raise UsageError(f"{flag} {seed} is too large: expected 0 to {LARGEST_SEED}")


def precision_name(dtype: torch.dtype) -> str:
    """The word for a type on the command line."""
    return next(name for name, own in PRECISIONS.items() if own == dtype)


@dataclass(frozen=True)
class RunConfig:
    """Where results go, the seeds, and how the machine is used.

    Attributes:
        grid: what --grid chose for this run, by flag, and `point` the name of its folder; else empty.
    """

    results_path: Path
    gpu: tuple[int, ...]
    seeds: tuple[int, ...]
    log_group: str
    log_project: str
    run_name: str
    precision: str = "auto"
    feature_bank: str = "auto"
    eval_every: int = 1
    threshold_quantile: float = 0.995
    test: bool = False
    on_error: Literal["stop", "skip"] = "stop"
    overwrite: bool = False
    save_segmentation_images: bool = False
    jobs: int | None = None
    jobs_per_gpu: int = 1
    ray: str | None = None
    grid: dict[str, str] = field(default_factory=dict)
    point: str = ""

    def __post_init__(self) -> None:
        for flag in ("log_project", "log_group", "run_name"):
            _check_folder(flag, getattr(self, flag))
        if readable(str(self.family)) != str(self.family):
            raise UsageError(
                f"'{readable(str(self.family))}' is not UTF-8: choose another --results_path and --run_name"
            )
        for seed in self.seeds:
            check_seed("--seed", seed)
        if len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"a --seed is given twice in {', '.join(map(str, self.seeds))}")

    @property
    def family(self) -> Path:
        """The folder of the command line's runs."""
        return self.results_path / self.log_project / self.log_group / self.run_name

    @property
    def directory(self) -> Path:
        """The folder of this run."""
        return self.family / self.point


def _check_folder(flag: str, name: str) -> None:
    """Refuse what names no folder below --results_path, or one that another run keeps its models in.

    Raises:
        UsageError: it does.
    """
    parts = name.split("/")
    if not {"", ".", ".."}.isdisjoint(parts) or MODELS in parts or "\0" in name:
        raise UsageError(
            f"--{flag} '{name}': expected the name of a folder, or several as in sweep/first, none of them empty, "
            f"'.', '..' or '{MODELS}'"
        )


@dataclass(frozen=True)
class BackboneConfig:
    """One backbone: its label in tables, its name, the layers read off it, and its own seed if it has one."""

    label: str
    name: str
    layers: tuple[str, ...]
    seed: int | None

    def seed_in(self, run_seed: int) -> int:
        """Its own seed, or that of the run."""
        return run_seed if self.seed is None else self.seed


@dataclass(frozen=True)
class DetectorConfig:
    """A detector per backbone.

    Attributes:
        command: which detector, a key of methods.DETECTORS.
        options: its keyword arguments.
        recipe: the name of the recipe, and `set_by_recipe` those of the options that come from it.
        backbone_weights_sha256: of the file that backbone_weights names; None where it names none.
        normalisation: by which rule backbones are given images; see backbones.normalisation_of.
    """

    command: str
    backbones: tuple[BackboneConfig, ...]
    backbone_weights: str
    options: dict[str, Any]
    recipe: str = "paper"
    set_by_recipe: dict[str, Any] = field(default_factory=dict)
    backbone_weights_sha256: str | None = None
    normalisation: Literal["imagenet", "model"] = "imagenet"


@dataclass(frozen=True)
class DatasetConfig:
    """Which images, and how they are read.

    Attributes:
        resize_mode: None becomes what suits the dataset; it stays None where that can only be seen by its images.
        reading: whose bit_depth None is found for every class.
    """

    name: str
    data_path: Path | None
    subdatasets: tuple[str, ...]
    train_val_split: float
    batch_size: int
    num_workers: int
    resize: int
    imagesize: int
    random: RandomTransform
    resize_mode: Literal["aspect", "square"] | None = None
    reading: Reading = field(default_factory=Reading)
    folders: FolderNames = field(default_factory=FolderNames)
    assembly: AssemblyOptions = field(default_factory=AssemblyOptions)
    table: TableOptions = field(default_factory=TableOptions)

    def __post_init__(self) -> None:
        check_seed("--dataset_seed", self.assembly.dataset_seed)
        check_seed("--split_seed", self.table.split_seed)
        if self.resize_mode is None and self.name in DATASETS:
            object.__setattr__(self, "resize_mode", DATASETS[self.name].resize_mode)
        if self.resize_mode == "aspect" and self.resize < self.imagesize:
            raise UsageError(
                f"--resize {self.resize} is smaller than --imagesize {self.imagesize}, the crop taken from it"
            )

    def absolute(self) -> "DatasetConfig":
        """The same with paths that do not depend on the working directory."""
        test_file = self.table.test_file and self.table.test_file.absolute()
        return replace(
            self, data_path=self.data_path and self.data_path.absolute(), table=replace(self.table, test_file=test_file)
        )

    @property
    def reader(self) -> DatasetReader:
        """What reads the dataset of this name; KeyError where there is none."""
        own = {
            "folder": folder_reader(self.folders),
            "assembly": assembly_reader(self.assembly),
            "table": table_reader(self.table),
        }
        return own.get(self.name) or DATASETS[self.name]

    @property
    def train_transform(self) -> ImageTransform:
        return ImageTransform(self.resize, self.imagesize, self.random, self.resize_mode, self.reading)

    @property
    def test_transform(self) -> ImageTransform:
        return replace(self.train_transform, random=RandomTransform())


@dataclass(frozen=True)
class PredictConfig:
    """What is predicted with which model, and what is written where.

    Attributes:
        batch_size, num_workers, map, raw_format: of images; None where they are not given.
    """

    model_dir: Path
    paths: tuple[str, ...]
    out: Path
    batch_size: int | None
    num_workers: int | None
    gpu: int
    threshold: float | None
    map: str | None
    raw_format: str | None
    full_size: bool
    backbone_weights: str | None
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True)
class ExportConfig:
    """Which model is exported, how (onnx, torch_export), and where to."""

    model_dir: Path
    style: str
    out: Path | None
    half: bool
    input: str
    backbone_weights: str | None
    opset: int | None = None


@dataclass(frozen=True)
class ReportConfig:
    """Which runs are shown, how (table, csv, markdown, latex), which protocol, and where the page goes."""

    directories: tuple[Path, ...]
    style: str = "table"
    best_epoch: bool = False
    out: Path | None = None


@dataclass(frozen=True)
class JobName:
    """One job of a run: which class, which of the backbones, which seed, and what it is called.

    Attributes:
        dataset: the index of its dataset on the command line.
        class_name: the class within the dataset.
        backbone: its index on the command line.
        seed: one of the run's.
        title: the row's name in results.csv: "mvtec_bottle" or, among several backbones, "mvtec_bottle (resnet18)".
        folder: of the model, below the run's.
    """

    dataset: int
    class_name: str
    backbone: int
    seed: int
    title: str
    folder: str


def job_names(
    datasets: Sequence[tuple[str, Iterable[str]]], backbones: Sequence[str], seeds: Sequence[int]
) -> list[JobName]:
    """All jobs of a run in the order they are run, of datasets and their classes; backbones are given by labels."""
    classes = [(i, dataset, name) for i, (dataset, names) in enumerate(datasets) for name in names]
    jobs = []
    for i, dataset, class_name in classes:
        for j, label in enumerate(backbones):
            for seed in seeds:
                title = f"{dataset}_{class_name}"
                folder = f"{MODELS}/{j}/{title}" + (f"_seed_{seed}" if len(seeds) > 1 else "")
                shown = f"{title} ({label})" if len(backbones) > 1 else title
                jobs.append(JobName(i, class_name, j, seed, shown, folder))
    return jobs


def point_names(grids: Sequence[Mapping[str, str]]) -> list[str]:
    """A folder name for each choice of a grid, such as "dsc_hidden=512,noise_std=0.02"; empty where none is made."""
    names = [re.sub(r"[^\w.+=,-]", "_", ",".join(f"{flag}={value}" for flag, value in grid.items())) for grid in grids]
    if len(set(names)) < len(names) or any(len(name) > 200 for name in names):
        return [f"point-{i}" for i in range(len(grids))]
    return names


def parse_backbones(names: Sequence[str], layers: Sequence[str]) -> tuple[BackboneConfig, ...]:
    """Pair backbones with their layers.

    One backbone takes all layers as they are; of several, the i-th takes those written "i.layer". A name that ends in
    ".seed-N" has seed N. Labels are the names as typed; a name that occurs again has its layers behind it.

    Raises:
        UsageError: no backbone, a layer without a valid index, or the same backbone and layers twice.
    """
    if not names:
        raise UsageError("a detector needs a backbone, such as -b wideresnet50")
    layers_of: list[list[str]] = [[] for _ in names]
    for layer in layers:
        if len(names) == 1:
            layers_of[0].append(layer)
            continue
        index, _, layer_name = layer.partition(".")
        if not layer_name or not (index.isdecimal() and len(index) <= LONGEST_NUMBER) or int(index) >= len(names):
            raise UsageError(
                f"-le {layer}: with {len(names)} backbones write INDEX.LAYER, such as 0.layer2, "
                f"with an index from 0 to {len(names) - 1}"
            )
        layers_of[int(index)].append(layer_name)
    parsed = [_parse_backbone(label, own) for label, own in zip(names, layers_of, strict=True)]
    if len(set(parsed)) < len(parsed):
        raise UsageError("the same backbone with the same layers is given twice")
    same = [replace(one, label=f"{one.label} {'+'.join(one.layers)}") for one in parsed]
    return tuple(long if names.count(short.label) > 1 else short for short, long in zip(parsed, same, strict=True))


def _parse_backbone(label: str, layers: list[str]) -> BackboneConfig:
    name, marker, seed = label.partition(".seed-")
    if marker and not (seed.isdecimal() and len(seed) <= LONGEST_NUMBER):
        raise UsageError(
            f"-b {label}: expected a whole number from 0 to {LARGEST_SEED} after .seed-, such as {name}.seed-7"
        )
    if marker:
        check_seed(f"-b {name}.seed-", int(seed))
    if len(set(layers)) < len(layers):
        raise UsageError(f"-b {label}: a layer is given twice in {', '.join(layers)}")
    return BackboneConfig(label, name, tuple(layers), int(seed) if marker else None)
