"""What the command line says, typed. These are plain records: config.json is their copy."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from datasets import DATASETS, DatasetReader, FolderNames, ImageTransform, RandomTransform, folder_reader
from errors import UsageError


@dataclass(frozen=True)
class RunConfig:
    """Where results go, the seed, and how the machine is used."""

    results_path: Path
    gpu: tuple[int, ...]
    seed: int
    log_group: str
    log_project: str
    run_name: str
    precision: str = "auto"
    feature_bank: str = "auto"
    eval_every: int = 1

    @property
    def directory(self) -> Path:
        return self.results_path / self.log_project / self.log_group / self.run_name


@dataclass(frozen=True)
class BackboneConfig:
    """One backbone: its label as typed, its name, the layers read off it, and its own seed if it has one."""

    label: str
    name: str
    layers: tuple[str, ...]
    seed: int | None

    def seed_in(self, run_seed: int) -> int:
        """Its own seed, or that of the run."""
        return run_seed if self.seed is None else self.seed


@dataclass(frozen=True)
class DetectorConfig:
    """A detector per backbone; `options` are the keyword arguments of simplenet.SimpleNet."""

    backbones: tuple[BackboneConfig, ...]
    backbone_weights: str
    options: dict[str, Any]


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

    def __post_init__(self) -> None:
        if self.resize_mode == "aspect" and self.resize < self.imagesize:
            raise UsageError(
                f"--resize {self.resize} is smaller than --imagesize {self.imagesize}, the crop taken from it"
            )

    @property
    def reader(self) -> DatasetReader:
        """What reads the dataset of this name; KeyError where there is none."""
        return folder_reader(self.folders) if self.name == "folder" else DATASETS[self.name]

    @property
    def train_transform(self) -> ImageTransform:
        return ImageTransform(self.resize, self.imagesize, self.random, self.resize_mode)

    @property
    def test_transform(self) -> ImageTransform:
        return replace(self.train_transform, random=RandomTransform())


def parse_backbones(names: Sequence[str], layers: Sequence[str]) -> tuple[BackboneConfig, ...]:
    """Pair backbones with their layers.

    One backbone takes all layers as they are; of several, the i-th takes those written "i.layer". A name that ends in
    ".seed-N" has seed N.

    Raises:
        UsageError: no backbone, a layer without a valid index, or a backbone without layers.
    """
    if not names:
        raise UsageError("net needs a backbone, such as -b wideresnet50")
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
    return tuple(_parse_backbone(label, own) for label, own in zip(names, layers_of, strict=True))


def _parse_backbone(label: str, layers: list[str]) -> BackboneConfig:
    name, marker, seed = label.partition(".seed-")
    if marker and not seed.isdecimal():
        raise UsageError(f"-b {label}: expected a whole number after .seed-, such as {name}.seed-7")
    if len(set(layers)) < len(layers):
        raise UsageError(f"-b {label}: a layer is given twice in {', '.join(layers)}")
    return BackboneConfig(label, name, tuple(layers), int(seed) if marker else None)
