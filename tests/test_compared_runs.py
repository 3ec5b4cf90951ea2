"""report --compare: which of several finished runs is better, by how much, and whether that is more than chance."""

import json
import re
import shutil
from hashlib import sha256
from itertools import chain

import numpy as np
import pandas as pd
import pytest

import main
from errors import UsageError
from experiment.config import job_names
from experiment.record.pixels import PIXELS, write_pixels
from experiment.record.read import read_run
from experiment.record.results import EPOCH, JobResult, make_tables, write_result, write_tables
from experiment.record.sheets import write_csv
from experiment.show.comparison import compare
from experiment.show.pictures import picture_name, worst
from experiment.show.verdict import intervals, notes, pairs, ranked, verdicts
from metrics import bootstrap, combined_metrics, count_pixels, decision_metrics, image_metrics, map_metrics
from metrics.significance import auroc_interval, estimate, p_value, placements

CLASSES = ["a", "b", "c", "d", "e", "f", "g"]


@pytest.fixture(scope="module")
def like(model):
    """A finished run, whose configuration made-up ones have."""
    return model.parents[2]


@pytest.fixture
def make(tmp_path, like, monkeypatch):
    """Make up a finished run whose scores are as good as is asked for; the same images are as hard for all."""
    monkeypatch.setattr(bootstrap, "DRAWS", 200)

    def run(name, gap, classes=CLASSES, seeds=(0,), noise=1, images=40, order=1, backbones=("resnet18",)):
        folder, results = tmp_path / "runs" / name, {}
        config = json.loads((like / "config.json").read_text())
        config["run"]["seeds"], config["dataset"]["subdatasets"] = list(seeds), list(classes)
        config["net"]["backbones"] = [{**config["net"]["backbones"][0], "label": one} for one in backbones]
        for job in job_names([("mvtec", classes)], backbones, seeds):
            rng = np.random.default_rng([ord(job.class_name[0]), 7])
            labels = np.arange(images) % 2
            own = np.random.default_rng([noise, job.seed, job.backbone, ord(job.class_name[0])])
            scores = gap * labels + rng.normal(size=images) + 0.5 * own.normal(size=images)
            masks = np.zeros((images, 6, 6), bool)
            masks[labels == 1, 2:4, 2:4] = True
            maps = gap * masks + rng.normal(size=masks.shape) + own.normal(size=masks.shape)
            names = np.array([f"{job.class_name}/test/{i:03}.png" for i in range(images)])
            model = folder / job.folder
            model.mkdir(parents=True)
            shutil.copy(next(like.rglob("model.json")), model)
            decided = (scores > 1).astype(int)
            kinds = np.where(labels == 1, "crack", "good")
            columns = {"image": names, "label": labels, "defect_type": kinds, "score": scores, "decision": decided}
            write_csv(model / "predictions.csv", pd.DataFrame(columns)[::order])
            counts = count_pixels(masks, maps)
            write_pixels(model / PIXELS, counts.of(slice(None, None, order)))
            values = image_metrics(labels, scores) | map_metrics(masks, maps)
            values |= combined_metrics(values)
            key = {"class": job.title, "seed": job.seed}
            row, history = {**key, **values}, [{**key, "meta_epoch": 1, "loss": 1.0, **values}]
            result = JobResult({**row, **decision_metrics(labels, decided)}, {**row, EPOCH: 1}, history)
            pictures = [model / picture_name(index) for index in chain(*worst(labels[::order], scores[::order]))]
            (model / "examples").mkdir()
            for path in pictures:
                path.write_bytes(b"a picture")
            results[job] = write_result(model, result, [model / "predictions.csv", model / PIXELS, *pictures])
        write_tables(folder, make_tables(list(results), results))
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return run


def tables_of(*folders):
    comparison = compare([read_run(folder) for folder in folders])
    return comparison, intervals(comparison, is_short=False), pairs(comparison), ranked(comparison)


def rows_of(table):
    return [dict(zip(table.heads, row, strict=True)) for row in table.rows]


def scores_of(folder, name="a"):
    return pd.read_csv(folder / f"models/0/mvtec_{name}/predictions.csv").sort_values("image")


