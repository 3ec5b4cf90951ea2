"""A run: all classes and backbones of one command line, in order, with results written after every one."""

import difflib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch

import backbones
from backbones.patches import patch_grid
from datasets import DATASETS, ClassSamples, check_headers, find_root
from errors import DataError, UsageError
from experiment.config import (
    PRECISIONS,
    BackboneConfig,
    DatasetConfig,
    DetectorConfig,
    JobName,
    RunConfig,
    job_names,
    precision_name,
)
from experiment.features import ClassBanks, build_banks
from experiment.job import Job, check_trained, run_job, test_job
from experiment.lock import only_writer
from experiment.results import (
    create_directory,
    read_rows,
    read_run,
    replace_row,
    write_config,
    write_history,
    write_results,
)
from experiment.tables import render, summary
from simplenet import SimpleNet


def run(run: RunConfig, detector: DetectorConfig, data: DatasetConfig) -> pd.DataFrame:
    """Run every job, write the results and print the table.

    All flags, folders and layers are checked before anything is written or downloaded.

    Returns:
        The table of results.csv.

    Raises:
        UsageError, DataError: what main.py shows the user.
    """
    for backbone in detector.backbones:
        if backbone.seed is not None and len(run.seeds) > 1:
            raise UsageError(f"-b {backbone.label} has a seed of its own: give one --seed, or leave it out of the name")
    root, classes = find_classes(data)
    samples = {name: read_samples(data, root, name) for name in classes}
    image_size = (data.imagesize, data.imagesize)
    names = job_names(data.name, classes, [backbone.label for backbone in detector.backbones], run.seeds)
    jobs = [_job(name, run, detector, data, root, samples[name.class_name]) for name in names]
    trained = [check_trained(job, run) for job in jobs] if run.test else []
    keys = [feature_key(detector.backbones[name.backbone], detector, name.seed) for name in names]
    sources: dict[FeatureKey, backbones.FeatureExtractor] = {}
    for name, key in zip(names, keys, strict=True):
        if key not in sources:
            sources[key] = load_backbone(detector.backbones[name.backbone], detector, name.seed, data.imagesize)
    device = choose_device(run.gpu)
    precision = choose_precision(precision_name(trained[0].dtype) if run.test else run.precision, device)
    for key, extractor in sources.items():
        extractor.build(key[1], image_size, device)
    create_directory(run.directory, "--results_path")
    if detector.set_by_recipe:
        flags = (
            f"--{name}" if value is True else f"--{name} {value}" for name, value in detector.set_by_recipe.items()
        )
        click.echo(f"Recipe {detector.recipe}: {' '.join(flags)}", err=True)
    click.echo(f"Results go to {run.directory}", err=True)

    with only_writer(run.directory):
        rows = read_rows(run.directory) if run.test else []
        best_rows: list[dict[str, Any]] = []
        history: list[dict[str, Any]] = []
        banks: dict[tuple[str, FeatureKey], ClassBanks] = {}
        bank_keys = [(name.class_name, key) for name, key in zip(names, keys, strict=True)]
        for i, (job, bank_key) in enumerate(zip(jobs, bank_keys, strict=True)):
            layers = detector.backbones[job.name.backbone].layers
            model = SimpleNet(
                sources[keys[i]], layers, image_size, seed=job.seed, precision=precision, **detector.options
            ).to(device)
            if run.feature_bank != "off" and not model.train_backbone and bank_key not in banks:
                banks[bank_key] = build_banks(job.name.title, model, job.samples, data, run.feature_bank, run.test)
            if run.test:
                rows = replace_row(rows, test_job(job, model, run, data, banks.get(bank_key)))
                write_results(run.directory, rows, None)
            else:
                result = run_job(job, model, run, data, banks.get(bank_key))
                rows.append(result.row)
                best_rows.append(result.best_row)
                history.extend(result.history)
                write_config(run.directory / "config.json", run, detector, data, classes, device, precision)
                write_history(run.directory / "history.csv", history)
                write_results(run.directory, rows, best_rows)
            if bank_key not in bank_keys[i + 1 :]:  # no later job reads these features
                banks.pop(bank_key, None)
    recorded = read_run(run.directory)
    click.echo(render(summary([recorded]), "table"))
    click.echo(f"Results are in {run.directory}", err=True)
    return recorded.results


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


