"""Names that are not UTF-8, too long or of another script, in a training run: it works, or ends in one line at once."""

import os
import sys
from pathlib import Path

import pytest
from conftest import SMALL_DATA, SMALL_NET, make_mvtec
from PIL import Image

import main
from errors import UsageError
from experiment.record.read import read_run
from experiment.record.sheets import write_csv
from late import pandas as pd


def run(results, data, *words):
    command = ["--results_path", results, "--save_segmentation_images", *words, *SMALL_NET, "dataset", *SMALL_DATA]
    main.main([*map(str, command), "mvtec", str(data)], standalone_mode=False)


def rename(path, name):
    path.rename(os.fsdecode(os.fsencode(path.parent) + b"/" + name))


def test_names_of_images(tmp_path):
    """Tables, pictures, TensorBoard and the report."""
    make_mvtec(tmp_path / "data", ["bolt"], test=4)
    test = tmp_path / "data" / "bolt" / "test"
    rename(test / "good" / "000.png", b"caf\xe9.png")
    rename(test / "good" / "001.png", b"l" * 246 + b".png")
    rename(test / "good" / "002.png", "\u6f22\u5b57.png".encode())
    Image.open(test / "good" / "003.png").save(test / "good" / "003.bmp")
    Image.open(test / "good" / "003.png").save(test / "good" / "003.bmp.png")
    run(tmp_path / "results", tmp_path / "data")
    folder = tmp_path / "results" / "project" / "group" / "test"
    model = folder / "models" / "0" / "mvtec_bolt"
    content = (model / "predictions.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbfimage,")
    names = pd.read_csv(model / "predictions.csv")["image"].tolist()
    assert "bolt/test/good/caf\\xe9.png" in names
    assert "bolt/test/good/\u6f22\u5b57.png" in names
    assert len(names) == 10
    assert len(list((model / "segmentations").rglob("*.png"))) == 10
    assert (model / "segmentations/bolt/test/good/caf\\xe9.png").is_file()
    record = read_run(folder)
    assert record.predictions(record.jobs[0])["image"].tolist() == names
    assert main.main(["report", str(folder)], standalone_mode=False) is None
    assert "\u6f22\u5b57" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (b"caf\xe9", r"class 'caf\\xe9' has a name that is not UTF-8"),
        (b"c" * 250, r"class 'c+' has too long a name for the folder of its model: expected at most 240 bytes"),
    ],
)
def test_names_of_classes(tmp_path, name, message):
    make_mvtec(tmp_path / "data", ["bolt"])
    rename(tmp_path / "data" / "bolt", name)
    with pytest.raises(UsageError, match=message):
        run(tmp_path / "results", tmp_path / "data")
    assert not (tmp_path / "results").exists()


def test_names_of_results(mvtec, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(main, "stop_on_signals", lambda: None)
    words = ["--results_path", os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"), *SMALL_NET, "dataset", *SMALL_DATA]
    monkeypatch.setattr(sys, "argv", ["main.py", *words, "mvtec", str(mvtec)])
    assert main.cli() == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "caf\\xe9/project/group/test' is not UTF-8: choose another --results_path" in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_tables_are_marked_where_they_are_not_ascii(tmp_path):
    for name, mark in (("\u5b57", b"\xef\xbb\xbf"), ("a", b""), (os.fsdecode(b"\xe9"), b"")):
        write_csv(tmp_path / "t.csv", pd.DataFrame({"class": [name], "x": [0.5]}))
        assert (tmp_path / "t.csv").read_bytes().startswith(mark + b"class,x\n")
        assert pd.read_csv(tmp_path / "t.csv")["class"][0] == (name if name != os.fsdecode(b"\xe9") else "\\xe9")
    assert Path(tmp_path / "t.csv").read_text() == "class,x\n\\xe9,0.500000\n"


SEEDS = [
    ["--seed", "99999999999999999999"],
    ["--seed", "4294967296"],
    ["-b", "resnet18.seed-4294967296"],
    ["-b", "resnet18.seed-" + "9" * 5000],
    ["--dataset_seed", "4294967296"],
    ["--split_seed", "99999999999999999999"],
    ["--grid", "split_seed=1,4294967296"],
]


@pytest.mark.parametrize("words", SEEDS, ids=lambda words: f"{words[0]}_{words[1][:30]}")
def test_seeds_that_are_too_large(tmp_path, mvtec, words):
    chain = ["--results_path", str(tmp_path / "r")]
    chain += words if words[0] in ("--seed", "--grid") else []
    chain += ["cfa", *(words if words[0] == "-b" else ["-b", "resnet18"]), "-le", "layer2", "--gamma_c", "2"]
    chain += ["--backbone_weights", "random", "--epochs", "1"]
    name = "assembly" if words[0] == "--dataset_seed" else "table" if "split_seed" in str(words) else "mvtec"
    chain += ["dataset", *(words if words[0] in ("--dataset_seed", "--split_seed") else []), name]
    with pytest.raises(UsageError, match=r"expected (a whole number from )?0 to 4294967295"):
        main.main([*chain, *([str(mvtec)] if name != "assembly" else [])], standalone_mode=False)
    assert not (tmp_path / "r").exists()


def test_the_largest_seed(tmp_path, mvtec):
    """All that is seeded takes it, the k-means of CFA too."""
    words = ["--results_path", str(tmp_path / "r"), "--seed", "4294967295", "cfa", "-b", "resnet18", "-le", "layer2"]
    words += ["--backbone_weights", "random", "--gamma_c", "2", "--epochs", "1", "dataset", *SMALL_DATA, "-d", "nut"]
    main.main([*words, "mvtec", str(mvtec)], standalone_mode=False)
    assert next((tmp_path / "r").rglob("results.csv")).is_file()


def test_an_index_with_thousands_of_digits():
    with pytest.raises(UsageError, match="with an index from 0 to 1"):
        main.main(
            ["net", "-b", "resnet18", "-b", "resnet34", "-le", "9" * 5000 + ".layer2", "dataset", "mvtec", "x"],
            standalone_mode=False,
        )
