"""The data that a run was of, found again by its config.json."""

import os
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from datasets import DATASETS, Sample, find_root, with_interest
from errors import DataError
from experiment.config import JobName
from experiment.dataset_config import DatasetConfig
from experiment.record.provenance import CONFIG, KIND, datasets_of
from experiment.record.read import RunRecord
from files import unreadable
from options import build, declared


def image_name(path: Path, root: Path) -> str:
    """How predictions.csv names an image: by its path below the dataset's root, one that lies elsewhere in full."""
    path, root = Path(os.path.abspath(path)), Path(os.path.abspath(root))  # noqa: PTH100 - resolve follows links
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def data_of(record: RunRecord, job: JobName) -> DatasetConfig:
    """How the dataset of a job was asked for.

    Raises:
        DataError: config.json does not say it as this version does.
    """
    entry = datasets_of(record.config)[job.dataset]
    try:
        kind = type(DATASETS[entry["name"]].options)
        options = None if entry["options"] is None else build(kind, _values(kind, entry["options"]))
        given = {**entry, **entry["reading"], **entry["random"]}
        return build(DatasetConfig, _values(DatasetConfig, given), options=options)
    except (KeyError, TypeError, ValueError) as error:
        raise unreadable(record.directory / CONFIG, KIND, error) from error


def root_of(record: RunRecord, job: JobName) -> Path:
    """The folder that predictions.csv of a job names images from.

    Raises:
        DataError: the data are not there any more.
    """
    data = data_of(record, job)
    path = data.data_path or (data.reader.default_root() if data.reader.default_root else None)
    if path is None or not path.exists():
        raise DataError(f"the data of '{record.directory}' are not there any more: '{path}'")
    return find_root(data.reader, path)[0]


def samples_of(record: RunRecord, job: JobName) -> dict[str, Sample]:
    """The test images of a job's class by the names that predictions.csv has for them.

    Raises:
        DataError: the data are not there any more, or cannot be read.
    """
    root, data = root_of(record, job), data_of(record, job)
    samples = data.reader.read_class(root, job.class_name)
    if data.mask_of_interest is not None:
        samples = with_interest(samples, data.mask_of_interest, root)
    return {image_name(sample.image_path, root): sample for sample in samples.test}


def _values(kind: type, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The values of options as their dataclass has them, of JSON's."""
    found = {}
    for own in declared(kind):
        value = entry[own.name] if own.default is MISSING else entry.get(own.name, own.default)  # older ones lack some
        if own.kind is Path and value is not None:
            value = Path(value)
        found[own.name] = tuple(value) if own.multiple else value
    return found
