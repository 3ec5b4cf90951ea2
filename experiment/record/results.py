"""What jobs leave: job.json in every model's folder, failed.json, and the tables that are made of all of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from detection.brightness import Outside
from errors import DataError, first_line
from experiment.config import JobName
from experiment.record.inputs import Inputs
from experiment.record.sheets import FORMULA, write_csv
from files import read_json, unreadable, write_text
from late import pandas as pd
from metrics import DECISION_METRICS, LOCO_METRICS, METRICS

RESULT, FAILURES = "job.json", "failed.json"
FORMAT = 1  # of job.json
AGAIN = "the command of the run, given again, does this job anew"
EPOCH = "epoch_picked_on_test_set"  # in results_best_epoch.csv: the protocol stands in the header
PROGRESS = ("meta_epoch", "loss")  # in every history, whatever else a detector watches


class DamagedResultError(DataError):
    """A job.json that a power cut or a full disk has left, or another hand."""


@dataclass(frozen=True)
class JobResult:
    """What a job adds to the run's tables.

    Attributes:
        row: class, seed and metrics of the last meta epoch.
        best_row: those of the evaluated meta epoch with the best image AUROC (ties by pixel AUROC), and its number.
        history: a row per meta epoch.
        sha256: of the files that reports read, by their name in the model's folder.
        inputs: of the images or rows that it was of; None in those of earlier versions.
        outside: of the normal test images, those that are too dark or too bright for the threshold; None where that is
            not known.
    """

    row: dict[str, Any]
    best_row: dict[str, Any]
    history: list[dict[str, Any]]
    sha256: dict[str, str] = field(default_factory=dict)
    inputs: Inputs | None = None
    outside: Outside | None = None


@dataclass(frozen=True)
class Failure:
    """A job that --on_error skip left out: class, seed and the reason."""

    title: str
    seed: int
    error: str


@dataclass(frozen=True)
class Tables:
    """The CSV files of a run but for the rounding of their numbers."""

    results: pd.DataFrame
    per_seed: pd.DataFrame
    best_epoch: pd.DataFrame
    history: pd.DataFrame


def write_result(folder: Path, result: JobResult, files: Sequence[Path]) -> JobResult:
    """Write job.json, with the digests of some files in the folder; returns what it says."""
    digests = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    result = replace(result, sha256=digests)
    content = json.dumps({"format": FORMAT, **without_nan(asdict(result))}, indent=1, allow_nan=False)
    write_text(folder / RESULT, content + "\n")
    return result


def read_result(folder: Path, name: JobName) -> JobResult:
    """What job.json says; a metric that it lacks, as one of an earlier version may, does not exist.

    Raises:
        DamagedResultError: it is missing, damaged, or of another job.
        DataError: it is of another version.
    """
    path = folder / RESULT
    try:
        content = json.loads(path.read_bytes())
        if content.pop("format") != FORMAT:
            raise DataError(
                f"'{path}' is of another version: move the run aside with --overwrite, or choose another --run_name"
            )
        inputs, outside = content.pop("inputs", None), content.pop("outside", None)
        result = JobResult(**content)
        return JobResult(
            _numbers(result.row, name),
            _numbers(result.best_row, name, [EPOCH]),
            [_numbers(row, name, PROGRESS) for row in result.history],
            {str(key): str(value) for key, value in result.sha256.items()},
            None if inputs is None else Inputs(str(inputs["listed"]), str(inputs["content"])),
            None if outside is None else _outside(**outside),
        )
    except FileNotFoundError as error:
        raise DamagedResultError(
            f"'{folder}' is not the folder of a finished job: it has no {RESULT}; {AGAIN}"
        ) from error
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DamagedResultError(f"'{path}' cannot be read as a job's results: {first_line(error)}; {AGAIN}") from error


def read_results(directory: Path, names: Sequence[JobName]) -> dict[JobName, JobResult]:
    """What the finished ones of a run's jobs left, in the order of the names.

    Raises:
        DataError: as read_result.
    """
    found = {name: directory / name.folder for name in names}
    return {name: read_result(folder, name) for name, folder in found.items() if folder.exists()}


def without_nan(value: Any) -> Any:
    """JSON knows no NaN: null."""
    if isinstance(value, Mapping):
        return {key: without_nan(own) for key, own in value.items()}
    if isinstance(value, list):
        return [without_nan(own) for own in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _numbers(row: Mapping[str, Any], name: JobName, columns: Sequence[str] = ()) -> dict[str, Any]:
    """A row of job.json whose null is NaN again; ValueError where it is not one of this job or lacks a column."""
    if (row["class"], row["seed"]) != (name.title, name.seed):
        raise ValueError(f"it is of {row['class']}, seed {row['seed']}")
    values = {key: math.nan if value is None else value for key, value in row.items() if key != "class"}
    if missing := [column for column in columns if column not in values]:
        raise ValueError(f"it has no {', '.join(missing)}")
    for key, value in values.items():
        if FORMULA.match(key) or isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
            raise ValueError(f"{key} is no finite number")
    return {"class": row["class"], **values}


def _outside(lowest: float, low: float, high: float, highest: float, **counts: int) -> Outside:
    bounds = (float(bound) for bound in (lowest, low, high, highest))
    return Outside(*bounds, **{name: int(count) for name, count in counts.items()})


def write_failures(folder: Path, failures: Sequence[Failure]) -> None:
    """Write failed.json; remove it where nothing failed."""
    if failures:
        write_text(folder / FAILURES, json.dumps([asdict(one) for one in failures], indent=2) + "\n")
    else:
        (folder / FAILURES).unlink(missing_ok=True)


def read_failures(folder: Path) -> list[Failure]:
    """What failed.json says; nothing where there is none.

    Raises:
        DataError: it is damaged.
    """
    path, kind = folder / FAILURES, "a list of failed jobs"
    try:
        return [Failure(str(one["title"]), int(one["seed"]), str(one["error"])) for one in read_json(path, kind)]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise unreadable(path, kind, error) from error


def make_tables(
    names: Sequence[JobName], results: Mapping[JobName, JobResult], failures: Sequence[Failure] = ()
) -> Tables:
    """The tables of what has finished so far, in the order of the names.

    results.csv holds, for every class, the means over the seeds and, of several, their standard deviations, of metrics
    and of decisions at the threshold; the reason where a job failed. A metric that does not exist is an empty cell and
    left out of the means.
    """
    failed = {(one.title, one.seed): one for one in failures}
    rows = []
    for name in names:
        if name in results:
            rows.append(results[name].row)
        elif one := failed.get((name.title, name.seed)):
            rows.append({"class": one.title, "seed": one.seed, "error": one.error})
    done = [results[name] for name in names if name in results]
    history = [row for one in done for row in one.history]
    extra = [name for name in LOCO_METRICS if any(name in row for row in [*rows, *history])]
    columns = [*METRICS, *extra]
    decided = [name for name in DECISION_METRICS if any(name in row for row in rows)]
    watched = dict.fromkeys([*PROGRESS, *(n for row in history for n in row if n not in ("class", "seed", *columns))])
    per_seed = _with_mean_row(
        pd.DataFrame(rows, columns=["class", "seed", *columns, *decided, *["error"] * bool(failures)]),
        [*columns, *decided],
    )
    best = pd.DataFrame([one.best_row for one in done], columns=["class", "seed", *columns, EPOCH])
    epochs = best.astype({EPOCH: str}).groupby("class", sort=False)[EPOCH].agg(" ".join)
    return Tables(
        _over_seeds(per_seed, [*columns, *decided]),
        per_seed,
        _over_seeds(_with_mean_row(best, columns), columns).merge(epochs, "left", on="class"),
        pd.DataFrame(history, columns=["class", "seed", *watched, *columns]),
    )


def write_tables(folder: Path, tables: Tables) -> None:
    """Write results.csv, results_per_seed.csv, results_best_epoch.csv and history.csv."""
    write_csv(folder / "history.csv", tables.history)
    write_csv(folder / "results_best_epoch.csv", tables.best_epoch)
    write_csv(folder / "results_per_seed.csv", tables.per_seed)
    write_csv(folder / "results.csv", tables.results)


def _with_mean_row(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The rows, then of every seed the mean over its rows."""
    means = rows.groupby("seed", sort=False)[names].mean().reset_index()
    return pd.concat([rows, means.assign(**{"class": "Mean"})], ignore_index=True)[
        [name for name in rows.columns if name in ("class", "seed", "error", *names)]
    ]


def _over_seeds(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Mean over the seeds of every class and, of several seeds, the sample standard deviation (NAME_std) behind."""
    groups = rows.groupby("class", sort=False)
    table = groups[names].mean()
    if rows["seed"].nunique() > 1:
        table = table.join(groups[names].std().add_suffix("_std"))
    if "error" in rows:
        table = table.join(groups["error"].agg(lambda errors: "; ".join(dict.fromkeys(errors.dropna()))))
    return table.reset_index()
