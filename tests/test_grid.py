"""--grid: a run for every choice, with the bytes of a run of its own, and images embedded once."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import SMALL_DATA, SMALL_NET

import main
from errors import DataError, UsageError
from experiment.config import point_names
from experiment.show.ablation import point_folders

FAMILY = Path("results/project/group/test")


@pytest.fixture
def chain(tmp_path, monkeypatch, mvtec):
    """Run a chain in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)

    def go(*run, net=(), data=()):
        words = [*run, *SMALL_NET, *net, "dataset", *SMALL_DATA, *data, "mvtec", str(mvtec)]
        main.main(words, standalone_mode=False)

    return go


def csvs(folder):
    """All tables but those of times."""
    paths = (path for path in sorted(folder.rglob("*.csv")) if path.name != "cost.csv")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_every_point_is_the_run_of_its_own_flags(chain, embedded, capfd):
    """Values of a grid win over given ones, and each class is embedded once for all of them."""
    chain("--grid", "dsc_hidden=8,6", "--grid", "--score_top_k=1,2,3", net=["--dsc_hidden", "7"])
    assert embedded == ["mvtec_bolt", "mvtec_nut"]
    table = capfd.readouterr().out
    assert "*" in table and re.search(r"^Mean +6 +3 ", table, re.M)
    points = point_folders(FAMILY)
    assert [path.name for path in points] == [f"dsc_hidden={h},score_top_k={k}" for h in (8, 6) for k in (1, 2, 3)]
    chain("--run_name", "alone", net=["--dsc_hidden", "6", "--score_top_k", "2"])
    assert csvs(points[4]) == csvs(FAMILY.with_name("alone"))
    rows = pd.read_csv(FAMILY / "ablation.csv", dtype={"dsc_hidden": str})
    assert list(rows.columns[:5]) == ["run", "dsc_hidden", "score_top_k", "class", "image_auroc"]
    assert rows["class"].tolist() == ["mvtec_bolt", "mvtec_nut", "Mean"] * 6
    own = pd.read_csv(points[4] / "results.csv")
    pd.testing.assert_frame_equal(rows[rows["run"] == points[4].name][own.columns].reset_index(drop=True), own)


def test_features_are_shared_where_they_are_equal(chain, embedded):
    chain("--grid", "patchsize=3,1", "--grid", "noise_std=0.1,0.2", "--seed", "1", data=["-d", "nut"])
    assert len(embedded) == 2
    embedded.clear()
    chain("--grid", "imagesize=32,40", "--grid", "ema=0,0.9", "--run_name", "sizes", data=["-d", "nut"])
    assert len(embedded) == 2
    embedded.clear()
    chain("--grid", "train_backbone=false,true", "--run_name", "trained", data=["-d", "nut"])
    assert len(embedded) == 1


def test_layers_switches_and_recipes_can_vary(chain):
    chain(
        *["--grid", "le=layer1+layer2,layer2", "--grid", "augment=true,false", "--grid", "recipe=paper,stable"],
        *["--grid", "subdatasets=nut"],
        net=["--meta_epochs", "2"],
    )
    points = point_folders(FAMILY)
    assert len(points) == 8 and points[0].name.startswith(
        "layers_to_extract_from=layer1+layer2,augment=true,recipe=pap"
    )
    assert len({(path / "results.csv").read_bytes() + (path / "history.csv").read_bytes() for path in points}) == 8


def test_each_recipe_of_a_grid_sets_its_options_of_data(chain):
    net = ["--meta_epochs", "1", "--memory", "4", "--distance", "0.25", "--bank_size", "8"]
    chain("--grid", "recipe=paper,memory", "--grid", "subdatasets=nut", net=net)
    configs = [json.loads((path / "config.json").read_text()) for path in point_folders(FAMILY)]
    assert {own["net"]["recipe"]: own["dataset"]["random"]["draw_once"] for own in configs} == {
        "paper": False,
        "memory": True,
    }


def test_cos_lr_and_a_recipe_that_contradicts_it_write_nothing(chain):
    with pytest.raises(UsageError, match="two schedules"):
        chain("--grid", "warm_up_cosine=false,true", net=["--cos_lr", "--meta_epochs", "2"])
    assert not FAMILY.exists()


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("hidden=1,2", "'hidden' is no option of the commands given"),
        ("seed=1,2", "'seed' is no option of the commands given"),
        ("dsc_hidden", "expected FLAG=VALUE,VALUE"),
        ("dsc_hidden=1,,2", "expected FLAG=VALUE,VALUE"),
        ("dsc_hidden=6,6", "given twice"),
        ("dsc_hidden=6,many", "'--dsc_hidden': 'many' is not a valid integer"),
        ("subdatasets=nut,screw", "has no class 'screw'"),
    ],
)
def test_a_wrong_grid_is_one_line(run_main, tmp_path, mvtec, grid, message):
    done = run_main("--grid", grid, *SMALL_NET, "dataset", *SMALL_DATA, "mvtec", mvtec)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_grid_is_continued_extended_tested_and_shown(chain, embedded, capfd):
    chain("--grid", "dsc_hidden=8,6", data=["-d", "nut"])
    before = csvs(FAMILY)
    chain("--grid", "dsc_hidden=8,6", data=["-d", "nut"])
    assert "2 of 2 jobs are finished already" in capfd.readouterr().err
    chain("--test", "--grid", "dsc_hidden=8,6", data=["-d", "nut"])
    assert csvs(FAMILY) == before
    embedded.clear()
    chain("--grid", "dsc_hidden=8,6,5", data=["-d", "nut"])
    assert "2 of 3 jobs are finished already" in capfd.readouterr().err
    assert len(embedded) == 1 and len(point_folders(FAMILY)) == 3
    main.main(["report", str(FAMILY), "--format", "latex"], standalone_mode=False)
    latex = capfd.readouterr().out
    assert r"\textbf{" in latex and r"dsc\_hidden" in latex
    main.main(["report", str(FAMILY)], standalone_mode=False)
    page = (FAMILY / "report.html").read_text()
    assert "<b>" in page and page.count("<span>mvtec_nut</span>") == 2  # at two protocols, of three choices each
    assert [page.count(f'<th scope="row">{width}</th>') for width in (8, 6, 5)] == [4, 4, 4]  # and of their means


def test_a_grid_and_a_run_do_not_share_a_folder(chain):
    chain(data=["-d", "nut"])
    with pytest.raises(UsageError, match="holds a run without --grid"):
        chain("--grid", "dsc_hidden=8,6", data=["-d", "nut"])
    chain("--overwrite", "--grid", "dsc_hidden=8,6", data=["-d", "nut"])
    assert (FAMILY.with_name("test.old-1") / "results.csv").is_file()
    with pytest.raises(UsageError, match="holds the runs of a --grid"):
        chain(data=["-d", "nut"])


def test_names_of_points():
    assert point_names([{}]) == [""]
    assert point_names([{"backbone_weights": "../a b.pth"}]) == ["backbone_weights=.._a_b.pth"]
    assert point_names([{"mask_dir": "a/b"}, {"mask_dir": "a_b"}]) == ["point-0", "point-1"]
    assert point_names([{"mask_dir": "x" * 300}]) == ["point-0"]


def test_a_strangers_table_leads_nowhere(tmp_path):
    (tmp_path / "ablation.csv").write_text("run,class\n../elsewhere,nut\n")
    with pytest.raises(DataError, match="no folder's name"):
        point_folders(tmp_path)
    (tmp_path / "ablation.csv").write_bytes(b"\xff\x00")
    with pytest.raises(DataError, match="table of a grid"):
        point_folders(tmp_path)
