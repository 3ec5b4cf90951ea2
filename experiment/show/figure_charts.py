"""Figures of numbers: mean ranks with a critical difference, and image AUROC against time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from errors import UsageError
from experiment.record.read import RunRecord
from experiment.show.comparison import OF_IMAGES, Contender, compare
from experiment.show.verdict import auroc_table
from metrics import significance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES = {"one": 3.35, "two": 6.9}  # of a column, and of both: 85 and 175 mm
STEPS = (1, 2, 5)  # of a logarithmic axis, within each power of ten
INK, LETTER = "#1d2129", 0.054  # a letter's width in inches


def draw_ranks(records: Sequence[RunRecord], width: str) -> Figure:
    """Mean ranks of image AUROC on a line, the best on the right; bars join those that chance may tell apart.

    Demsar (JMLR 2006, figure 1): bars are no longer than Nemenyi's critical difference.

    Raises:
        UsageError: fewer than three runs or two classes.
    """
    comparison = compare(records)
    table = auroc_table(comparison)
    if table.ndim != 2 or table.shape[0] < 2 or table.shape[1] < 3:
        have = f"{len(comparison.labels)} and {len(comparison.classes)}"
        raise UsageError(f"--ranks needs three runs or more on the same two classes or more, not {have}")
    mean = significance.ranks(table).mean(axis=0)
    least = significance.critical_difference(table.shape[1], table.shape[0])
    return _ranks_figure(comparison.labels, mean, least, len(table), width)


def _ranks_figure(labels: Sequence[str], mean: NDArray[np.float64], least: float, classes: int, width: str) -> Figure:
    from matplotlib.figure import Figure

    count = len(labels)
    order = np.argsort(mean, kind="stable")
    bars = joined(mean[order], least)
    below = 0.45 + 0.3 * len(bars)  # from the line down to the first name
    lines = (count + 1) // 2
    drawn = Figure(figsize=(INCHES[width], 0.75 + 0.17 * (lines + 2 * below)))
    axes = drawn.add_axes((0, 0, 1, 1))
    beside = LETTER * (max(map(len, labels)) + 8)  # inches on either side, for a name and its rank
    margin = (count - 1) * beside / max(INCHES[width] - 2 * beside, 0.8)
    axes.set(xlim=(count + margin, 1 - margin), ylim=(-below - lines - 0.4, 3.4))
    axes.axis("off")
    axes.plot([1, count], [0, 0], color=INK, linewidth=0.8)
    for tick in range(1, count + 1):
        axes.plot([tick, tick], [0, 0.25], color=INK, linewidth=0.8)
        axes.text(tick, 0.4, str(tick), ha="center", va="bottom")
    end = max(count - least, 1 - margin * 0.9)
    axes.plot([count, end], [2.1, 2.1], color=INK, linewidth=0.8)
    for x in (count, end):
        axes.plot([x, x], [1.9, 2.3], color=INK, linewidth=0.8)
    axes.text(count, 2.45, f"critical difference {least:.2f} ({classes} classes)", ha="left", va="bottom")
    for height, (best, last) in enumerate(bars):
        y = -0.3 - 0.3 * height
        ends = mean[order[best]] - 0.03 * (count - 1) / 5, mean[order[last]] + 0.03 * (count - 1) / 5
        axes.plot(ends, [y, y], color=INK, linewidth=2.2, solid_capstyle="round")
    for place, i in enumerate(order):
        is_right = place < lines
        y = -below - (place if is_right else count - 1 - place) - 0.1
        x = 1 - margin * 0.08 if is_right else count + margin * 0.08
        axes.plot([mean[i], mean[i], x], [0, y, y], color=INK, linewidth=0.6)
        axes.text(x, y, f" {labels[i]}  {mean[i]:.2f} ", ha="left" if is_right else "right", va="center")
    return drawn


def joined(rising: NDArray[np.float64], least: float) -> list[tuple[int, int]]:
    """The first and the last of every longest group of at least two mean ranks that lie no further apart than `least`.

    Args:
        rising: mean ranks, lowest first.
        least: the critical difference.
    """
    found: list[tuple[int, int]] = []
    for first, rank in enumerate(rising):
        last = int(np.flatnonzero(rising <= rank + least)[-1])
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def draw_cost(records: Sequence[RunRecord], width: str) -> Figure:
    """Image AUROC against milliseconds per image, means over the classes that all runs have.

    Raises:
        UsageError: a run that does not know what its models cost, as those of earlier versions.
        DataError: a cost.json that is damaged.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    comparison = compare(records)
    classes = comparison.shared(OF_IMAGES)
    if not classes:
        raise UsageError("--cost: no class of the runs has an image AUROC, which is of normal and anomalous images")
    names = {comparison.classes[j] for j in classes}
    drawn = Figure(figsize=(INCHES[width], 0.72 * INCHES["one"]), layout="constrained")
    axes = drawn.subplots()
    points = []
    for place, contender in enumerate(comparison.contenders):
        x = milliseconds(contender, names)
        y = 100 * comparison.value(place, OF_IMAGES, classes)
        low, high = (100 * end for end in comparison.interval(place, OF_IMAGES, classes))
        if low == low:
            axes.plot([x, x], [low, high], color="#9aa3af", linewidth=0.8, zorder=1)
        axes.scatter([x], [y], s=14, color="#3569a8", zorder=2)
        points.append((x, y))
    axes.set_xscale("log")
    axes.set(xlabel="milliseconds per image, from file to decision", ylabel="image AUROC, % (bars: 95 %)")
    axes.margins(x=0.15, y=0.08)
    times = [x for x, _ in points]
    axes.xaxis.set_major_locator(LogLocator(subs=STEPS) if max(times) > 5 * min(times) else MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color="#e5e8ec", linewidth=0.5)
    axes.set_axisbelow(True)
    _name_points(axes, points, comparison.labels)
    return drawn


def _name_points(axes: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str]) -> None:
    """Write names beside points, of the places around each that which covers least of the others and of their names."""
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # what is measured below is known from here on
    taken = [Bbox.from_bounds(*(axes.transData.transform(point) - 4), 8, 8) for point in points]
    for i, (point, label) in enumerate(zip(points, labels, strict=True)):
        tried = []
        for (x, across), (y, up) in product(((4, "left"), (-4, "right"), (0, "center")), ((4, "bottom"), (-4, "top"))):
            text = axes.annotate(label, point, (x, y), textcoords="offset points", ha=across, va=up, in_layout=False)
            box = text.get_window_extent()
            others = [one for j, one in enumerate(taken) if j != i]
            covered = sum(both.width * both.height for one in others if (both := Bbox.intersection(box, one)))
            inside = Bbox.intersection(box, axes.bbox)
            outside = box.width * box.height - (inside.width * inside.height if inside else 0)
            tried.append((covered + outside, len(tried), text, box))
        tried.sort(key=lambda one: one[:2])
        for *_, text, _ in tried[1:]:
            text.remove()
        taken.append(tried[0][3])


def milliseconds(contender: Contender, classes: Collection[str]) -> float:
    """What an image took a contender, the mean over its models of some classes.

    Raises:
        UsageError: a model of these has no cost.json.
        DataError: it is damaged.
    """
    known = contender.record.cost_of
    jobs = [job for name in classes for job in contender.jobs[name]]
    if unknown := [job.folder for job in jobs if job not in known or not known[job].ms_from_file > 0]:
        folder = contender.record.directory / unknown[0]
        raise UsageError(f"--cost: '{folder}' does not say how long an image took, as of earlier versions: run it anew")
    return float(np.mean([known[job].ms_from_file for job in jobs]))
