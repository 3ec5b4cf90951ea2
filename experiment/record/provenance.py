"""config.json: what a run was asked for, and what its numbers also depend on."""

import json
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from errors import DataError
from experiment.config import RunConfig
from experiment.dataset_config import DatasetConfig
from experiment.detector_config import DetectorConfig
from files import read_json
from options import declared

CONFIG = "config.json"
KIND = "a run's configuration"
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "opencv-python-headless", "pillow", "pandas")
# Where results go, and how fast they come: runs that differ in nothing else give the same numbers.
INDIFFERENT = {
    *(".".join(("run", *own.path)) for own in declared(RunConfig) if not own.option.changes_results),
    *(".".join(("dataset", *own.path)) for own in declared(DatasetConfig) if not own.option.changes_results),
    "run.point",
    "net.recipe",  # the options that it sets are compared
}
DEFAULTS = {  # of dataset, by their entries: what runs had of earlier versions, which had no such option
    ".".join(("dataset", *own.path)): own.default
    if isinstance(own.default, str)
    else json.dumps(own.default, default=str)
    for own in declared(DatasetConfig)
}
WEIGHTS_DIGEST = "net.backbone_weights_sha256"
FILE_DIGESTS = "net.files_sha256."
DATASET = re.compile("^dataset(_[0-9]+)?")  # the entry of one of the datasets
CHOICES = ("net.set_by_recipe.", "run.grid.")  # where options come from; the options are compared


def run_config(
    run: RunConfig,
    detector: DetectorConfig,
    datasets: Sequence[DatasetConfig],
    classes: Sequence[Sequence[str]],
    device: str,
    precision: torch.dtype,
) -> dict[str, Any]:
    """Every resolved option, device, precision, versions and revision, of JSON's types."""
    config = {
        "run": asdict(run),
        "net": asdict(detector),
        **dict(zip(dataset_keys(len(datasets)), map(_dataset, datasets, classes), strict=True)),
        "device": device,
        "precision": str(precision).removeprefix("torch."),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git_revision": _git_revision(),
    }
    return json.loads(json.dumps(config, default=str))


def dataset_keys(count: int) -> list[str]:
    """The entries of so many datasets: dataset, dataset_2, dataset_3 and so on."""
    return ["dataset", *(f"dataset_{i}" for i in range(2, count + 1))]


def datasets_of(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of all datasets of a config.json, in order."""
    return [config[key] for key in dataset_keys(len(config)) if key in config]


def _dataset(data: DatasetConfig, classes: Sequence[str]) -> dict[str, Any]:
    """A dataset's options, with an absolute path and the classes that were found."""
    paths = {name: getattr(data, name) for name in ("data_path", "mask_of_interest")}
    where = {name: path and str(path.resolve()) for name, path in paths.items()}
    return {**asdict(data), **where, "subdatasets": list(classes)}


def read_config(path: Path) -> dict[str, Any]:
    """What config.json holds.

    Raises:
        DataError: it is damaged.
    """
    config = read_json(path, KIND)
    if not isinstance(config, dict) or not all(
        isinstance(config.get(name), dict) for name in ("run", "net", "dataset", *filter(DATASET.match, config))
    ):
        raise DataError(f"'{path}' cannot be read as {KIND}: it lacks run, net or dataset")
    return config


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """In what two runs differ: what was asked for and decides the numbers, and what else may move them a little."""
    theirs, ours = flatten(old), flatten(new)
    if WEIGHTS_DIGEST not in theirs:  # of an earlier version
        ours.pop(WEIGHTS_DIGEST, None)
    elif "null" not in (theirs[WEIGHTS_DIGEST], ours.get(WEIGHTS_DIGEST)):  # files, whose content decides
        ours["net.backbone_weights"] = theirs.get("net.backbone_weights", "unset")
    for name in ours.keys() & theirs.keys():
        if name.startswith(FILE_DIGESTS):
            option = f"net.options.{name.removeprefix(FILE_DIGESTS)}"
            ours[option] = theirs[option]
    asked, around = [], []
    for name in {**ours, **theirs}:
        kind = DATASET.sub("dataset", name)
        if kind in INDIFFERENT or kind.startswith(CHOICES) or theirs.get(name) == ours.get(name):
            continue
        if name not in theirs and DEFAULTS.get(kind) == ours[name]:
            continue
        is_asked = kind == "precision" or kind.partition(".")[0] in ("run", "net", "dataset")
        (asked if is_asked else around).append(f"{name} {theirs.get(name, 'unset')}, now {ours.get(name, 'unset')}")
    return asked, around


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested options as {"net.options.dsc_hidden": "512"}; lists and numbers as JSON."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The commit of this checkout, marked where files differ from it; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
