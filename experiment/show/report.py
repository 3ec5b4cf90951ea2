"""report.html: one page, complete in itself, that shows what one or several runs gave."""

import base64
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import jinja2
import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_curve
from tqdm import tqdm

import metrics
from detection.description import read_description
from errors import DataError, UsageError
from experiment.config import JobName, ReportConfig
from experiment.record.data import root_of
from experiment.record.provenance import flatten
from experiment.record.read import RunRecord
from experiment.show.ablation import is_grid, overview, read_runs
from experiment.show.comparison import Comparison, compare
from experiment.show.costs import cost_table
from experiment.show.failures import failures
from experiment.show.pictures import WORST, picture_name, smaller, worst
from experiment.show.published import published
from experiment.show.tables import Table, beside_papers, decisions, light_note, light_notes, render, run_labels
from experiment.show.verdict import comparison_tables, notes, verdicts
from files import write_text
from methods import DETECTORS

DOTS, COLOURS = 150, 64  # an inch of a chart that is no svg, and in all of it
NORMAL, ANOMALOUS = "#3569a8", "#cf5a1e"
PICTURES = 300  # about so many of test images on a page: many models show fewer each, and smaller ones
LOSSES = {"loss": "#555", "image_loss": "#2f8f5b", "table_loss": "#8a4fa3", "held_out_loss": "#bbb"}
STYLE = {
    "svg.fonttype": "none",  # text stays text: small files, sharp at every size
    "svg.hashsalt": "report",  # the same run gives the same bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Picture:
    """A drawn test image or a chart, what is said of it, and where the image's file is, as far as that is known."""

    caption: str
    uri: str
    file: str = ""


@dataclass(frozen=True)
class JobView:
    """One job on the page: charts and pictures as data URIs."""

    title: str
    run: str
    image_auroc: str
    charts: list[Picture]
    failures: Table | None
    light: str
    misses: list[Picture]
    alarms: list[Picture]


def report(config: ReportConfig) -> None:
    """Print the table of some runs; unless it is for another program, write the page too.

    Raises:
        UsageError: a folder that is no run's, a place for a page that is not written, or --compare of runs that cannot
            be compared, or of the best epoch.
        DataError: a damaged file of a run.
    """
    if config.compare and config.best_epoch:
        raise UsageError("--compare is of the scores in predictions.csv, the last epoch's: leave --best_epoch out")
    if config.out is not None and config.style != "table":
        raise UsageError(
            f"--out names the page, which --format {config.style} does not write: leave one of them out, or send the "
            "printed table to a file by >"
        )
    records = [record for directory in config.directories for record in read_runs(directory)]
    comparison = compare(records) if config.compare else None
    for note in notes(comparison):
        click.echo(note, err=True)
    if config.style != "table":
        table = comparison_tables(comparison)[0] if comparison else overview(records, config.best_epoch)
        click.echo(render(table, config.style))
        return
    tables = [overview(records, best_epoch) for best_epoch in ((True,) if config.best_epoch else (False, True))]
    papers = None if is_grid(records) else beside_papers(records)
    for table in [*tables, *([papers] if papers else [])]:
        click.echo(render(table, "table") + "\n")
    if not config.best_epoch:
        click.echo(render(decisions(records), "table") + "\n")
        if (costs := cost_table(records)).rows:
            click.echo(render(costs, "table") + "\n")
        for note in light_notes(records):
            click.echo(note, err=True)
    if comparison:
        for table in comparison_tables(comparison, is_short=True):
            click.echo(render(table, "table") + "\n")
        click.echo("\n".join(verdicts(comparison)))
    out = config.out or config.directories[0] / "report.html"
    write_text(out, page(records, comparison))
    click.echo(f"The report is {out}", err=True)


def page(records: Sequence[RunRecord], comparison: Comparison | None = None) -> str:
    """The HTML page of some runs, with how they compare where that is given.

    Raises:
        DataError: a damaged file of a run.
    """
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it announces its font cache
    labels = run_labels(records)
    jobs = [(record, label, job) for record, label in zip(records, labels, strict=True) for job in record.jobs]
    views: dict[str, list[JobView]] = {}
    shown = min(WORST, max(1, PICTURES // (2 * len(jobs)))) if jobs else 0
    with rc_context(STYLE):
        for record, label, job in tqdm(jobs, desc="report", unit="model", leave=False, dynamic_ncols=True):
            views.setdefault(job.title, []).append(_job_view(record, label, job, shown))
    tables = [overview(records), overview(records, best_epoch=True), decisions(records)]
    costs = cost_table(records)
    tables += [costs] if costs.rows else []
    beside = None if is_grid(records) else beside_papers(records)
    named = {row[1] for row in beside.rows} if beside else set()
    sources = published().drop_duplicates("paper")[["paper", "source"]].to_dict("records")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.j2").render(
        labels=labels,
        tables=tables,
        compared=comparison_tables(comparison) if comparison else [],
        verdicts=verdicts(comparison) if comparison else [],
        notes=notes(comparison),
        several_seeds=any(len(record.seeds) > 1 for record in records),
        beside=beside,
        papers=[paper for paper in sources if paper["paper"] in named],
        views=views,
        options=_options(records),
    )


def _job_view(record: RunRecord, label: str, job: JobName, shown: int) -> JobView:
    """A job with so many misses and false alarms at most."""
    folder = record.directory / job.folder
    predictions, description = record.predictions(job), read_description(folder, DETECTORS)
    threshold = description.thresholds.image
    scores, anomalous = predictions["score"].to_numpy(), predictions["label"].to_numpy().astype(bool)
    history = record.tables.history
    history = history[(history["class"] == job.title) & (history["seed"] == job.seed)]
    kind = "row" if description.table else "image"
    chart = partial(_chart, "png" if shown < WORST else "svg")
    charts = [Picture(f"{kind.title()} scores", chart(_draw_histogram, scores, anomalous, threshold, kind))]
    if anomalous.any() and not anomalous.all():
        charts.append(Picture(f"ROC curve of {kind} scores", chart(_draw_roc, scores, anomalous)))
    decided = predictions["decision"].to_numpy().astype(bool)
    charts.append(Picture("Decisions at the threshold", chart(_draw_confusion, anomalous, decided)))
    charts.append(Picture("Training", chart(_draw_training, history)))
    misses, alarms = ([], []) if description.table else worst(anomalous, scores, shown)
    auroc = metrics.auroc(anomalous, scores)
    return JobView(
        title=job.title,
        run=f"{label}, seed {job.seed}",
        image_auroc="" if np.isnan(auroc) else f"{metrics.METRICS['image_auroc'].title} {100 * auroc:.1f}",
        charts=charts,
        failures=failures(record, job),
        light=light_note(record, job),
        misses=_pictures(record, job, predictions, misses, shown < WORST),
        alarms=_pictures(record, job, predictions, alarms, shown < WORST),
    )


def _pictures(
    record: RunRecord, job: JobName, predictions: pd.DataFrame, indices: Sequence[int], is_small: bool
) -> list[Picture]:
    try:
        root = root_of(record, job)
    except (DataError, OSError):  # a run outlives its data
        root = None
    pictures = []
    for index in indices:
        if picture_name(index) not in record.results_of[job].sha256:  # earlier versions drew fewer
            continue
        row = predictions.loc[index]
        kind = row["defect_type"] if row["label"] else "normal"
        caption = f"{row['image']} ({kind}), score {row['score']:.3f}"
        file = "" if root is None else (root / row["image"]).absolute().as_uri()
        drawn = record.read(job, picture_name(index))
        pictures.append(Picture(caption, _uri(smaller(drawn) if is_small else drawn, "jpeg"), file))
    return pictures


def _chart(style: str, draw: Any, *data: Any) -> str:
    """A chart as svg, whose text is sharp at every size, or as png, of which a browser opens hundreds at once."""
    figure = Figure(figsize=(3.6, 2.5), layout="constrained")
    draw(figure.subplots(), *data)
    buffer = io.BytesIO()
    if style == "svg":
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        return _uri(buffer.getvalue(), "svg+xml")
    figure.savefig(buffer, format="png", dpi=DOTS)
    drawn = Image.open(buffer).convert("RGB").quantize(COLOURS)
    buffer = io.BytesIO()
    drawn.save(buffer, "png")
    return _uri(buffer.getvalue(), "png")


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _draw_histogram(
    axes: Axes, scores: NDArray[np.floating], anomalous: NDArray[np.bool_], threshold: float, kind: str
) -> None:
    edges = np.histogram_bin_edges(scores, bins=30, range=_span(scores))
    for chosen, colour, name in ((~anomalous, NORMAL, "normal"), (anomalous, ANOMALOUS, "anomalous")):
        if chosen.any():
            label = f"{name} ({chosen.sum()})"
            axes.hist(scores[chosen], edges, histtype="stepfilled", color=colour, alpha=0.6, label=label)
    axes.axvline(threshold, color="#222", linewidth=1, linestyle="--", label="threshold")
    axes.set(xlabel=f"{kind} score", ylabel=f"{kind}s")
    axes.legend(frameon=False)


def _span(scores: NDArray[np.floating]) -> tuple[float, float]:
    """The lowest and the highest score; around scores that are all the same, half as much as they are, or a half."""
    low, high = float(scores.min()), float(scores.max())
    beside = 0.0 if low < high else max(abs(low), 1.0) / 2
    return low - beside, high + beside


def _draw_roc(axes: Axes, scores: NDArray[np.floating], anomalous: NDArray[np.bool_]) -> None:
    fpr, tpr, _ = roc_curve(anomalous, scores)
    axes.plot([0, 1], [0, 1], color="#999", linewidth=0.8, linestyle=":")
    axes.plot(fpr, tpr, color=ANOMALOUS)
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))