FeatureKey = tuple[str, tuple[str, ...], int | None]


def feature_key(backbone: BackboneConfig, config: DetectorConfig, seed: int) -> FeatureKey:
    """What a backbone's features depend on: name, layers and, of random weights, the seed."""
    return backbone.name, backbone.layers, backbone.seed_in(seed) if config.backbone_weights == "random" else None


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
        raise UsageError(f"dataset '{data.name}' needs a DATA_PATH: dataset [options] {data.name} PATH")
    path = data.data_path if data.data_path is not None else reader.default_root()
    if not path.is_dir():
        raise UsageError(f"DATA_PATH '{path}' is not a folder")
    root, known = find_root(reader, path)
    if root != path:
        click.echo(f"Reading dataset '{data.name}' from '{root}'", err=True)
    classes = list(dict.fromkeys(data.subdatasets)) or known
    for name in classes:
        if name not in known:
            raise UsageError(f"dataset '{data.name}' has no class '{name}' in '{root}'{_nearest(name, known)}")
    return root, classes


def read_samples(data: DatasetConfig, root: Path, class_name: str) -> ClassSamples:
    """The images of a class; of the normal ones the first share is trained on, as in the original, the rest held out.

    Raises:
        DataError: what the dataset's reader raises, a file that is no image, a mask of another size than its image, or
            no image left to train on.
    """
    samples = data.reader.read_class(root, class_name)
    check_headers(samples.train + samples.validation + samples.test)
    kept = int(len(samples.train) * data.train_val_split)
    if kept < 1:
        raise DataError(
            f"--train_val_split {data.train_val_split} leaves none of {len(samples.train)} images to train on"
        )
    return replace(samples, train=samples.train[:kept], validation=samples.validation + samples.train[kept:])


def load_backbone(
    backbone: BackboneConfig, config: DetectorConfig, seed: int, imagesize: int
) -> backbones.FeatureExtractor:
    """A backbone whose layers are known to exist and to suit the detector; says what they are.

    Raises:
        UsageError: an unknown backbone or layer, no layer, or options that no detector can be built with.
    """
    extractor = backbones.load(backbone.name, config.backbone_weights, backbone.seed_in(seed))
    if not backbone.layers:
        raise UsageError(
            f"-b {backbone.label} needs layers, such as -le layer2: its layers are {', '.join(extractor.layers())}"
        )
    infos = extractor.layer_info(backbone.layers, (imagesize, imagesize))
    shown = ", ".join(f"{i.name} ({i.channels} channels, stride {i.stride}, {i.grid[0]} x {i.grid[1]})" for i in infos)
    click.echo(f"{backbone.label}: {shown}", err=True)
    with torch.device("meta"):
        SimpleNet(extractor, backbone.layers, (imagesize, imagesize), **config.options)
    for info in infos:
        if min(patch_grid(info.grid, config.options["patchsize"])) < 1:
            size = f"{info.grid[0]} x {info.grid[1]}"
            raise UsageError(
                f"--patchsize {config.options['patchsize']} does not fit layer {info.name}, which is {size}"
            )
    return extractor


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


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type to compute in; auto takes bf16 where the device has instructions for it, else fp32.

    That is Ampere and later among GPUs, and AVX512-BF16 or AMX among CPUs. TF32 is allowed unless fp32 is asked for.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name != "fp32"
    if name == "auto":
        if device.type == "cuda":
            native = torch.cuda.get_device_capability(device) >= (8, 0)
        else:
            native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        name = "bf16" if native else "fp32"
    click.echo(f"Computing in {name}", err=True)
    return PRECISIONS[name]


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {near[0]}? It has {', '.join(known)}" if near else f": known are {', '.join(known)}"