def test_two_runs_of_one_class(make):
    """Intervals and the p-value are DeLong's, of the scores in predictions.csv in whatever order they stand."""
    good, bad = make("good", 2.5, ["a"]), make("bad", 1.0, ["a"], noise=2, order=-1)
    comparison, table, pair, ranks = tables_of(good, bad)
    own = [placements(frame["label"], frame["score"]) for frame in map(scores_of, (good, bad))]
    for row, one in zip(rows_of(table), own, strict=True):
        low, high = (100 * end for end in auroc_interval(one))
        assert row["image AUROC"] == f"{100 * estimate(one).value:.1f} [{low:.1f}, {high:.1f}]"
        assert re.fullmatch(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", row["PRO"])
    found = estimate(own[0].minus(own[1]))
    assert p_value(found) < 0.05
    assert comparison.difference(0, 1, "image_auroc", [0]).p == pytest.approx(p_value(found))
    (row,) = rows_of(pair)
    assert (row["better"], row["than"], row["more than chance"]) == ("good", "bad", "yes")
    assert row["by"].startswith(f"{100 * found.value:.1f} [")
    assert {table.rows[i][1] for i, j in table.bold if table.heads[j] == "image AUROC"} == {"good"}
    said = verdicts(comparison)
    assert said[0].startswith("good has the best image AUROC of mvtec_a: ")
    assert "It is better than bad by" in said[1] and "more than chance (p < 0.001)" in said[1]
    assert ranks is None


def test_what_may_be_chance_is_bold_with_the_best(make):
    comparison, table, pair, _ = tables_of(make("one", 1.5, ["a"]), make("two", 1.45, ["a"], noise=2))
    assert {(i, j) for i in (0, 1) for j in range(2, len(table.heads))} - table.bold <= {
        (i, j) for i in (0, 1) for j in range(2, len(table.heads)) if table.heads[j] != "image AUROC"
    }
    assert rows_of(pair)[0]["more than chance"] == "no"
    assert any("which may be chance" in said for said in verdicts(comparison))
    same = compare([read_run(make("three", 1.5, ["a"]))] * 2)
    assert verdicts(same)[1].endswith("has the same.")


def test_several_classes(make):
    """Wilcoxon's test takes the classes, and so do ranks; the last rows are of the means, which are the surest."""
    folders = make("good", 2.5), make("fair", 1.6, noise=2), make("bad", 0.6, noise=3)
    comparison, table, pair, ranks = tables_of(*folders)
    rows = rows_of(table)
    assert [row["class"] for row in rows[-3:]] == ["Mean"] * 3 and len(rows) == 3 * 8

    def width(cell):
        low, high = re.fullmatch(r".* \[(.*), (.*)\]", cell).groups()
        return float(high) - float(low)

    for name in ("image AUROC", "PRO", "image AP", "mAD"):
        assert width(rows[-1][name]) < 0.6 * width(rows[2][name])
        means = [float(row[name].split()[0]) for row in rows if row["run"] == "bad"]
        assert means[-1] == pytest.approx(np.mean(means[:-1]), abs=0.1)
    last = rows_of(pair)[0]
    assert (last["better"], last["than"], last["classes"]) == ("good", "bad", "7 to 0")
    assert last["p (Wilcoxon)"] == f"{3 * 2 / 2**7:.3f}"  # the best of three pairs, by Holm
    assert [row["run"] for row in rows_of(ranks)] == ["good", "fair", "bad"]
    assert "over 7 classes" in ranks.title and verdicts(comparison)[0].startswith("good has the best")
    assert not any("other classes" in said for said in verdicts(comparison))
    assert "other classes takes 6 or more" in verdicts(compare([read_run(make("few", 1, ["a", "b"]))] * 2))[-1]


def test_seeds_count_by_their_mean(make):
    both = make("both", 1.5, ["a"], seeds=(0, 1))
    alone = [make(f"seed{seed}", 1.5, ["a"], seeds=(seed,)) for seed in (0, 1)]
    found, *own = (compare([read_run(folder)]).measured[0][0] for folder in (both, *alone))
    for name in found.values:
        assert found.values[name] == pytest.approx(np.mean([one.values[name] for one in own]))
        means = np.mean([one.deviations[name] for one in own], axis=0)
        assert found.deviations[name] == pytest.approx(means, nan_ok=True)
    assert estimate(found.placements).value == pytest.approx(found.values["image_auroc"])


def test_backbones_of_one_run_are_compared(make):
    comparison, table, *_ = tables_of(make("run", 2, ["a"], backbones=("resnet18", "resnet34")))
    assert comparison.labels == ["run resnet18", "run resnet34"]
    assert [row[:2] for row in table.rows] == [["mvtec_a", label] for label in comparison.labels]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"images": 36},
            "run and other were not tested on the same images of mvtec_a: only run has 'a/test/036.png', ",
        ),
        ({"images": 36}, "'a/test/038.png' and 1 more; compare runs on the same data"),
        ({"images": 43}, "only other has 'a/test/040.png', 'a/test/041.png', 'a/test/042.png'; compare"),
        ({"classes": ["b"]}, "no class is in all runs: run has mvtec_a; other has mvtec_b"),
    ],
)
def test_other_images_are_named(make, other, message):
    runs = [make("run", 1, ["a"]), make("other", 1, **{"classes": ["a"], **other})]
    with pytest.raises(UsageError) as caught:
        compare([read_run(folder) for folder in runs])
    assert message in str(caught.value)


