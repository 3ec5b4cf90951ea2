"""Tables and the page of finished runs."""

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import chain

import numpy as np
import pandas as pd
import pytest
from browser import needs_chromium, visit
from conftest import SMALL_DATA, SMALL_NET
from PIL import Image
from sklearn.metrics import f1_score, precision_score, recall_score

import main
from errors import DataError, UsageError
from experiment.config import job_names
from experiment.record.read import read_run
from experiment.record.results import EPOCH, JobResult, make_tables, write_result, write_tables
from experiment.record.sheets import write_csv
from experiment.show import report
from experiment.show.pictures import encoded, panel, picture_name, smaller, worst
from experiment.show.published import BEST_EPOCH, COMPARED, MEAN, PROTOCOLS, published
from experiment.show.report import page
from experiment.show.tables import beside_papers, decisions, render, run_labels, summary
from metrics import DECISION_METRICS, METRICS

CLASSES = (
    "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush transistor wood zipper"
)


@pytest.fixture(scope="session")
def small_run(mvtec, tmp_path_factory):
    """A real run of two classes and two seeds."""
    results = tmp_path_factory.mktemp("results")
    words = ["--results_path", str(results), "--seed", "1", "--seed", "4", *SMALL_NET, "--meta_epochs", "3"]
    main.main([*words, "dataset", *SMALL_DATA, "mvtec", str(mvtec)], standalone_mode=False)
    return results / "project" / "group" / "test"


def make_run(folder, like, gain=0.0):
    """A made-up run of the 15 MVTec classes: every file that the report reads, configured as another run."""
    config = json.loads((like / "config.json").read_text())
    described = json.loads(next(like.rglob("model.json")).read_text())
    rng = np.random.default_rng(0)
    results = {}
    for job in job_names([("mvtec", CLASSES.split())], ["resnet18"], [0]):
        name = job.class_name
        values = dict(zip(METRICS, rng.uniform(0.9, 0.99, len(METRICS)) + gain, strict=True))
        key = {"class": f"mvtec_{name}", "seed": 0}
        best = {**key, **values, "image_auroc": values["image_auroc"] + 0.005, EPOCH: 3}
        epochs = [{"meta_epoch": i, "loss": 1 / i, "p_true": 0.9, "p_fake": 0.9} for i in range(1, 5)]
        history = [{**key, **values, **epoch} for epoch in epochs]
        model = folder / job.folder
        (model / "examples").mkdir(parents=True)
        labels = np.arange(40) % 2
        kinds = np.where(labels == 1, "crack", "good")
        names = [f"{name}/test/{kind}/{i:03}.png" for i, kind in enumerate(kinds)]
        scores = rng.normal(labels * 2)
        write_csv(
            model / "predictions.csv",
            pd.DataFrame(
                {"image": names, "label": labels, "defect_type": kinds, "score": scores, "decision": scores > 1}
            ).astype({"decision": int}),
        )
        thresholds = {**described["thresholds"], "image": 1.0}
        (model / "model.json").write_text(json.dumps({**described, "thresholds": thresholds}))
        for index in chain(*worst(labels, scores)):
            image = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            drawn = panel(image, image[..., 0] > 200, rng.random((64, 64)), (0, 1))
            Image.fromarray(drawn).save(model / picture_name(index))
        written = [model / "predictions.csv", *(model / "examples").iterdir()]
        results[job] = write_result(model, JobResult({**key, **values}, best, history), written)
    write_tables(folder, make_tables(list(results), results))
    config = {**config, "run": {**config["run"], "seeds": [0]}}
    config["dataset"] = {**config["dataset"], "subdatasets": CLASSES.split()}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def mvtec_run(small_run, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "run", small_run)


def test_published_numbers_average_to_the_published_means():
    """Of every paper that prints classes: the mean that it prints itself or, of SimpleNet, in its abstract."""
    table = published()
    means = {(row["paper"], row["protocol"]): row for _, row in table[table["class"] == MEAN].iterrows()}
    means["SimpleNet", BEST_EPOCH] = {"image_auroc": 99.6, "pixel_auroc": 98.1, "pro": np.nan}
    counts = {}
    for (paper, protocol), rows in table[table["class"] != MEAN].groupby(["paper", "protocol"]):
        assert sorted(rows["class"]) == sorted(CLASSES.split())
        printed = [means[paper, protocol][name] for name in COMPARED]
        assert rows[list(COMPARED)].mean().tolist() == pytest.approx(printed, abs=0.08, nan_ok=True)
        counts[paper] = counts.get(paper, 0) + 1
    assert counts == dict.fromkeys(counts, 1) | {"FastFlow by gathierry": 2}


