"""The names of classes, and what they decide of a detector's options; which classes can train one model."""

from collections.abc import Sequence
from typing import Any

from errors import UsageError
from experiment.config import JobName
from experiment.dataset_config import DatasetConfig
from experiment.detector_config import DetectorConfig
from methods import DETECTORS


def notes_of_names(detector: DetectorConfig, names: Sequence[JobName]) -> list[str]:
    """What is said of options that are taken by the names of classes."""
    return [
        f"--{option} {value} is taken, by its name, for {', '.join(own)}"
        for (option, value), own in _taken_by_names(detector, names).items()
    ]


def classes_of_one_model(detector: DetectorConfig, data: DatasetConfig, group: Sequence[JobName]) -> list[str]:
    """The classes of a dataset that train one model together.

    Raises:
        UsageError: they cannot, or an option is taken by their names, for which there is no one value.
    """
    if data.reader.are_opposed:
        raise UsageError(
            f"--one_model: anomalous images of a class of {data.name} are normal ones of the others, which one model "
            "would learn: leave it out"
        )
    taken = _taken_by_names(detector, group)
    for option in dict.fromkeys(option for option, _ in taken):
        said = [f"{value} for {', '.join(own)}" for (one, value), own in taken.items() if one == option]
        if len(said) > 1:
            raise UsageError(f"--one_model: --{option} would be {' and '.join(said)}: give it for all of them")
    return [name.class_name for name in group]


def _taken_by_names(detector: DetectorConfig, names: Sequence[JobName]) -> dict[tuple[str, Any], list[str]]:
    """Of options that are taken by the names of classes, by name and value, those classes."""
    taken: dict[tuple[str, Any], list[str]] = {}
    for class_name in dict.fromkeys(name.class_name for name in names):
        for choice in DETECTORS[detector.command].options_of_class(detector.options, class_name).items():
            taken.setdefault(choice, []).append(class_name)
    return taken
