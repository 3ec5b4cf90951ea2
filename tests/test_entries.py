"""A metric is one entry: added here as a contributor adds it, it is in everything that a run leaves."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import SMALL_DATA, SMALL_NET
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from errors import DataError
from experiment.record.read import read_run
from experiment.record.results import EPOCH
from metrics import DECISION_METRICS, LOCO_METRICS, METRICS, Metric

GROUP = Path("results/project/group")
GAP = Metric("image_gap", "image gap", lambda labels, scores: abs(labels - scores).mean() / 100)
HIT = Metric("pixel_hit", "pixel hits", METRICS["pixel_f1_max"].function, of_pixels=True, main=True)


@pytest.fixture
def chain(tmp_path, monkeypatch, mvtec):
    """Run a chain over one class in this process and a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def go(*run, net=()):
        words = [*run, *SMALL_NET, *net, "dataset", *SMALL_DATA, "-d", "nut", "mvtec", str(mvtec)]
        main.main(words, standalone_mode=False)

    return go


def add(monkeypatch, *metrics):
    for metric in metrics:
        monkeypatch.setitem(METRICS, metric.name, metric)


def table(capsys, *words):
    """The heads and the rows of a report's first table, as Markdown writes them."""
    capsys.readouterr()
    main.main(["report", *map(str, words), "--format", "markdown"], standalone_mode=False)
    lines = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines()]
    heads, _, *rows = [[cell.strip() for cell in line] for line in lines]
    return heads, [dict(zip(heads, row, strict=True)) for row in rows]


def test_names_and_titles_are_of_one_metric_each():
    for known in (METRICS | LOCO_METRICS, DECISION_METRICS):
        assert all(name == metric.name for name, metric in known.items())
        assert len({metric.title for metric in known.values()}) == len(known)
    assert len(METRICS | LOCO_METRICS | DECISION_METRICS) == len(METRICS) + len(LOCO_METRICS) + len(DECISION_METRICS)


def test_an_entry_is_all_that_a_metric_takes(chain, monkeypatch, capsys):
    """Of a grid with a run that finished before it was there: an empty cell, and the best of the others is bold."""
    grid = GROUP / "test"
    chain("--grid", "dsc_hidden=8")
    add(monkeypatch, replace(GAP, higher_is_better=False), HIT)
    monkeypatch.setitem(
        DECISION_METRICS, "called", Metric("called", "called", lambda own: (own.hits + own.alarms) / sum(own))
    )
    capsys.readouterr()
    chain("--grid", "dsc_hidden=8,6,5")
    said = capsys.readouterr()
    assert "1 of 3 jobs are finished already" in said.err
    assert {"gap", "hits"} <= set(said.out.split())

    before, *points = [grid / f"dsc_hidden={hidden}" for hidden in (8, 6, 5)]
    values = []
    for point in points:
        model = point / "models/0/mvtec_nut"
        described = json.loads((model / "model.json").read_text())["metrics"]
        predictions = pd.read_csv(model / "predictions.csv")
        values.append(described["image_gap"])
        assert values[-1] == pytest.approx((predictions["label"] - predictions["score"]).abs().mean() / 100)
        for name in ("results.csv", "results_per_seed.csv", "results_best_epoch.csv", "history.csv"):
            rows = pd.read_csv(point / name)
            columns = [column for column in rows if column in METRICS]
            assert columns == list(METRICS) and columns[-2:] == ["image_gap", "pixel_hit"]
            assert rows["image_gap"].to_numpy() == pytest.approx(values[-1], abs=1e-6)
            assert rows["pixel_hit"].tolist() == rows["pixel_f1_max"].tolist()
        assert pd.read_csv(point / "results.csv")["called"].iloc[0] == predictions["decision"].mean()
    board = EventAccumulator(str(model))
    board.Reload()
    assert {"image_gap", "pixel_hit"} <= set(board.Tags()["scalars"])

    heads, rows = table(capsys, grid)
    assert heads[-2:] == ["image gap", "pixel hits"]
    assert values[0] != values[1]
    shown = [f"**{100 * own:.1f}**" if own == min(values) else f"{100 * own:.1f}" for own in values]
    assert [row["image gap"] for row in rows] == ["-", *shown] * 2  # of the class and of the mean

    monkeypatch.setitem(METRICS, GAP.name, GAP)
    assert [row["image gap"].startswith("**") for row in table(capsys, grid)[1][:3]] == [
        *(False, values[0] > values[1], values[1] > values[0])
    ]

    assert "pixel hits" not in table(capsys, before)[0]
    assert pd.read_csv(before / "results.csv")["pixel_hit"].isna().all()
    heads, _ = table(capsys, *points)  # shown side by side, of the grid's table
    assert "pixel hits" in heads
    main.main(["report", str(grid)], standalone_mode=False)
    page = (grid / "report.html").read_text()
    assert '<th scope="col">image gap</th>' in page and '<th scope="col">called</th>' in page