def test_published_numbers_say_how_they_came_about():
    table = published()
    assert set(table["protocol"]) <= set(PROTOCOLS) and table["source"].notna().all()
    methods = {"SimpleNet", "PatchCore", "CFA", "RD", "STPM", "EfficientAD-M", "FastFlow"}
    assert methods <= set(table["paper"])
    numbers = table[list(COMPARED)]
    assert ((numbers > 50) & (numbers <= 100) | numbers.isna()).all(axis=None) and numbers.notna().any(axis=1).all()
    detectors = table.dropna(subset="detector").drop_duplicates("paper").set_index("paper")["detector"]
    assert set(detectors.index) == methods and detectors.is_unique


def test_a_mvtec_run_stands_beside_the_paper(mvtec_run):
    """Its best epoch with the difference, for so the paper's were chosen; its last without."""
    record = read_run(mvtec_run)
    own = pd.read_csv(mvtec_run / "results_best_epoch.csv", index_col="class")
    last, best = summary([record]), summary([record], best_epoch=True)
    for table, column in ((last, "SimpleNet image AUROC, best epoch"), (best, "SimpleNet image AUROC")):
        rows = {row[0]: dict(zip(table.heads, row, strict=True)) for row in table.rows}
        assert list(rows) == [*(f"mvtec_{name}" for name in CLASSES.split()), "Mean"]
        assert table.heads[1:8] == [
            *["image AUROC", "pixel AUROC", "PRO", "image AP", "image max-F1", "pixel AP", "pixel max-F1"]
        ]
        (paper, *gap), (mean, *_) = rows["mvtec_carpet"][column].split(), rows["Mean"][column].split()
        assert (paper, mean) == ("99.7", "99.6")
        assert rows["Mean"][column.replace("image", "pixel")].split()[0] == "98.1"
        assert bool(gap) == (table is best)
    assert rows["mvtec_carpet"]["image AUROC"] == f"{100 * own.loc['mvtec_carpet', 'image_auroc']:.1f}"
    assert gap == [f"({100 * own.loc['mvtec_carpet', 'image_auroc'] - 99.7:+.1f})"]
    gap = 100 * own.loc["Mean", "pixel_auroc"] - 98.12
    assert rows["Mean"]["SimpleNet pixel AUROC"] == f"98.1 ({gap:+.1f})"


@pytest.mark.parametrize("other", [{"one_model": True}, {"shots": 4}, {"contamination": 5.0}])
def test_a_run_that_learns_otherwise_has_no_difference_to_papers(mvtec_run, other):
    record = read_run(mvtec_run)
    record = replace(record, config={**record.config, "dataset": {**record.config["dataset"], **other}})
    assert not any("(" in cell for row in summary([record], best_epoch=True).rows for cell in row)
    assert "run" not in [method for _, method, *_ in beside_papers([record]).rows]


def test_papers_stand_with_runs_of_their_protocol(mvtec_run, tmp_path):
    """Means of the same classes alone: of some of them, papers that print no more than a mean are not there."""
    record = read_run(mvtec_run)
    table = beside_papers([record])
    rows = [dict(zip(table.heads, row, strict=True)) for row in table.rows]
    assert [row["protocol"] for row in rows] == sorted((row["protocol"] for row in rows), key=list(PROTOCOLS).index)
    own = [row for row in rows if row["method"] == "run"]
    for row, results in zip(own, (record.tables.results, record.tables.best_epoch), strict=True):
        assert row["PRO"] == f"{100 * results['pro'].iloc[-1]:.1f}"
    by_method = {row["method"]: row for row in rows}
    assert by_method["RD"]["image AUROC"] == "98.5" and by_method["RD"]["protocol"] == "unknown"
    assert by_method["PatchCore"]["image AUROC"] == "99.0"  # as printed
    assert by_method["EfficientAD-M"]["pixel AUROC"] == "-"

    some = shutil.copytree(mvtec_run, tmp_path / "some")
    config = json.loads((some / "config.json").read_text())
    config["dataset"]["subdatasets"] = ["screw", "pill"]
    (some / "config.json").write_text(json.dumps(config))
    methods = {row[1]: row for row in beside_papers([read_run(some)]).rows}
    assert methods["PatchCore"][3] == "96.5" and "RD" not in methods


