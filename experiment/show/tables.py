"""Tables of one or several runs, beside published numbers, for a terminal, a paper or a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from detection.description import read_description
from experiment.config import JobName
from experiment.record.provenance import datasets_of
from experiment.record.read import RunRecord
from experiment.record.results import EPOCH
from experiment.show.published import (
    BEST_EPOCH,
    COMPARED,
    LAST_EPOCH,
    PROTOCOLS,
    by_class,
    class_of,
    means,
    published,
)
from late import pandas as pd
from methods import DETECTORS
from metrics import DECISION_METRICS, LOCO_METRICS, METRICS, decision_metrics

FORMATS = {"table": "simple", "markdown": "pipe", "latex": "latex_booktabs"}
BOLD = {"table": (" ", "*"), "markdown": ("**", "**"), "latex": ("\\textbf{", "}")}
LAST, BEST = "last meta epoch", "best epoch, picked on the test set"
NONE = "-"  # a metric that does not exist


@dataclass(frozen=True)
class Table:
    """A title, column heads, rows of cells, and which cells are bold, as (row, column).

    Attributes:
        names: how many columns, from the first, name a row; of several, rows that share the first stand together.
    """

    title: str
    heads: list[str]
    rows: list[list[str]]
    bold: frozenset[tuple[int, int]] = frozenset()
    names: int = 1


def run_labels(records: Sequence[RunRecord]) -> list[str]:
    """The shortest ends of the runs' paths that tell them apart."""
    parts = [record.directory.resolve().parts for record in records]
    longest = max(map(len, parts))
    for depth in range(1, longest + 1):
        labels = ["/".join(own[-depth:]) for own in parts]
        if len(set(labels)) == len(labels):
            break
    return labels


