"""Names and files made to do harm: text stays text, and nothing is written outside the run's folder."""

import csv
import json
import re
import shutil

import pandas as pd
import pytest
import torch
from browser import needs_chromium, visit
from conftest import SMALL_DATA, SMALL_NET, make_mvtec

import main
from errors import DataError
from experiment.record.data import image_name
from experiment.record.read import read_run
from experiment.record.sheets import write_csv
from experiment.show.report import page

NAME = "<img src=x onerror=document.title='hit'>"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run over a class and images whose names are formulas and markup."""
    root = tmp_path_factory.mktemp("hostile")
    make_mvtec(root / "data", [NAME, "=1+1"])
    for name in (NAME, "=1+1"):
        (root / "data" / name / "test" / "crack").rename(root / "data" / name / "test" / "<b>crack")
        (root / "data" / name / "ground_truth" / "crack").rename(root / "data" / name / "ground_truth" / "<b>crack")
    words = ["--results_path", str(root / "results"), "--save_segmentation_images", *SMALL_NET]
    main.main([*words, "dataset", *SMALL_DATA, "mvtec", str(root / "data")], standalone_mode=False)
    return root


def test_csv_cells_are_no_formulas(hostile, tmp_path):
    run = hostile / "results" / "project" / "group" / "test"
    for path in run.rglob("*.csv"):
        with path.open(newline="") as file:
            for row in csv.reader(file):
                assert not [cell for cell in row if re.match(r"[=+@\t\r]|-[^0-9.]", cell)], path
    record = read_run(run)
    table = record.predictions(record.jobs[1])
    assert table["image"].iloc[0].startswith("=1+1/test/")
    assert (pd.read_csv(run / "models/0/mvtec_=1+1/predictions.csv")["image"].str[:2] == "'=").all()
    names = ["=x", "'=x", "+1", "-1", "@a", "plain", "'plain", "a=b", "''-q"]
    write_csv(tmp_path / "t.csv", pd.DataFrame({"name": names, "value": [-1.0] * len(names)}))
    written = pd.read_csv(tmp_path / "t.csv")
    assert written["name"].tolist() == ["'=x", "''=x", "'+1", "'-1", "'@a", "plain", "'plain", "a=b", "'''-q"]
    assert written["value"].tolist() == [-1.0] * len(names)


@needs_chromium
def test_the_report_shows_markup_as_text(hostile, tmp_path):
    run = hostile / "results" / "project" / "group" / "test"
    html = page([read_run(run)])
    assert NAME not in html
    (tmp_path / "report.html").write_text(html)
    seen = visit(tmp_path / "report.html", tmp_path, 1300)
    assert seen["console"] == []
    assert seen["broken"] == 0
    assert NAME in seen["text"]
    assert "<b>crack" in seen["text"]


def test_pictures_stay_below_the_run(tmp_path):
    """Paths that lead out of the dataset name pictures inside the run all the same."""
    root = tmp_path / "data"
    assert image_name(root / "a" / ".." / "b" / "x.png", root) == "b/x.png"
    outside = image_name(root / ".." / ".." / "x.png", root)
    assert outside == (tmp_path.parent / "x.png").as_posix()
    make_mvtec(tmp_path / "data", ["a"])
    shutil.copytree(root / "a" / "test" / "crack", tmp_path / "other" / "scratch")
    words = ["--results_path", str(tmp_path / "results"), "--save_segmentation_images", *SMALL_NET, "dataset"]
    words += [*SMALL_DATA, "--abnormal_dir", "../../other/scratch", "--mask_dir", "", "folder", str(root)]
    main.main(words, standalone_mode=False)
    pictures = sorted(tmp_path.rglob("segmentations/**/*.png"))
    assert len(pictures) == 4
    assert all(path.is_relative_to(tmp_path / "results") for path in pictures)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "other", "results"]


def test_a_split_cannot_name_a_class_elsewhere(run_main, tmp_path):
    (tmp_path / "visa" / "split_csv").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    lines = ["object,split,label,image,mask", "../elsewhere,train,normal,x.png,"]
    (tmp_path / "visa" / "split_csv" / "1cls.csv").write_text("\n".join(lines))
    done = run_main(*SMALL_NET, "dataset", *SMALL_DATA, "visa", tmp_path / "visa")
    assert done.returncode == 1
    assert "names class '../elsewhere', which is no folder's name" in done.stderr.splitlines()[-1]


def test_a_configuration_cannot_lead_elsewhere(hostile, tmp_path):
    run = shutil.copytree(hostile / "results", tmp_path / "results") / "project" / "group" / "test"
    config = json.loads((run / "config.json").read_text())
    for name in ("a/../../../../../x", "/etc"):
        config["dataset"]["subdatasets"] = [name]
        (run / "config.json").write_text(json.dumps(config))
        with pytest.raises(DataError, match="which is no folder's name"):
            read_run(run)


class Evil:
    def __reduce__(self):
        return print, ("hit",)


@pytest.mark.parametrize(
    "state",
    [Evil(), {}, [], {"history": [[]], "training": {"meta_epoch": 0}, "orders": [{}]}, {"history": 3}],
)
def test_a_state_from_a_stranger_is_refused(run_main, tmp_path, mvtec, state):
    words = [*SMALL_NET, "dataset", *SMALL_DATA, "-d", "nut", "mvtec", mvtec]
    assert run_main(*words).returncode == 0
    run = tmp_path / "results" / "project" / "group" / "test"
    shutil.rmtree(run / "models")
    path = run / "models" / "0" / ".mvtec_nut.partial" / "state.pt"
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    done = run_main(*words)
    assert done.returncode == 1
    assert "hit" not in done.stdout
    last = done.stderr.splitlines()[-1]
    assert re.search(r"state\.pt' is damaged \(.*\): remove the folder '.*\.mvtec_nut\.partial' to train it from", last)
    assert "Traceback" not in done.stderr