def test_the_command(make, capsys):
    one, two = make("one", 2.5, ["a", "b"]), make("two", 0.5, ["a"], noise=2)
    main.main(["report", str(one), str(two), "--compare"], standalone_mode=False)
    said = capsys.readouterr()
    assert "--compare leaves out what not all runs have: mvtec_b" in said.err
    assert "Metrics and 95 % intervals, percent" in said.out
    assert "one has the best image AUROC of mvtec_a" in said.out
    assert max(map(len, said.out.splitlines())) <= 150
    html = (one / "report.html").read_text()
    assert "DeLong's test is of the images" in html and "one has the best image AUROC" in html
    assert re.search(r"<td><b>\d+\.\d \[", html)
    main.main(["report", str(one), str(two), "--compare", "--format", "csv"], standalone_mode=False)
    heads, *lines = capsys.readouterr().out.splitlines()
    assert heads.startswith("class,run,image AUROC,pixel AUROC,PRO,image AP") and len(lines) == 2
    with pytest.raises(UsageError, match=r"--compare is of the scores in predictions.csv.*leave --best_epoch out"):
        main.main(["report", str(one), str(two), "--compare", "--best_epoch"], standalone_mode=False)
    main.main(["report", str(two)], standalone_mode=False)
    assert "Comparison</h2>" not in (two / "report.html").read_text()


def test_runs_of_before_have_no_intervals_of_pixels(make):
    """Nor bold by chance: of them only the best is known."""
    folder = make("run", 1, ["a"])
    path = folder / "models/0/mvtec_a/job.json"
    content = json.loads(path.read_text())
    del content["sha256"][PIXELS]
    path.write_text(json.dumps(content))
    row = rows_of(intervals(compare([read_run(folder)]), is_short=False))[0]
    assert re.fullmatch(r"\d+\.\d", row["PRO"]) and "[" in row["image AP"]


def test_what_has_no_intervals_is_said(make):
    """AUsPRO, of which a run keeps no overlaps; image AUROC of its kinds has some, drawn among the normal images."""
    folders = []
    for name, gap in (("one", 2), ("two", 1)):
        folders.append(folder := make(name, gap, ["a"], noise=gap))
        model = folder / "models/0/mvtec_a"
        content = json.loads((model / "job.json").read_text())
        for own in (content["row"], content["best_row"], *content["history"]):
            own |= {"image_auroc_logical": 0.9, "auspro_0.3_logical": 0.6}
        table = pd.read_csv(model / "predictions.csv")
        table.loc[table["label"] == 1, "defect_type"] = "logical_anomalies"
        table.to_csv(model / "predictions.csv", index=False)
        content["sha256"]["predictions.csv"] = sha256((model / "predictions.csv").read_bytes()).hexdigest()
        (model / "job.json").write_text(json.dumps(content))
    comparison, table, *_ = tables_of(*folders)
    row = rows_of(table)[0]
    assert re.fullmatch(r"90\.0 \[\d+\.\d, \d+\.\d\]", row["image AUROC logical"])
    assert row["AUsPRO 0.3 logical"] == "60.0"
    assert "no intervals of AUsPRO 0.3 logical: a run does not keep" in notes(comparison)[0]