def test_no_paper_stands_beside_other_classes(small_run):
    assert beside_papers([read_run(small_run)]) is None


def test_best_epoch_says_so(mvtec_run):
    last, best = (summary([read_run(mvtec_run)], best_epoch) for best_epoch in (False, True))
    assert "last meta epoch" in last.title
    assert "picked on the test set" in best.title
    assert best.rows[0][best.heads.index("epoch")] == "3"
    assert float(best.rows[0][1]) > float(last.rows[0][1])


def test_several_runs_stand_side_by_side(mvtec_run, tmp_path):
    other = make_run(tmp_path / "made" / "wider", mvtec_run, gain=0.01)
    table = summary([read_run(mvtec_run), read_run(other)])
    assert table.heads == [
        "class",
        *["run image AUROC", "run pixel AUROC", "run PRO"],
        *["wider image AUROC", "wider pixel AUROC", "wider PRO"],
        *["SimpleNet image AUROC, best epoch", "SimpleNet pixel AUROC, best epoch"],
    ]
    assert float(table.rows[-1][4]) == pytest.approx(float(table.rows[-1][1]) + 1, abs=0.11)


def test_the_page_marks_what_differs(small_run, tmp_path):
    other = shutil.copytree(small_run, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["net"]["options"]["dsc_hidden"] = 9
    (other / "config.json").write_text(json.dumps(config))
    assert "Marked: what differs" in page([read_run(small_run), read_run(other)])


def test_labels_tell_runs_apart(mvtec_run, tmp_path):
    shutil.copytree(mvtec_run, tmp_path / "group_b" / "run")
    shutil.copytree(mvtec_run, tmp_path / "group_a" / "run")
    records = [read_run(tmp_path / name / "run") for name in ("group_b", "group_a")]
    assert run_labels(records) == ["group_b/run", "group_a/run"]
    assert run_labels(records[:1]) == ["run"]


def test_csv_and_markdown(mvtec_run):
    table = summary([read_run(mvtec_run)])
    rows = list(csv.reader(io.StringIO(render(table, "csv"))))
    assert rows == [table.heads, *table.rows]
    lines = render(table, "markdown").splitlines()
    assert len(lines) == 2 + 16
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == table.rows[0]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles_with_booktabs(mvtec_run, small_run, tmp_path):
    body = "\n\n".join(render(summary([read_run(folder)]), "latex") for folder in (mvtec_run, small_run))
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + body + "\n\\end{document}\n"
    (tmp_path / "table.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "\\toprule" in body
    assert "metal\\_nut" in body


def test_seeds_have_rows_of_their_own_and_mean_and_deviation(small_run):
    per_seed = pd.read_csv(small_run / "results_per_seed.csv")
    assert per_seed[["class", "seed"]].to_numpy().tolist() == [
        *[["mvtec_bolt", 1], ["mvtec_bolt", 4], ["mvtec_nut", 1], ["mvtec_nut", 4]],
        *[["Mean", 1], ["Mean", 4]],
    ]
    results = pd.read_csv(small_run / "results.csv")
    names = [*METRICS, *DECISION_METRICS]
    assert results.columns.tolist() == ["class", *names, *(f"{name}_std" for name in names)]
    for name in METRICS:
        for row in results.to_dict("records"):
            values = per_seed.loc[per_seed["class"] == row["class"], name]
            assert row[name] == pytest.approx(values.mean(), abs=2e-6)
            assert row[f"{name}_std"] == pytest.approx(values.std(ddof=1), abs=2e-6)
    models = sorted(path.name for path in (small_run / "models" / "0").iterdir())
    assert models == [f"mvtec_{name}_seed_{seed}" for name in ("bolt", "nut") for seed in (1, 4)]
    assert " ± " in summary([read_run(small_run)]).rows[0][1]


def test_best_epoch_is_that_of_the_history(small_run):
    history = pd.read_csv(small_run / "history.csv")
    best = pd.read_csv(small_run / "results_best_epoch.csv", index_col="class")
    for name in ("mvtec_bolt", "mvtec_nut"):
        jobs = [history[(history["class"] == name) & (history["seed"] == seed)] for seed in (1, 4)]
        rows = [job.sort_values(["image_auroc", "pixel_auroc"], ascending=False, kind="stable").iloc[0] for job in jobs]
        assert best.loc[name, EPOCH] == " ".join(str(row["meta_epoch"]) for row in rows)
        for metric in ("image_auroc", "pixel_auroc", "pro"):
            assert best.loc[name, metric] == pytest.approx(np.mean([row[metric] for row in rows]), abs=2e-6)


def test_decisions(mvtec_run, small_run):
    table = decisions([read_run(mvtec_run)])
    predictions = pd.read_csv(mvtec_run / "models" / "0" / "mvtec_tile" / "predictions.csv")
    labels, decided = predictions["label"], predictions["score"] > 1
    row = dict(zip(table.heads, next(row for row in table.rows if row[0] == "mvtec_tile"), strict=True))
    assert row["threshold"] == "1.000"
    assert row["precision"] == f"{100 * precision_score(labels, decided):.1f}"
    assert row["recall"] == f"{100 * recall_score(labels, decided):.1f}"
    assert row["accuracy"] == f"{100 * (labels == decided).mean():.1f}"
    assert row["F1"] == f"{100 * f1_score(labels, decided):.1f}"
    assert row["false-alarm rate"] == f"{100 * decided[labels == 0].mean():.1f}"
    rows = decisions([read_run(small_run), read_run(mvtec_run)]).rows
    assert [row[0] for row in rows[:5]] == [
        *(f"test mvtec_{name} seed {seed}" for name in ("bolt", "nut") for seed in (1, 4)),
        "run mvtec_bottle",
    ]
    assert "4 training images" in rows[0]


def test_worst():
    misses, alarms = worst([1, 0, 1, 0, 1], [0.9, 0.8, 0.1, 0.2, 0.5], count=2)
    assert (misses, alarms) == ([2, 4], [1, 3])
    assert worst([0, 0], [1, 2]) == ([], [1, 0])


def test_panel():
    image = np.full((8, 6, 3), 100, np.uint8)
    mask = np.zeros((8, 6), bool)
    mask[2:5, 1:4] = True
    heat = np.linspace(-3, 5, 48).reshape(8, 6)
    drawn = panel(image, mask, heat, (-3, 5))
    assert drawn.shape == (8, 24, 3)
    assert (drawn[:, :6] == image).all()
    assert ((drawn[:, 6:12] == 255).all(-1) == mask).all()
    assert (drawn[2, 19] == (0, 255, 0)).all()  # the mask's outline on the overlay
    assert (panel(image, None, heat, (-3, 5))[:, 6:12] == drawn[:, 12:18]).all()
    flat = panel(image, None, np.ones((8, 6)), (1, 1))  # of no range
    assert (flat[:, 6:12] == drawn[0, 12]).all()  # as the coldest of another


def test_of_many_models_charts_and_pictures_are_small(small_run, pages, monkeypatch):
    """Hundreds of SVG charts take a browser seconds; the number of pictures falls with that of models."""
    usual = pages["small_run"]
    monkeypatch.setattr(report, "PICTURES", 1)
    html = page([read_run(small_run)])
    assert "data:image/png" not in usual and "data:image/svg" not in html
    assert html.count("data:image/png") == usual.count("data:image/svg") == 16
    assert html.count("data:image/jpeg") == 8 < usual.count("data:image/jpeg")  # a miss and an alarm of each model
    wide = encoded(np.zeros((288, 1152, 3), np.uint8), ".jpg")
    assert Image.open(io.BytesIO(smaller(wide))).size == (768, 192)
    assert smaller(b"no picture") == b"no picture" and smaller(smaller(wide)) == smaller(wide)


def test_rows_of_a_class_stand_under_its_name(mvtec_run, monkeypatch):
    """Which is a row of its own, so that the first column says the run where a phone shows few columns."""
    monkeypatch.setattr(report, "_chart", lambda *_: "")
    records = [replace(read_run(mvtec_run), called=name) for name in ("one", "two")]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page(records), re.S)
    first = next(i for i, row in enumerate(rows) if "<span>mvtec_bottle</span>" in row)
    heads = [re.findall(r"<th[^>]*>(.*?)</th>", row) for row in rows[first - 1 : first + 4]]
    assert heads[0][:2] == ["detector", "image AUROC"]
    assert heads[1:] == [["<span>mvtec_bottle</span>"], ["one"], ["two"], ["<span>mvtec_cable</span>"]]


def test_report_command(run_main, mvtec_run, tmp_path, capsys):
    done = run_main("report", mvtec_run, "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").is_file()
    assert "page.html" in done.stderr
    assert done.stdout.startswith("Last meta epoch, percent")
    assert "Best epoch, picked on the test set" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 140
    assert "Decisions at the threshold" in done.stdout
    assert len([line for line in done.stdout.splitlines() if line.startswith("mvtec_")]) == 45
    for style in ("csv", "markdown", "latex"):
        for best in (False, True):
            words = ["report", str(mvtec_run), "--format", style, *(["--best_epoch"] if best else [])]
            main.main(words, standalone_mode=False)
            assert capsys.readouterr().out == render(summary([read_run(mvtec_run)], best), style) + "\n"
    assert not (mvtec_run / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("report {empty}", 2, "empty' is not the folder of a run: expected config.json"),
        ("report {above}", 2, "there are runs in .*/run"),
        ("report", 2, "Missing argument 'RUN_DIR...'"),
        ("report {broken}", 1, "mvtec_pill/job.json' cannot be read as a job's results"),
        ("report {begun}", 2, "no job of the run in .*begun' is finished yet"),
        ("--run_name x report {run}", 2, "report takes no run options.*--run_name"),
    ],
)
def test_mistakes(run_main, mvtec_run, tmp_path, words, code, message):
    (tmp_path / "empty").mkdir()
    shutil.copytree(mvtec_run, tmp_path / "broken")
    (tmp_path / "broken" / "models/0/mvtec_pill/job.json").write_text("")
    (tmp_path / "begun").mkdir()
    shutil.copy(mvtec_run / "config.json", tmp_path / "begun")
    names = {name: tmp_path / name for name in ("empty", "broken", "begun")} | {
        "above": mvtec_run.parent,
        "run": mvtec_run,
    }
    done = run_main(*words.format(**names).split())
    assert done.returncode == code
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("config.json", "{", DataError),
        ("config.json", "{}", DataError),
        ("config.json", '{"run": {"seeds": [0]}, "net": {"backbones": [{"label": 1}]}, "dataset": []}', DataError),
        ("config.json", None, UsageError),
        ("models/0/mvtec_tile/job.json", "{}", DataError),
        ("models/0/mvtec_tile/job.json", '{"format": 2}', DataError),
        ("models/0/mvtec_tile/job.json", None, DataError),
        ("models/0/mvtec_tile/predictions.csv", "image\n1\n", DataError),
        ("models/0/mvtec_tile/predictions.csv", None, DataError),
    ],
)
def test_damaged_files_are_named(mvtec_run, tmp_path, name, content, error):
    shutil.copytree(mvtec_run, tmp_path / "run")
    path = tmp_path / "run" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(error, match=path.name):
        page([read_run(tmp_path / "run")])


