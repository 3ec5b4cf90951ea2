"""Several runs on the test images that they share: what each metric is, and how far two lie apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from errors import UsageError
from experiment.config import JobName
from experiment.record.provenance import datasets_of
from experiment.record.read import RunRecord
from experiment.show.tables import run_labels
from late import pandas as pd
from metrics import DECISION_METRICS, LOCO_METRICS, METRICS, Metric, bootstrap, significance
from metrics.significance import CHANCE, Estimate, Interval, Placements

KNOWN = METRICS | LOCO_METRICS | DECISION_METRICS
OF_IMAGES = "image_auroc"  # the metric that has a variance of its own
NAMED = 3  # images that a message names


@dataclass(frozen=True)
class Contender:
    """A run, or one backbone of several (None: the only one), with the jobs of every class, one of every seed."""

    label: str
    record: RunRecord
    backbone: str | None
    jobs: dict[str, list[JobName]]


@dataclass(frozen=True)
class Measured:
    """A contender on a class's test images, means over its seeds.

    Attributes:
        values: of every metric that exists, by name.
        placements: of the images; None where all are normal or all anomalous.
        deviations: of every metric, on test sets that are the same for all contenders; see bootstrap.deviations.
    """

    values: dict[str, float]
    placements: Placements | None
    deviations: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Difference:
    """By how much one contender is better than another; p is the chance of so much where there is no difference."""

    value: float
    interval: Interval
    p: float


@dataclass(frozen=True)
class Comparison:
    """Contenders on the classes that all of them have.

    Attributes:
        contenders: in order.
        classes: in order, such as "mvtec_bottle".
        measured: by contender and class.
        left_out: classes that not all have.
    """

    contenders: list[Contender]
    classes: list[str]
    measured: list[list[Measured]]
    left_out: list[str]

    @property
    def labels(self) -> list[str]:
        return [one.label for one in self.contenders]

    @cached_property
    def metrics(self) -> list[Metric]:
        """Those that all contenders have of any class."""
        return [metric for name, metric in KNOWN.items() if self.shared(name)]

    @cached_property
    def unsure(self) -> list[Metric]:
        """Those without intervals, of which a run keeps nothing that other test sets could be drawn from."""
        measured = [one for own in self.measured for one in own]
        return [
            metric
            for metric in self.metrics
            if any(metric.name in one.values and np.isnan(one.deviations[metric.name]).all() for one in measured)
        ]

    def shared(self, name: str, classes: Sequence[int] | None = None) -> list[int]:
        """Of some classes, or of all, the indices of those of which all contenders have a metric."""
        own = range(len(self.classes)) if classes is None else classes
        return [j for j in own if all(name in one[j].values for one in self.measured)]

    def value(self, i: int, name: str, classes: Sequence[int]) -> float:
        """The mean of a contender's metric over classes."""
        return float(np.mean([self.measured[i][j].values[name] for j in classes]))

    def interval(self, i: int, name: str, classes: Sequence[int]) -> Interval:
        """Where the mean over classes may well lie on other test images like these."""
        own = [self.measured[i][j] for j in classes]
        if name != OF_IMAGES:
            return bootstrap.interval(self.value(i, name, classes), self._deviation(i, name, classes))
        if len(own) == 1:
            return significance.auroc_interval(own[0].placements)
        return significance.unit_interval(_mean_estimate([one.placements for one in own]))

    def difference(self, i: int, k: int, name: str, classes: Sequence[int]) -> Difference:
        """By how much contender i is better than contender k in the mean over classes."""
        if name == OF_IMAGES:
            pairs = [(self.measured[i][j], self.measured[k][j]) for j in classes]
            found = _mean_estimate([one.placements.minus(other.placements) for one, other in pairs])
            value = found.value
        else:
            sign = 1 if KNOWN[name].higher_is_better else -1
            value = sign * (self.value(i, name, classes) - self.value(k, name, classes))
            deviation = sign * (self._deviation(i, name, classes) - self._deviation(k, name, classes))
            found = bootstrap.estimate(value, deviation)
        return Difference(value, significance.symmetric_interval(found), significance.p_value(found))

    def best(self, name: str, classes: Sequence[int]) -> list[int]:
        """The best contender and all that do not differ from it by more than chance."""
        values = [self.value(i, name, classes) for i in range(len(self.labels))]
        first = int(np.argmax(values) if KNOWN[name].higher_is_better else np.argmin(values))
        others = [i for i in range(len(values)) if i != first]
        p_values = significance.holm([self.difference(first, i, name, classes).p for i in others])
        return [first, *(i for i, p in zip(others, p_values, strict=True) if not p < CHANCE)]

    def _deviation(self, i: int, name: str, classes: Sequence[int]) -> NDArray[np.float64]:
        return np.mean([self.measured[i][j].deviations[name] for j in classes], axis=0)


