"""The files of a run. Each is written under a temporary name and renamed, so that none is ever half there."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from errors import UsageError
from experiment.config import DatasetConfig, DetectorConfig, RunConfig
from experiment.evaluation import METRICS

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "opencv-python-headless", "pillow", "pandas")


def create_directory(path: Path) -> None:
    """Make the run's folder and check that files can be written there.

    Raises:
        UsageError: they cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to '{path}' ({error.strerror}): choose another --results_path") from error


def write_results(path: Path, rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """results.csv: a row per job, then the mean; a metric that does not exist is an empty cell and left out of it."""
    table = pd.DataFrame(rows, columns=["class", *METRICS])
    table.loc[len(table)] = {"class": "Mean", **table[list(METRICS)].astype(float).mean()}
    write_csv(path, table)
    return table


def write_csv(path: Path, table: pd.DataFrame, float_format: str = "%.6f") -> None:
    write_text(path, table.to_csv(index=False, float_format=float_format, lineterminator="\n"))


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill; it takes the place of `path` when the block ends well and vanishes otherwise."""
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)
    os.replace(temporary, path)


def write_config(
    path: Path,
    run: RunConfig,
    detector: DetectorConfig,
    data: DatasetConfig,
    classes: Sequence[str],
    device: torch.device,
    precision: torch.dtype,
) -> None:
    """config.json: every resolved option, and what the numbers also depend on."""
    config = {
        "run": asdict(run),
        "net": asdict(detector),
        "dataset": {**asdict(data), "subdatasets": list(classes)},
        "seed": run.seed,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "precision": str(precision).removeprefix("torch."),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git_revision": _git_revision(),
    }
    write_text(path, json.dumps(config, indent=2, default=str) + "\n")


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
