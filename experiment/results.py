"""The files of a run. Each is written under a temporary name and renamed, so that none is ever half there."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from errors import DataError, UsageError
from experiment.config import DatasetConfig, DetectorConfig, JobName, RunConfig, job_names
from experiment.evaluation import LOCO_METRICS, METRICS
from simplenet import EpochStats

EPOCH = "epoch_picked_on_test_set"  # in results_best_epoch.csv: the protocol stands in the header
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "opencv-python-headless", "pillow", "pandas")


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


def write_results(folder: Path, rows: Sequence[dict[str, Any]], best_rows: Sequence[dict[str, Any]] | None) -> None:
    """Write results.csv, results_per_seed.csv and results_best_epoch.csv of the jobs finished so far.

    results.csv holds, for every class, the means over the seeds and, of several, their standard deviations.

    A metric that does not exist is an empty cell and left out of the means.

    Args:
        folder: the run's.
        rows: class, seed and metrics of every job after the last meta epoch.
        best_rows: the same at the meta epoch with the best test image AUROC, and that epoch's number; None leaves
            results_best_epoch.csv as it is.
    """
    names = [*METRICS, *(name for name in LOCO_METRICS if any(name in row for row in rows))]
    per_seed = _with_mean_row(pd.DataFrame(rows, columns=["class", "seed", *names]), names)
    if best_rows is not None:
        best = pd.DataFrame(best_rows, columns=["class", "seed", *names, EPOCH])
        epochs = best.astype({EPOCH: str}).groupby("class", sort=False)[EPOCH].agg(" ".join)
        best_table = _over_seeds(_with_mean_row(best, names), names).merge(epochs, "left", on="class")
        write_csv(folder / "results_best_epoch.csv", best_table)
    write_csv(folder / "results_per_seed.csv", per_seed)
    write_csv(folder / "results.csv", _over_seeds(per_seed, names))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of results_per_seed.csv but for the means; none where it does not exist yet."""
    path = folder / "results_per_seed.csv"
    if not path.is_file():
        return []
    table = pd.read_csv(path, dtype={"class": str})
    return table[table["class"] != "Mean"].to_dict("records")


def replace_row(rows: Sequence[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows with one in the place of that of the same class and seed, or behind all."""
    key = lambda row: (row["class"], row["seed"])  # noqa: E731
    if key(new) not in map(key, rows):
        return [*rows, new]
    return [new if key(row) == key(new) else row for row in rows]


def _with_mean_row(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The rows, then of every seed the mean over its rows."""
    means = rows.groupby("seed", sort=False)[names].mean().reset_index()
    return pd.concat([rows[["class", "seed", *names]], means.assign(**{"class": "Mean"})], ignore_index=True)


def _over_seeds(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Mean over the seeds of every class and, of several seeds, the sample standard deviation (NAME_std) behind."""
    groups = rows.groupby("class", sort=False)[names]
    table = groups.mean()
    if rows["seed"].nunique() > 1:
        table = table.join(groups.std().add_suffix("_std"))
    return table.reset_index()


def write_history(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """history.csv: every meta epoch of every job, with the metrics of those that were evaluated."""
    extra = [name for name in LOCO_METRICS if any(name in row for row in rows)]
    write_csv(path, pd.DataFrame(rows, columns=["class", "seed", *EpochStats._fields, *METRICS, *extra]))


def write_csv(path: Path, table: pd.DataFrame, float_format: str = "%.6f") -> None:
    write_text(path, table.to_csv(index=False, float_format=float_format, lineterminator="\n"))


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"'{path}' cannot be written: {error.strerror}") from error


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


@dataclass(frozen=True)
class RunRecord:
    """What a run left: its folder, config.json, and the tables results.csv, results_best_epoch.csv and history.csv."""

    directory: Path
    config: dict[str, Any]
    results: pd.DataFrame
    best_epoch: pd.DataFrame
    history: pd.DataFrame

    @property
    def seeds(self) -> list[int]:
        return self.config["run"]["seeds"]

    @property
    def jobs(self) -> list[JobName]:
        """The finished jobs of the run, in order."""
        labels = [backbone["label"] for backbone in self.config["net"]["backbones"]]
        data = self.config["dataset"]
        jobs = job_names(data["name"], data["subdatasets"], labels, self.seeds)
        return [job for job in jobs if (self.directory / job.folder / "predictions.csv").is_file()]


def read_predictions(path: Path) -> pd.DataFrame:
    """predictions.csv of a model: image, label, defect_type, score, decision.

    Raises:
        DataError: it is damaged.
    """
    try:
        table = pd.read_csv(path, dtype={"image": str, "defect_type": str})
        table["score"].to_numpy(float), table["label"].astype(bool), table["decision"].astype(bool)
    except (ValueError, KeyError) as error:
        raise DataError(f"'{path}' cannot be read as a run's predictions: {error}") from error
    return table


def read_run(directory: Path) -> RunRecord:
    """Read what a run left.

    Raises:
        UsageError: no run's folder; those below it are named.
        DataError: a file that is damaged.
    """
    if not (directory / "results.csv").is_file():
        below = sorted(path.parent for path in directory.glob("**/results.csv")) if directory.is_dir() else []
        found = f"; there are runs in {', '.join(map(str, below))}" if below else ""
        raise UsageError(f"'{directory}' is not the folder of a run: expected results.csv and config.json in it{found}")
    tables = []
    for name in ("results.csv", "results_best_epoch.csv", "history.csv"):
        try:
            tables.append(pd.read_csv(directory / name, dtype={"class": str, EPOCH: str}))
            tables[-1]["class"]  # every table has it
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"'{directory / name}' cannot be read as a run's table: {error}") from error
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        record = RunRecord(directory, config, *tables)
        record.jobs  # noqa: B018 - raises where entries are missing
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{directory / 'config.json'}' cannot be read as a run's configuration: {error}") from error
    return record


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
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "precision": str(precision).removeprefix("torch."),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git_revision": _git_revision(),
    }
    write_text(path, json.dumps(config, indent=2, default=str) + "\n")


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
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