def test_runs_side_by_side_show_the_main_metrics(chain, monkeypatch, capsys):
    add(monkeypatch, GAP, HIT)
    chain("--run_name", "one")
    shutil.copytree(GROUP / "one", GROUP / "two")
    heads, _ = table(capsys, GROUP / "one", GROUP / "two")
    assert {"one pixel hits", "two pixel hits"} < set(heads)
    assert not any("gap" in head for head in heads)


def test_a_result_without_a_metric_is_read_continued_and_tested(chain, capsys):
    chain()
    run = GROUP / "test"
    path = run / "models/0/mvtec_nut/job.json"
    before = {path.name: path.read_bytes() for path in run.glob("*.csv") if path.name != "cost.csv"}  # of no metrics
    content = json.loads(path.read_text())
    for row in (content["row"], content["best_row"], *content["history"]):
        del row["pro"], row["pixel_ap"]
    path.write_text(json.dumps(content))
    main.main(["report", str(run)], standalone_mode=False)
    results, _, classes = (run / "report.html").read_text().partition("<h2>Classes</h2>")
    assert "pixel max-F1" in results and "PRO</th>" not in results and "PRO</th>" in classes  # by pixels.npz
    chain()
    assert "1 of 1 jobs are finished already" in capsys.readouterr().err
    for name, old in before.items():
        rows = pd.read_csv(run / name)
        assert rows[["pro", "pixel_ap"]].isna().all(axis=None)
        old_rows = pd.read_csv(io.BytesIO(old))
        assert list(rows) == list(old_rows)
        pd.testing.assert_frame_equal(
            rows.drop(columns=["pro", "pixel_ap"]), old_rows.drop(columns=["pro", "pixel_ap"])
        )
    chain("--test")
    assert (run / "results.csv").read_bytes() == before["results.csv"]
    assert pd.read_csv(run / "results_best_epoch.csv")["pro"].isna().all()


def test_a_result_that_lacks_anything_else_is_damaged(chain):
    chain()
    path = GROUP / "test/models/0/mvtec_nut/job.json"
    whole = path.read_text()
    for where, name, value in (
        ("row", "class", None),
        ("row", "class", ...),
        ("row", "seed", 3),
        ("row", "pro", "high"),
        ("best_row", EPOCH, ...),
        ("best_row", "pro", float("inf")),
        ("history", "loss", ...),
        ("history", "meta_epoch", ...),
    ):
        content = json.loads(whole)
        row = content[where][0] if where == "history" else content[where]
        row[name] = value
        if value is ...:
            del row[name]
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match="cannot be read as a job's results"):
            read_run(GROUP / "test")
    path.write_text(whole)
    read_run(GROUP / "test")


def test_training_that_an_earlier_version_began_is_finished(chain, monkeypatch):
    """Epochs of before lack the metric, and stay the best of their history."""

    def stop(labels, scores, calls=[]):  # noqa: B006 - counts
        calls.append(1)
        if len(calls) == 2:
            raise DataError("stopped")
        return 0.5

    for name in ("image_auroc", "pixel_auroc"):  # a tie: the first epoch is the best
        monkeypatch.setitem(METRICS, name, replace(METRICS[name], function=lambda *_: 0.5))
    with monkeypatch.context() as patch, pytest.raises(DataError, match="the state after meta epoch 1 is in"):
        patch.setitem(METRICS, "stop", Metric("stop", "stop", stop))
        chain(net=["--meta_epochs", "2"])
    add(monkeypatch, HIT)
    chain(net=["--meta_epochs", "2"])
    assert pd.read_csv(GROUP / "test/history.csv")["pixel_hit"].notna().tolist() == [False, True]
    best = pd.read_csv(GROUP / "test/results_best_epoch.csv").iloc[0]
    assert (best[EPOCH], pd.isna(best["pixel_hit"])) == (1, True)
    assert pd.read_csv(GROUP / "test/results.csv")["pixel_hit"].notna().all()
