"""What a command line names, found and checked: classes, images, backbones, the device and the precision."""

import difflib
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import click
import torch

import backbones
from datasets import DATASETS, Reading, Sample, find_root, folders_in, remarks_on_masks
from detection import TrainedModel
from errors import DataError, UsageError
from experiment.config import PRECISIONS, BackboneConfig, DatasetConfig, DetectorConfig
from experiment.reading import ClassFound, look_at
from methods import DETECTORS


def find_classes(data: DatasetConfig) -> tuple[Path, list[str]]:
    """The dataset's root folder and the classes to run: those asked for, else all.

    Raises:
        UsageError: an unknown dataset or class, or a path that is left out or missing.
        DataError: no class under the path, or several folders that hold some.
    """
    if data.name not in DATASETS:
        raise UsageError(f"unknown dataset '{data.name}'{_nearest(data.name, list(DATASETS))}")
    reader = data.reader
    if data.data_path is None and reader.default_root is None:
        kind = "FILE" if reader.is_file else "PATH"
        raise UsageError(f"dataset '{data.name}' needs a DATA_PATH: dataset [options] {data.name} {kind}")
    path = data.data_path if data.data_path is not None else reader.default_root()
    if reader.is_file:
        if not path.is_file():
            raise UsageError(f"DATA_PATH '{path}' is not a file: expected {reader.layout}")
    elif not path.is_dir():
        raise UsageError(f"DATA_PATH '{path}' is not a folder")
    root, known = find_root(reader, path)
    if root != path:
        click.echo(f"Reading dataset '{data.name}' from '{root}'", err=True)
    for name in known:
        if Path(name).name != name:
            raise DataError(f"dataset '{data.name}' in '{root}' names class '{name}', which is no folder's name")
    if not data.subdatasets and not reader.is_file:
        folders_in(root, complete=True)  # no class may be left out for a link to nothing
    classes = list(dict.fromkeys(data.subdatasets)) or known
    for name in classes:
        if name not in known:
            raise UsageError(f"dataset '{data.name}' has no class '{name}' in '{root}'{_nearest(name, known)}")
    return root, classes


def read_samples(data: DatasetConfig, root: Path, class_name: str) -> ClassFound:
    """The images of a class; of the normal ones the first share is trained on, as in the original, the rest held out.

    How masks are read is said where it could have been meant otherwise.

    Raises:
        DataError: what the dataset's reader and look_at raise, or no image left to train on.
    """
    found = look_at(data, f"{data.name}_{class_name}", data.reader.read_class(root, class_name))
    samples = found.samples
    _say_of_masks(class_name, tuple(samples.test), tuple(samples.doubts.items()), found.reading)
    kept = int(len(samples.train) * data.train_val_split)
    if kept < 1:
        raise DataError(f"--train_val_split {data.train_val_split} leaves none of {len(samples.train)} to train on")
    held_out = samples.validation + samples.train[kept:]
    return replace(found, samples=replace(samples, train=samples.train[:kept], validation=held_out))


@cache  # a grid reads a class for every choice
def _say_of_masks(
    class_name: str, test: tuple[Sample, ...], doubts: tuple[tuple[Path, str], ...], reading: Reading
) -> None:
    for remark in remarks_on_masks(test, dict(doubts), reading):
        click.echo(f"{class_name}: {remark}", err=True)


def load_backbone(
    backbone: BackboneConfig, config: DetectorConfig, seed: int, imagesize: int
) -> backbones.FeatureExtractor:
    """A backbone whose layers are known to exist and to see all of the images; says what they are.

    Raises:
        UsageError: an unknown backbone or layer, no layer, or images of a size that leaves borders unseen.
    """
    own = backbones.normalisation_of(backbone.name, config.normalisation)
    extractor = backbones.load(backbone.name, config.backbone_weights, backbone.seed_in(seed), own)
    if not backbone.layers:
        raise UsageError(
            f"-b {backbone.label} needs layers, such as -le layer2: its layers are {', '.join(extractor.layers())}"
        )
    infos = extractor.layer_info(backbone.layers, (imagesize, imagesize))
    extractor.check_size(backbone.layers, (imagesize, imagesize))
    if backbone.name == backbones.PIXELS:
        return extractor
    shown = ", ".join(f"{i.name} ({i.channels} channels, stride {i.stride}, {i.grid[0]} x {i.grid[1]})" for i in infos)
    click.echo(f"{backbone.label}: {shown}", err=True)
    theirs = backbones.normalisation_of(backbone.name)
    if own != theirs:
        click.echo(
            f"{backbone.label}: its weights were trained with {theirs}, not with ImageNet's {own}, which images are "
            "normalised by: --normalisation model takes its own",
            err=True,
        )
    return extractor


def check_detector(
    extractor: backbones.FeatureExtractor, backbone: BackboneConfig, config: DetectorConfig, imagesize: int
) -> None:
    """See that a detector can be built on a backbone.

    Raises:
        UsageError: it cannot, with these options.
    """
    with backbones.shapes_only():
        DETECTORS[config.command](extractor, backbone.layers, (imagesize, imagesize), **config.options).check()


def refuse_unused_weights(model: TrainedModel, backbone_weights: str | None) -> None:
    """Refuse a file with a backbone's weights for a model that needs none.

    Raises:
        UsageError: there is one.
    """
    if backbone_weights is None:
        return
    if model.description.backbone_sha256 is None:
        raise UsageError("--backbone_weights: the model holds those of its backbone, which was trained: leave it out")
    if model.description.backbone["name"] == backbones.PIXELS:
        raise UsageError("--backbone_weights: the model has no backbone: leave it out")


def choose_device(gpu: tuple[int, ...]) -> torch.device:
    """The first GPU asked for, or the CPU where there is no CUDA device.

    Raises:
        UsageError: a GPU that does not exist; those that do are listed.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        click.echo(f"No CUDA device found: using the CPU with {torch.get_num_threads()} threads", err=True)
        return torch.device("cpu")
    for index in gpu:
        if index >= count:
            found = ", ".join(f"{i} ({torch.cuda.get_device_name(i)})" for i in range(count))
            raise UsageError(f"--gpu {index} does not exist: this machine has {found}")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device("cuda", gpu[0])


def device_name(device: torch.device) -> str:
    """What config.json calls a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type to compute in; auto is the best for the device. TF32 is allowed unless fp32 is asked for."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name != "fp32"
    name = best_precision(device) if name == "auto" else name
    click.echo(f"Computing in {name}", err=True)
    return PRECISIONS[name]


def best_precision(device: torch.device) -> str:
    """bf16 where the device has instructions for it (Ampere and later; AVX512-BF16 or AMX), else fp32."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def create_directory(path: Path, flag: str) -> None:
    """Make a folder that a flag names, and check that files can be written there.

    Raises:
        UsageError: they cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to '{path}' ({error.strerror}): choose another {flag}") from error


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {near[0]}? It has {', '.join(known)}" if near else f": known are {', '.join(known)}"
