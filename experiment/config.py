"""What the command line says, typed. These are plain records: config.json is their copy."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from datasets import (
    DATASETS,
    AssemblyOptions,
    DatasetReader,
    FolderNames,
    ImageTransform,
    RandomTransform,
    TableOptions,
    assembly_reader,
    folder_reader,
    table_reader,
)
from errors import UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
        normalisation: by which rule backbones are given images; see backbones.normalisation_of.
    """

    command: str
    backbones: tuple[BackboneConfig, ...]
    backbone_weights: str
    options: dict[str, Any]
    recipe: str = "paper"
    set_by_recipe: dict[str, Any] = field(default_factory=dict)
    normalisation: Literal["imagenet", "model"] = "imagenet"


@dataclass(frozen=True)
class DatasetConfig:
    """Which images, and how they are read."""

    name: str
    data_path: Path | None
    subdatasets: tuple[str, ...]
    train_val_split: float
    batch_size: int
    num_workers: int
    resize: int
    imagesize: int
    random: RandomTransform
    resize_mode: Literal["aspect", "square"] = "aspect"
    folders: FolderNames = field(default_factory=FolderNames)
    assembly: AssemblyOptions = field(default_factory=AssemblyOptions)
    table: TableOptions = field(default_factory=TableOptions)

    def __post_init__(self) -> None:
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
        return ImageTransform(self.resize, self.imagesize, self.random, self.resize_mode)

    @property
    def test_transform(self) -> ImageTransform:
        return replace(self.train_transform, random=RandomTransform())


@dataclass(frozen=True)
class PredictConfig:
    """What is predicted with which model, and what is written where."""

    model_dir: Path
    paths: tuple[str, ...]
    out: Path
    batch_size: int
    num_workers: int
    gpu: int
    threshold: float | None
    map: str
    raw_format: str
    full_size: bool
    backbone_weights: str | None


@dataclass(frozen=True)
class ExportConfig:
    """Which model is exported, how (onnx, torch_export), and where to."""

    model_dir: Path
    style: str
    out: Path | None
    half: bool
    input: str
    backbone_weights: str | None


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
                folder = f"models/{j}/{title}" + (f"_seed_{seed}" if len(seeds) > 1 else "")
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
        if not layer_name or not index.isdecimal() or int(index) >= len(names):
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
    if marker and not seed.isdecimal():
        raise UsageError(f"-b {label}: expected a whole number after .seed-, such as {name}.seed-7")
    if len(set(layers)) < len(layers):
        raise UsageError(f"-b {label}: a layer is given twice in {', '.join(layers)}")
    return BackboneConfig(label, name, tuple(layers), int(seed) if marker else None)