def compare(records: Sequence[RunRecord]) -> Comparison:
    """Measure runs on the test images that they share.

    Raises:
        UsageError: no class is in all of them, or a class was tested on different images.
        DataError: a damaged file of a run.
    """
    contenders = contenders_of(records)
    names = list(dict.fromkeys(name for one in contenders for name in one.jobs))
    shared = [name for name in names if all(name in one.jobs for one in contenders)]
    if not shared:
        have = "; ".join(f"{one.label} has {', '.join(one.jobs)}" for one in contenders)
        raise UsageError(f"--compare: no class is in all runs: {have}")
    measured: list[list[Measured]] = [[] for _ in contenders]
    with tqdm(desc="compare", total=len(shared) * len(contenders), leave=False, dynamic_ncols=True) as bar:
        for name in shared:
            first = None
            for own, contender in zip(measured, contenders, strict=True):
                tables = [contender.record.predictions(job) for job in contender.jobs[name]]
                for table in tables:
                    first = (contender.label, table) if first is None else first
                    check_images(name, first, (contender.label, table))
                own.append(_measure(contender, contender.jobs[name], tables, name, first[1]))
                bar.update()
    return Comparison(contenders, shared, measured, [name for name in names if name not in shared])


def contenders_of(records: Sequence[RunRecord]) -> list[Contender]:
    """All runs, those of several backbones as one of each."""
    found = []
    for record, label in zip(records, run_labels(records), strict=True):
        names, backbones = datasets_of(record.config), record.config["net"]["backbones"]
        for index, backbone in enumerate(backbones):
            jobs: dict[str, list[JobName]] = {}
            for job in record.jobs:
                if job.backbone == index:
                    jobs.setdefault(f"{names[job.dataset]['name']}_{job.class_name}", []).append(job)
            own = str(backbone["label"]) if len(backbones) > 1 else None
            found.append(Contender(f"{label} {own}" if own else label, record, own, jobs))
    return [one for one in found if one.jobs]


def check_images(name: str, first: tuple[str, pd.DataFrame], other: tuple[str, pd.DataFrame]) -> None:
    """See that two tables of predictions are of the same images, with the same labels.

    Raises:
        UsageError: they are not; the images are named.
    """
    (one_label, one), (other_label, two) = first, other
    if one is two:
        return
    theirs, ours = (dict(zip(table["image"], table["label"], strict=True)) for table in (one, two))
    said = [
        f"only {label} has {_named(images)}"
        for label, images in (
            (one_label, [image for image in theirs if image not in ours]),
            (other_label, [image for image in ours if image not in theirs]),
        )
        if images
    ]
    changed = [image for image, label in theirs.items() if ours.get(image, label) != label]
    if changed:
        said.append(f"they call {_named(changed)} differently")
    if not said and len(one) != len(two):
        said.append(f"they are of {len(one)} and {len(two)} images")
    if said:
        raise UsageError(
            f"--compare: {one_label} and {other_label} were not tested on the same images of {name}: "
            f"{', '.join(said)}; compare runs on the same data"
        )


def _named(images: Sequence[str]) -> str:
    more = f" and {len(images) - NAMED} more" if len(images) > NAMED else ""
    return ", ".join(f"'{image}'" for image in images[:NAMED]) + more


def _measure(
    contender: Contender, jobs: Sequence[JobName], tables: Sequence[pd.DataFrame], name: str, order: pd.DataFrame
) -> Measured:
    """A contender on a class, whose images stand in the order of a table."""
    record, labels = contender.record, order["label"].to_numpy().astype(bool)
    rows = [record.results_of[job].row for job in jobs]
    known = {metric: float(np.mean([row.get(metric, math.nan) for row in rows])) for metric in KNOWN}
    values = {metric: value for metric, value in known.items() if not math.isnan(value)}
    drawn = bootstrap.draw(labels, crc32(name.encode()), bootstrap.DRAWS)
    has_both = not labels.all() and labels.any()
    placed, deviations = [], []
    for job, table in zip(jobs, tables, strict=True):
        where = np.empty(len(table), int)
        where[np.argsort(order["image"], kind="stable")] = np.argsort(table["image"], kind="stable")
        own, pixels = table.iloc[where], record.pixels(job, len(table))
        scores = own["score"].to_numpy()
        if pixels is not None:
            pixels = pixels.of(where)
        kinds = own["defect_type"].to_numpy() if values.keys() & LOCO_METRICS else None
        deviations.append(bootstrap.deviations(labels, scores, own["decision"].to_numpy(), pixels, drawn, kinds))
        if has_both:
            placed.append(significance.placements(labels, scores))
    means = {metric: np.mean([one[metric] for one in deviations], axis=0) for metric in deviations[0]}
    return Measured(
        values,
        significance.mean_placements(placed) if placed else None,
        means,
    )


def _mean_estimate(several: Sequence[Placements]) -> Estimate:
    return significance.mean_estimate([significance.estimate(own) for own in several])
