"""Which of several runs is better, by how much, and whether that is more than chance: what report --compare says."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from experiment.show.comparison import OF_IMAGES, Comparison
from experiment.show.tables import NONE, Table
from metrics import significance
from metrics.significance import CHANCE, Interval


def comparison_tables(comparison: Comparison, is_short: bool = False) -> list[Table]:
    """All tables of a comparison, that of the intervals first, of the main metrics alone if it is to be short."""
    tables: list[Table | None] = [intervals(comparison, is_short)]
    if len(comparison.labels) > 1 and comparison.shared(OF_IMAGES):
        tables += [pairs(comparison), ranked(comparison)]
    return [table for table in tables if table is not None]


def intervals(comparison: Comparison, is_short: bool) -> Table:
    """Of every class, then of their mean: the runs down, metrics with 95 % intervals across, in percent.

    Args:
        comparison: of one run or several, of which the best and all that do not differ from it are bold.
        is_short: the main metrics alone.
    """
    shown = [metric for metric in comparison.metrics if metric.main or not is_short]
    several, rows, bold = len(comparison.labels) > 1, [], set()
    groups = [(name, [j]) for j, name in enumerate(comparison.classes)]
    if len(groups) > 1:
        groups.append(("Mean", list(range(len(groups)))))
    for name, classes in groups:
        start = len(rows)
        rows += [[name, label] for label in comparison.labels]
        for column, metric in enumerate(shown, 2):
            own = comparison.shared(metric.name, classes)
            for i in range(len(comparison.labels)):
                cell = NONE
                if own:
                    cell = _cell(comparison.value(i, metric.name, own), comparison.interval(i, metric.name, own))
                rows[start + i].append(cell)
            bold |= {(start + i, column) for i in comparison.best(metric.name, own)} if several and own else set()
    heads = ["class", "run", *(metric.title for metric in shown)]
    return Table("metrics and 95 % intervals, percent", heads, rows, frozenset(bold), names=2)


def pairs(comparison: Comparison) -> Table:
    """Every two runs: who has the better image AUROC, by how much, and whether that is more than chance.

    DeLong's test is of the test images of all classes together, Wilcoxon's of the classes. Both are corrected by Holm
    for the number of pairs.
    """
    classes = comparison.shared(OF_IMAGES)
    found = []
    for i, k in combinations(range(len(comparison.labels)), 2):
        own = comparison.difference(i, k, OF_IMAGES, classes)
        i, k, own = (i, k, own) if own.value >= 0 else (k, i, comparison.difference(k, i, OF_IMAGES, classes))
        gaps = [comparison.difference(i, k, OF_IMAGES, [j]).value for j in classes]
        found.append((i, k, own, gaps, significance.wilcoxon(gaps)))
    found.sort(key=lambda one: -one[2].value)
    by_images = significance.holm([own.p for *_, own, _, _ in found])
    by_classes = significance.holm([p for *_, p in found])
    rows = []
    for (i, k, own, gaps, _), p, p_classes in zip(found, by_images, by_classes, strict=True):
        won, lost = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
        counts = f"{won} to {lost}" + (f", {len(gaps) - won - lost} even" if won + lost < len(gaps) else "")
        verdict = "yes" if p < CHANCE else "no"
        gap = _cell(own.value, own.interval)
        rows.append([comparison.labels[i], comparison.labels[k], gap, _p(p), verdict, counts, _p(p_classes)])
    heads = ["better", "than", "by", "p (DeLong)", "more than chance", "classes", "p (Wilcoxon)"]
    return Table("image AUROC of every two runs, percent points", heads, rows)


def ranked(comparison: Comparison) -> Table | None:
    """Mean ranks over the classes, the best first; None of fewer than three runs or two classes."""
    table = auroc_table(comparison)
    if table.shape[0] < 2 or table.shape[1] < 3:
        return None
    mean = significance.ranks(table).mean(axis=0)
    rows = [
        [comparison.labels[i], f"{mean[i]:.2f}", f"{100 * table[:, i].mean():.1f}"]
        for i in np.argsort(mean, kind="stable")
    ]
    least = significance.critical_difference(table.shape[1], table.shape[0])
    title = (
        f"mean ranks of image AUROC over {len(table)} classes; Friedman's test: {_p_is(significance.friedman(table))}; "
        f"ranks that are {least:.2f} apart differ by more than chance (Nemenyi)"
    )
    return Table(title, ["run", "mean rank", "image AUROC"], rows)


def auroc_table(comparison: Comparison) -> NDArray[np.float64]:
    """Image AUROC of every shared class and run [C, R]."""
    classes = comparison.shared(OF_IMAGES)
    return np.array([[one[j].values[OF_IMAGES] for one in comparison.measured] for j in classes])


def verdicts(comparison: Comparison) -> list[str]:
    """Sentences: the best run, those that are not told apart from it, and those that are worse."""
    classes = comparison.shared(OF_IMAGES)
    if not classes or len(comparison.labels) < 2:
        return []
    first, *same = comparison.best(OF_IMAGES, classes)
    value, labels = 100 * comparison.value(first, OF_IMAGES, classes), comparison.labels
    where = comparison.classes[classes[0]] if len(classes) == 1 else f"the mean of {len(classes)} classes"
    said = [f"{labels[first]} has the best image AUROC of {where}: {value:.1f} %."]
    others = [i for i in range(len(labels)) if i != first]
    by = {i: comparison.difference(first, i, OF_IMAGES, classes) for i in others}
    p_values = dict(zip(others, significance.holm([by[i].p for i in others]), strict=True))
    for i in sorted(others, key=lambda i: by[i].value):
        points, low, high = (100 * own for own in (by[i].value, *by[i].interval))
        if not points:
            said.append(f"{labels[i]} has the same.")
            continue
        sure = "which may be chance" if i in same else "more than chance"
        said.append(
            f"It is better than {labels[i]} by {points:.1f} points (95 %: {low:+.1f} to {high:+.1f}), {sure} "
            f"({_p_is(p_values[i])})."
        )
    if len(comparison.classes) < significance.FEWEST:
        said.append(
            f"That is of these test images. Whether it holds for other classes takes {significance.FEWEST} or more."
        )
    return said


def notes(comparison: Comparison | None) -> list[str]:
    """What a user should know of what was compared, if anything was."""
    said = []
    if comparison and comparison.left_out:
        said.append(f"--compare leaves out what not all runs have: {', '.join(comparison.left_out)}")
    if comparison and comparison.unsure:
        titles = ", ".join(metric.title for metric in comparison.unsure)
        said.append(f"--compare has no intervals of {titles}: a run does not keep what they would be drawn from")
    return said


def _cell(value: float, found: Interval) -> str:
    if math.isnan(found.low):
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _p(value: float) -> str:
    return NONE if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def _p_is(value: float) -> str:
    return "p is not known" if math.isnan(value) else "p < 0.001" if value < 0.001 else f"p = {_p(value)}"
