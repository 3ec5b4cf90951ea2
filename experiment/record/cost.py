"""What models cost: cost.json in a model's folder, and a run's cost.csv. Times are in no other table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from errors import DataError
from experiment.config import JobName
from experiment.record.sheets import write_csv
from files import read_json, unreadable, write_text
from late import pandas as pd
from options import is_of

COST, COSTS = "cost.json", "cost.csv"
KIND = "what a model costs"
FORMAT = "%.12g"  # of numbers in tables, which are rounded
DIGITS = {"fit_seconds": 2, "ms_from_file": 2, "ms_from_features": 2, "parameters": 0, "model_mb": 2} | {
    f"peak_{where}_mb": 1 for where in ("host", "device")
}


@dataclass(frozen=True)
class Cost:
    """What a model took and takes; None is not known.

    Attributes:
        fit_seconds: of embedding its training images once and of all that it learned, without reading files and without
            evaluations; of a model of several classes that of all.
        ms_from_file: of one image, from its file to the decision, the median of a few, one after another.
        ms_from_features: of those the part behind the backbone.
        parameters: of all networks, the backbone up to its last layer that is read included.
        model_mb: of all parameters and what else is kept, such as a memory bank, in memory.
        peak_host_mb, peak_device_mb: the most memory of the process while images were embedded and it was trained and
            tested: with features and maps, without the processes that read images.
    """

    fit_seconds: float
    ms_from_file: float
    ms_from_features: float
    parameters: int
    model_mb: float
    peak_host_mb: float | None
    peak_device_mb: float | None


def write_cost(folder: Path, cost: Cost) -> None:
    """Write cost.json into a model's folder."""
    write_text(folder / COST, json.dumps(asdict(cost), indent=1) + "\n")


def read_cost(folder: Path) -> Cost | None:
    """What cost.json says; None where there is none, as in folders of earlier versions.

    Raises:
        DataError: it is damaged.
    """
    path = folder / COST
    try:
        values = read_json(path, KIND)
        cost = Cost(**values)
        if not all(is_of(value, float) or (value is None and "peak" in name) for name, value in values.items()):
            raise ValueError("a value is no number")
    except FileNotFoundError:
        return None
    except DataError as error:
        raise _removable(error) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise _removable(unreadable(path, KIND, error)) from error
    return cost


def _removable(error: DataError) -> DataError:
    return DataError(f"{error}: nothing else needs it, remove it")


def read_costs(directory: Path, names: Iterable[JobName]) -> dict[JobName, Cost]:
    """What those of a run's finished jobs cost of which it is known.

    Raises:
        DataError: as read_cost.
    """
    return {name: cost for name in names if (cost := read_cost(directory / name.folder)) is not None}


def cost_table(costs: Mapping[JobName, Cost]) -> pd.DataFrame:
    """A row per class, the mean over its seeds, then the mean of these; empty where nothing is known."""
    columns = [own.name for own in fields(Cost)]
    rows = pd.DataFrame([asdict(cost) for cost in costs.values()], columns=columns, dtype=float)
    means = rows.groupby([name.title for name in costs], sort=False).mean() if costs else rows
    table = pd.concat([means, means.mean().to_frame("Mean").T]) if costs else rows
    return table.round(DIGITS).rename_axis("class").reset_index()


def write_costs(directory: Path, table: pd.DataFrame) -> None:
    """Write cost.csv; nothing where nothing is known."""
    if len(table):
        write_csv(directory / COSTS, table, FORMAT)