@pytest.fixture(scope="session")
def pages(small_run, mvtec_run):
    """What the report says of either run."""
    return {"small_run": page([read_run(small_run)]), "mvtec_run": page([read_run(mvtec_run)])}


@needs_chromium
@pytest.mark.parametrize(("runs", "width"), [("mvtec_run", 500), ("mvtec_run", 1300), ("small_run", 500)])
def test_page_in_a_browser(pages, tmp_path, runs, width):
    (tmp_path / "report.html").write_text(pages[runs])
    seen = visit(tmp_path / "report.html", tmp_path, width)
    classes, jobs = (15, 15) if runs == "mvtec_run" else (2, 4)
    assert seen["console"] == []
    assert seen["broken"] == 0
    pictures = 10 if runs == "mvtec_run" else 4  # five misses and false alarms each, where there are as many
    assert seen["images"] == jobs * (4 + pictures)  # four charts
    assert seen["overflow"] <= 0
    for words in (
        "picked on the test set",
        "Worst misses",
        "Worst false alarms",
        "false-alarm rate",
        "packages.torch",
        "git_revision",
    ):
        assert words in seen["text"]
    assert seen["text"].count("image AUROC ") >= classes


def test_page_is_one_file_and_the_same_bytes_twice(small_run, pages):
    html = page([read_run(small_run)])
    assert not re.findall(r'src="(?!data:)|href="(?!data:|#|file:///)', html)
    assert html == pages["small_run"]
