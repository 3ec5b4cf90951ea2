"""config.json: what a run was asked for, and what its numbers also depend on."""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from errors import DataError
from experiment.config import DatasetConfig, DetectorConfig, RunConfig
from files import read_json

CONFIG = "config.json"
KIND = "a run's configuration"
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "opencv-python-headless", "pillow", "pandas")
# Where results go, and how fast they come: runs that differ in nothing else give the same numbers.
INDIFFERENT = {
    *(f"run.{name}" for name in ("results_path", "log_group", "log_project", "run_name", "gpu", "feature_bank")),
    *(f"run.{name}" for name in ("test", "on_error", "overwrite", "jobs", "jobs_per_gpu", "ray", "point")),
    "run.precision",  # what it stands for on this device is compared
    "net.recipe",  # the options that it sets are compared
    "dataset.num_workers",
}
CHOICES = ("net.set_by_recipe.", "run.grid.")  # where options come from; the options are compared


def run_config(
    run: RunConfig,
    detector: DetectorConfig,
    data: DatasetConfig,
    classes: Sequence[str],
    device: str,
    precision: torch.dtype,
) -> dict[str, Any]:
    """Every resolved option, device, precision, versions and revision, of JSON's types."""
    where = None if data.data_path is None else str(data.data_path.resolve())
    config = {
        "run": asdict(run),
        "net": asdict(detector),
        "dataset": {**asdict(data), "data_path": where, "subdatasets": list(classes)},
        "device": device,
        "precision": str(precision).removeprefix("torch."),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git_revision": _git_revision(),
    }
    return json.loads(json.dumps(config, default=str))


def read_config(path: Path) -> dict[str, Any]:
    """What config.json holds.

    Raises:
        DataError: it is damaged.
    """
    config = read_json(path, KIND)
    if not isinstance(config, dict) or not all(
        isinstance(config.get(name), dict) for name in ("run", "net", "dataset")
    ):
        raise DataError(f"'{path}' cannot be read as {KIND}: it lacks run, net or dataset")
    return config


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """In what two runs differ: what was asked for and decides the numbers, and what else may move them a little."""
    theirs, ours = flatten(old), flatten(new)
    asked, around = [], []
    for name in {**ours, **theirs}:
        if name in INDIFFERENT or name.startswith(CHOICES) or theirs.get(name) == ours.get(name):
            continue
        is_asked = name == "precision" or name.partition(".")[0] in ("run", "net", "dataset")
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