def summary(records: Sequence[RunRecord], best_epoch: bool = False) -> Table:
    """Classes down; metrics in percent across, of several runs the main ones each; then numbers of their papers.

    Args:
        records: what the runs left; at least one.
        best_epoch: of results_best_epoch.csv instead of results.csv.
    """
    own = (record.tables.best_epoch if best_epoch else record.tables.results for record in records)
    tables = [table.set_index("class") for table in own]
    names = [name for name in dict.fromkeys(name for table in tables for name in table.index) if name != "Mean"]
    labels = run_labels(records) if len(records) > 1 else [""]
    columns: dict[str, list[str]] = {"class": [*names, "Mean"]}
    shown = [metric for metric in (METRICS | LOCO_METRICS).values() if metric.main or len(records) == 1]
    for label, table in zip(labels, tables, strict=True):
        for metric in shown:
            if metric.name in table and table[metric.name].notna().any():
                cells = [cell(table, name, metric.name) for name in columns["class"]]
                columns[f"{label} {metric.title}".strip()] = cells
        if best_epoch and len(records) == 1:
            columns["epoch"] = [table[EPOCH].get(name, "") for name in names] + [""]
    columns |= _beside_published(records, tables, names, best_epoch)
    title = f"{BEST if best_epoch else LAST}, percent"
    return Table(title, list(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def decisions(records: Sequence[RunRecord]) -> Table:
    """What the thresholds of every model make of its test images: precision, recall, F1, accuracy, SegF1, false alarms.

    The false-alarm rate is the share of the normal test images that are called anomalous; beside it stand the
    share of new ones to expect, and what it is at most with 95 %, by held-out images or cross-validation: nothing where
    the normal test images are in another light, for which that does not hold.

    Raises:
        DataError: a damaged file of a run.
    """
    labels = run_labels(records)
    rows = []
    for record, label in zip(records, labels, strict=True):
        for job in record.jobs:
            folder = record.directory / job.folder
            table, thresholds = record.predictions(job), read_description(folder, DETECTORS).thresholds
            anomalous, decided = table["label"].astype(bool), table["decision"].astype(bool)
            own = decision_metrics(anomalous, decided.to_numpy())
            shares = [own.get(name, record.results_of[job].row.get(name)) for name in DECISION_METRICS]
            shares.append(decided[~anomalous].mean())
            name = [label] * (len(records) > 1) + [job.title] + [f"seed {job.seed}"] * (len(record.seeds) > 1)
            shares += thresholds.false_alarms_among(record.results_of[job].outside) or (math.nan, math.nan)
            cells = [NONE if pd.isna(share) else f"{100 * share:.1f}" for share in shares]
            source = f"{thresholds.images} {thresholds.source}"
            rows.append([" ".join(name), f"{thresholds.image:.3f}", source, *cells])
    titles = [metric.title for metric in DECISION_METRICS.values()]
    heads = ["class", "threshold", "from", *titles, "false-alarm rate", "expected rate", "rate at most"]
    return Table("decisions at the threshold, percent", heads, rows)


def light_note(record: RunRecord, job: JobName) -> str:
    """What is said of normal test images that are too dark or too bright for the threshold; empty where none is."""
    outside = record.results_of[job].outside
    return outside.sentence(f"normal test images of {job.title}") if outside else ""


def light_notes(records: Sequence[RunRecord]) -> list[str]:
    """The notes on the light of all jobs, each once."""
    return [note for note in dict.fromkeys(light_note(own, job) for own in records for job in own.jobs) if note]


def render(table: Table, style: str) -> str:
    """A table as text: "table" (for a terminal, where a star is bold), "csv", "markdown" or "latex" (with booktabs)."""
    if style == "csv":
        frame = pd.DataFrame(table.rows, columns=table.heads).replace(NONE, "")
        return frame.to_csv(index=False, lineterminator="\n").rstrip("\n")
    heads = [name.replace(" ", "\n") for name in table.heads] if style == "table" else table.heads
    align = ["left", *["right"] * (len(heads) - 1)]
    before, behind = BOLD[style]
    rows = [
        [f"\ue000{text}\ue001" if (i, j) in table.bold else text for j, text in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]
    from tabulate import tabulate  # late: a command that prints no table need not wait for it

    text = tabulate(rows, heads, FORMATS[style], disable_numparse=True, colalign=align)
    text = text.replace("\ue000", before).replace("\ue001", behind)
    if style == "table":
        return f"{table.title[0].upper()}{table.title[1:]}\n\n{text}"
    return f"% {table.title}; needs booktabs\n{text}" if style == "latex" else text


def cell(table: pd.DataFrame, name: str, metric: str) -> str:
    """A class's metric in percent, with its standard deviation if there is one; NONE where it does not exist."""
    if name not in table.index or metric not in table or pd.isna(table.loc[name, metric]):
        return NONE
    text = f"{100 * table.loc[name, metric]:.1f}"
    deviation = f"{metric}_std"
    if deviation in table and pd.notna(table.loc[name, deviation]):
        text += f" ± {100 * table.loc[name, deviation]:.1f}"
    return text


def _beside_published(
    records: Sequence[RunRecord], tables: Sequence[pd.DataFrame], names: Sequence[str], best_epoch: bool
) -> dict[str, list[str]]:
    """Columns of the papers of the runs' detectors that have numbers for these classes.

    Of a single run that learns as they do with its difference to those of the same protocol; another protocol stands in
    the column's head.
    """
    columns: dict[str, list[str]] = {}
    detectors = [str(record.config["net"].get("command", "net")) for record in records]
    for paper, protocol, theirs in by_class(detectors):
        own = {name: theirs.loc[key] for name in names if (key := class_of(name)) in theirs.index}
        is_like = protocol == (BEST_EPOCH if best_epoch else LAST_EPOCH)
        for metric in theirs.columns if own else ():
            values = {name: row[metric] for name, row in own.items()}
            if any(map(pd.isna, values.values())):
                continue
            gaps: dict[str, float] = {}
            if is_like and len(tables) == 1 and _learns_as_in_papers(records[0]) and tables[0][metric].notna().any():
                ours = 100 * tables[0][metric]
                gaps = {name: ours[name] - value for name, value in values.items() if pd.notna(ours[name])}
            cells = [_with_gap(values[name], gaps.get(name)) if name in values else NONE for name in names]
            means = sum(values.values()) / len(values), sum(gaps.values()) / len(gaps) if gaps else None
            said = "" if is_like else f", {PROTOCOLS[protocol]}"
            columns[f"{paper} {METRICS[metric].title}{said}"] = [*cells, _with_gap(*means)]
    return columns


def _learns_as_in_papers(record: RunRecord) -> bool:
    """Whether each class has a model of its own, of all its normal training images and of no others."""
    others = ("one_model", "shots", "contamination")
    return not any(data.get(name) for data in datasets_of(record.config) for name in others)


def _with_gap(value: float, gap: float | None) -> str:
    return f"{value:.1f}" if gap is None else f"{value:.1f} ({gap:+.1f})"


def beside_papers(records: Sequence[RunRecord]) -> Table | None:
    """Means over the runs' classes beside those of papers, of one protocol together; None where no paper has them."""
    names = [name for record in records for name in record.tables.results["class"]]
    found = means(names)
    rows = []
    for dataset in dict.fromkeys(one.dataset for one in found):
        for protocol in PROTOCOLS:
            own = _own_means(records, dataset, protocol)
            theirs = [(one.paper, one.values) for one in found if (one.dataset, one.protocol) == (dataset, protocol)]
            for method, values in [*own, *theirs]:
                cells = [NONE if pd.isna(values[name]) else f"{values[name]:.1f}" for name in COMPARED]
                rows.append([dataset, method, protocol, *cells])
    heads = ["dataset", "method", "protocol", *(METRICS[name].title for name in COMPARED)]
    return Table("means beside published ones of the same classes, percent", heads, rows) if found else None


def _own_means(records: Sequence[RunRecord], dataset: str, protocol: str) -> list[tuple[str, dict[str, float]]]:
    """Of every run that learns as papers do, and of every backbone of several, its means over the classes of a dataset
    that papers have."""
    if protocol not in (LAST_EPOCH, BEST_EPOCH):
        return []
    known = {f"{dataset}_{name}" for name in published().query("dataset == @dataset")["class"]}
    found = []
    for record, label in zip(records, run_labels(records), strict=True):
        if not _learns_as_in_papers(record):
            continue
        table = record.tables.results if protocol == LAST_EPOCH else record.tables.best_epoch
        table = table[table["class"].map(class_of).isin(known)]
        for backbone, rows in table.groupby(table["class"].map(lambda title: title.partition(" (")[2]), sort=False):
            values = {name: 100 * rows[name].mean() if name in rows else math.nan for name in COMPARED}
            found.append((f"{label} ({backbone}" if backbone else label, values))
    return found
