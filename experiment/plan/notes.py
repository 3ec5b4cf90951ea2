"""What is said of detectors that read the same data in different ways."""

from collections.abc import Sequence
from operator import attrgetter

from experiment.dataset_config import DatasetConfig
from experiment.plan.runs import Run
from options import declared

NOTE = "Detectors read the data as they would alone, and differ in"


def data_notes(runs: Sequence[Run]) -> list[str]:
    """A line on the options of the data in which the detectors of a command line differ; none where they do not."""
    by_detector: dict[str, list[DatasetConfig]] = {}
    for run in runs:
        by_detector.setdefault(run.called, []).extend(run.datasets)
    differing = []
    for own in declared(DatasetConfig):
        value_of = attrgetter(".".join(own.path))
        values: dict[str, list[str]] = {}
        for called, datasets in by_detector.items():
            shown = " or ".join(dict.fromkeys(f"{value_of(data)}" for data in datasets))
            values.setdefault(shown, []).append(called)
        if len(values) > 1 and own.option.changes_results:
            listed = ", ".join(f"{value} ({' and '.join(names)})" for value, names in values.items())
            differing.append(f"--{own.name} {listed}")
    return [f"{NOTE} {'; '.join(differing)}: what is given to dataset stands for all"] if differing else []