def _draw_confusion(axes: Axes, anomalous: NDArray[np.bool_], decided: NDArray[np.bool_]) -> None:
    """The confusion matrix: what samples are down, what they are called across."""
    truths = (False, True)
    counts = np.array([[((anomalous == truth) & (decided == call)).sum() for call in truths] for truth in truths])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    for (i, j), count in np.ndenumerate(counts):
        axes.text(j, i, f"{count}\n{100 * shares[i, j]:.1f} %", ha="center", va="center")
    names = ["normal", "anomalous"]
    axes.set(xticks=[0, 1], xticklabels=names, yticks=[0, 1], xlabel="called", ylabel="is")
    axes.set_yticklabels(names, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_training(axes: Axes, history: pd.DataFrame) -> None:
    losses = [name for name in LOSSES if name in history and history[name].notna().any()]
    for name in losses:
        axes.plot(history["meta_epoch"], history[name], color=LOSSES[name], marker=".", label=name.replace("_", " "))
    if len(losses) > 1:
        axes.legend(frameon=False, fontsize=7)
    axes.set(xlabel="meta epoch", ylabel="loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    evaluated = history.dropna(subset=["image_auroc"])
    if len(evaluated):
        right = axes.twinx()
        right.plot(evaluated["meta_epoch"], evaluated["image_auroc"], color=NORMAL, marker=".")
        right.set_ylabel(f"test {metrics.METRICS['image_auroc'].title}", color=NORMAL)
        right.spines["right"].set_visible(True)


def _options(records: Sequence[RunRecord]) -> list[tuple[str, list[str], bool]]:
    """Every entry of the configurations: its name, its value in every run, and whether the runs differ in it."""
    flat = [flatten(record.config) for record in records]
    names = dict.fromkeys(name for options in flat for name in options)
    rows = [(name, [options.get(name, "") for options in flat]) for name in names]
    return [(name, values, len(set(values)) > 1) for name, values in rows]
