"""main.py as a user runs it: whole runs, and one line for every mistake."""

import json
import os
import re
import socket
import sys

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import SMALL_DATA, SMALL_NET, make_mvtec
from PIL import Image
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from experiment.record.lock import only_writer
from metrics import DECISION_METRICS, METRICS
from simplenet.recipes import STABLE

PAPER = [
    "--gpu",
    "0",
    "--seed",
    "0",
    "--log_group",
    "simplenet_mvtec",
    "--log_project",
    "MVTecAD_Results",
    "--results_path",
    "results",
    "--run_name",
    "run",
    "net",
    "-b",
    "wideresnet50",
    "-le",
    "layer2",
    "-le",
    "layer3",
    "--pretrain_embed_dimension",
    "1536",
    "--target_embed_dimension",
    "1536",
    "--patchsize",
    "3",
    "--meta_epochs",
    "1",
    "--embedding_size",
    "256",
    "--gan_epochs",
    "1",
    "--noise_std",
    "0.015",
    "--dsc_hidden",
    "1024",
    "--dsc_layers",
    "2",
    "--dsc_margin",
    ".5",
    "--pre_proj",
    "1",
    "--backbone_weights",
    "random",
    "dataset",
    "--batch_size",
    "8",
    "--resize",
    "329",
    "--imagesize",
    "288",
]


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_papers_command_writes_every_file(run_process, tmp_path):
    make_mvtec(tmp_path / "mvtec", ["bottle", "cable"], size=900, train=2)
    done = run_process(*PAPER, "-d", "bottle", "-d", "cable", "mvtec", tmp_path / "mvtec")
    assert done.returncode == 0, done.stderr
    assert "using the CPU" in done.stderr or torch.cuda.is_available()
    folder = tmp_path / "results" / "MVTecAD_Results" / "simplenet_mvtec" / "run"
    own = {name for name in files(folder) if "tfevents" not in name}
    models = {
        f"models/0/mvtec_{c}/{f}"
        for c in ("bottle", "cable")
        for f in ("checkpoint.safetensors", "model.json", "predictions.csv", "pixels.npz", "job.json", "cost.json")
    }
    pictures = {f"models/0/mvtec_{c}/examples/{i:05}.jpg" for c in ("bottle", "cable") for i in range(4)}
    tables = {"results.csv", "results_best_epoch.csv", "results_per_seed.csv", "history.csv", "cost.csv"}
    assert own == {*tables, "config.json", *models, *pictures}

    results = pd.read_csv(folder / "results.csv")
    assert list(results.columns) == ["class", *METRICS, *DECISION_METRICS]
    assert list(METRICS)[:3] == ["image_auroc", "pixel_auroc", "pro"]
    assert list(results["class"]) == ["mvtec_bottle", "mvtec_cable", "Mean"]
    numbers = results.drop(columns="class").to_numpy()
    assert np.isfinite(numbers).all()
    np.testing.assert_allclose(numbers[2], numbers[:2].mean(axis=0), atol=2e-6)

    history = pd.read_csv(folder / "history.csv")
    assert list(history.columns) == [
        *["class", "seed", "meta_epoch", "loss", "p_true", "p_fake"],
        *METRICS,
    ]
    assert history["image_auroc"].tolist() == results["image_auroc"].tolist()[:2]

    config = json.loads((folder / "config.json").read_text())
    assert config["net"]["options"]["dsc_hidden"] == 1024
    assert config["dataset"]["subdatasets"] == ["bottle", "cable"]
    assert config["packages"]["torch"] == torch.__version__.split("+")[0]
    assert config["run"]["seeds"] == [0]
    assert {"device", "git_revision", "python"} <= set(config)

    model = folder / "models" / "0" / "mvtec_bottle"
    predictions = pd.read_csv(model / "predictions.csv")
    assert list(predictions.columns) == ["image", "label", "defect_type", "score", "decision"]
    assert predictions["image"].tolist()[0] == "bottle/test/crack/000.png"
    assert predictions["label"].tolist() == [1, 1, 0, 0]
    assert predictions["defect_type"].tolist() == ["crack", "crack", "good", "good"]
    with safe_open(model / "checkpoint.safetensors", "pt") as checkpoint:
        assert "members.0.discriminator.body.0.1.running_mean" in checkpoint.keys()  # noqa: SIM118
    board = EventAccumulator(str(model))
    board.Reload()
    assert {"loss", "p_true", "p_fake", "image_auroc", "pixel_auroc", "pro"} <= set(board.Tags()["scalars"])


def small(mvtec, *net, data=()):
    return [*SMALL_NET, *net, "dataset", *SMALL_DATA, *data, "mvtec", mvtec]


def test_same_command_same_bytes(run_process, run_main, tmp_path, mvtec):
    """Also with workers, several epochs and random changes; and all classes when none is named."""
    words = small(mvtec, "--meta_epochs", "2", "--mix_noise", "2", data=["--num_workers", "2", "--augment"])
    for name, run in (("a", run_process), ("b", run_main)):
        assert run("--run_name", name, *words).returncode == 0
    first, second = (tmp_path / "results" / "project" / "group" / name for name in ("a", "b"))
    tables = ["results.csv", "results_best_epoch.csv", "results_per_seed.csv", "history.csv"]
    for file in (*tables, "models/0/mvtec_nut/predictions.csv", "models/0/mvtec_nut/examples/00000.jpg"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    assert pd.read_csv(first / "results.csv")["class"].tolist() == ["mvtec_bolt", "mvtec_nut", "Mean"]
    assert len(pd.read_csv(first / "history.csv")) == 4
    assert run_main("--run_name", "a", *words).returncode == 0
    assert (first / "results.csv").read_bytes() == (second / "results.csv").read_bytes()


def test_stable_recipe(run_main, tmp_path, mvtec):
    """Says what it sets, yields to flags that are given, repeats its bytes, and its models do all that models do."""
    words = [word for word in SMALL_NET if word not in ("--dsc_hidden", "8")]
    words += ["--recipe", "stable", "--meta_epochs", "2", "--no_warm_up_cosine", "--noise_std", "1"]
    words += ["dataset", *SMALL_DATA, "mvtec", mvtec]
    for name in ("a", "b"):
        done = run_main("--run_name", name, *words)
        assert done.returncode == 0, done.stderr
    said = next(line for line in done.stderr.splitlines() if line.startswith("Recipe stable: "))
    first, second = (tmp_path / "results" / "project" / "group" / name for name in ("a", "b"))
    net = json.loads((first / "config.json").read_text())["net"]
    given = {"meta_epochs": 2, "warm_up_cosine": False, "noise_std": 1.0, "pre_proj": 1}
    assert net["recipe"] == "stable"
    assert net["set_by_recipe"] == {name: value for name, value in STABLE.items() if name not in given}
    assert net["options"] == {**net["options"], **STABLE, **given}
    assert said == "Recipe stable: " + " ".join(
        f"--{name}" if value is True else f"--{name} {value}" for name, value in net["set_by_recipe"].items()
    )
    for file in ("results.csv", "models/0/mvtec_nut/predictions.csv"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    before = (first / "results.csv").read_bytes()
    assert run_main("--run_name", "a", "--test", *words).returncode == 0
    assert (first / "results.csv").read_bytes() == before
    done = run_main("export", first / "models/0/mvtec_nut", "--format", "torch_export")  # which compares with PyTorch
    assert done.returncode == 0, done.stderr


def test_several_backbones(run_main, tmp_path, mvtec):
    net = "net -b resnet18 -b resnet10t.seed-7 -b resnet10t -le 0.layer1 -le 1.layer2 -le 2.layer2".split()
    dims = "--backbone_weights random --pretrain_embed_dimension 8 --target_embed_dimension 8".split()
    done = run_main(*net, *dims, "dataset", *SMALL_DATA, "-d", "nut", "mvtec", mvtec)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "project" / "group" / "test"
    rows = pd.read_csv(folder / "results.csv")["class"].tolist()
    assert rows == ["mvtec_nut (resnet18)", "mvtec_nut (resnet10t.seed-7)", "mvtec_nut (resnet10t)", "Mean"]
    scores = [pd.read_csv(folder / "models" / i / "mvtec_nut" / "predictions.csv")["score"].tolist() for i in "012"]
    assert scores[1] != scores[2]


def test_weights_from_a_file(run_main, tmp_path, mvtec):
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "own.pth")
    net = [word if word != "random" else "own.pth" for word in SMALL_NET]
    done = run_main(*net, "dataset", *SMALL_DATA, "-d", "nut", "mvtec", mvtec)
    assert done.returncode == 0, done.stderr


def test_no_masks_is_an_empty_cell(run_main, tmp_path):
    labels = [("0.0", "mono")] * 6 + [("1.0", "mono")] * 2 + [("0.33333333333333331", "mono")]
    (tmp_path / "elpv" / "images").mkdir(parents=True)
    for i in range(len(labels)):
        pixels = np.random.default_rng(i).integers(0, 256, (48, 48), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "elpv" / "images" / f"{i}.png")
    lines = [f"images/{i}.png {probability} {kind}\n" for i, (probability, kind) in enumerate(labels)]
    (tmp_path / "elpv" / "labels.csv").write_text("".join(lines))
    done = run_main(*SMALL_NET, "dataset", *SMALL_DATA, "-d", "mono", "elpv", tmp_path / "elpv")
    assert done.returncode == 0, done.stderr
    names, row, mean = (
        line.split(",") for line in (tmp_path / "results/project/group/test/results.csv").read_text().splitlines()
    )
    assert row[0] == "elpv_mono"
    for i, name in enumerate(names):
        is_of_masks = name.startswith(("pixel_", "pro")) or name in ("mad", "seg_f1")
        assert (row[i] == "") == (mean[i] == "") == is_of_masks, name
    assert mean[1] == row[1]
    assert "nan" not in done.stdout.lower()


def test_help_reads_without_torch(run_process):
    """But for the help of detectors and dataset, whose options stand where they are used."""
    for words in ([], ["report"], ["predict"]):
        done = run_process(*words, "--help", env={"PYTHONPROFILEIMPORTTIME": "1"})
        assert done.returncode == 0
        assert "Usage: main.py" in done.stdout
        assert "| torch\n" not in done.stderr


NET_HEAD = ["net", "-b", "resnet18", "-le", "layer1", "--backbone_weights", "random"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("{net} dataset mvtec nowhere", 2, "'nowhere' is not a folder"),
        ("{net} dataset mvtec", 2, "'mvtec' needs a DATA_PATH"),
        ("{net} dataset mvtek {mvtec}", 2, "unknown dataset 'mvtek': did you mean mvtec?"),
        ("{net} dataset -d bolts mvtec {mvtec}", 2, "no class 'bolts'.*did you mean bolt"),
        ("{net} dataset -d momo elpv", 2, "no class 'momo'.*mono"),
        ("{net} dataset mvtec {empty}", 1, "no class of dataset 'mvtec' in '.*': expected CLASS/train/good"),
        (
            "{net} dataset -d hollow mvtec {hollow}",
            1,
            "no class of dataset 'mvtec' in '.*hollow': expected CLASS/train",
        ),
        (
            "{net} dataset --normal_dir ok mvtec {mvtec}",
            2,
            "--normal_dir is an option of dataset folder, not of 'mvtec'",
        ),
        ("{net} dataset elpv {empty}", 1, "no class of dataset 'elpv'.*labels.csv"),
        ("net -b wideresnet5 -le layer2 dataset mvtec {mvtec}", 2, "unknown backbone 'wideresnet5'.*wideresnet50"),
        ("net -b resnet18 -le layer9 dataset mvtec {mvtec}", 2, "no layer 'layer9'.*layer1"),
        ("net -b resnet18 dataset mvtec {mvtec}", 2, "needs layers, such as -le layer2: its layers are conv1"),
        ("net -le layer2 dataset mvtec {mvtec}", 2, "a detector needs a backbone"),
        ("{net} dataset --resize 200 mvtec {mvtec}", 2, "--resize 200 is smaller than --imagesize 224"),
        ("{net} dataset --batch_size -1 mvtec {mvtec}", 2, "--batch_size"),
        ("{net} --noise_std nan dataset mvtec {mvtec}", 2, "--noise_std.*nan is not a finite number"),
        ("{net} --dsc_lr inf dataset mvtec {mvtec}", 2, "--dsc_lr.*not a finite number"),
        ("{net} --cos_lr dataset mvtec {mvtec}", 2, "more meta_epochs than aed_meta_epochs, not 1 and 1"),
        ("{net} --recipe stable --train_backbone dataset mvtec {mvtec}", 2, "ema averages no backbone"),
        ("{net} --recipe stable --pre_proj 0 dataset mvtec {mvtec}", 2, "whiten .*pre_proj must be 1 or more"),
        ("{net} --recipe stabel dataset mvtec {mvtec}", 2, "--recipe.*'stabel' is not one of"),
        ("{net} --dsc_layers 99 dataset mvtec {mvtec}", 2, "dsc_layers 99 shrink"),
        ("--gpu -1 {net} dataset mvtec {mvtec}", 2, "--gpu"),
        (
            "--results_path {mvtec}/bolt/train/good/000.png {net} dataset {small} mvtec {mvtec}",
            2,
            "cannot write to.*--results_path",
        ),
        (
            "net -b resnet18 -le layer1 dataset {small} mvtec {mvtec}",
            1,
            "cannot be downloaded.*--backbone_weights FILE.pth",
        ),
        ("{net} --backbone_weights x.pth dataset mvtec {mvtec}", 2, "x.pth': no such file"),
        ("{net} dataset --train_val_split 0.1 {small} mvtec {mvtec}", 1, "--train_val_split 0.1 leaves none of 4"),
        ("{net} --dsc_lr 1e30 --meta_epochs 2 dataset {small} mvtec {mvtec}", 1, "training diverged"),
        ("{net}", 2, "a detector and a dataset, not 1 and 0"),
        ("dataset mvtec {mvtec}", 2, "a detector and a dataset, not 0 and 1"),
        ("{net} dataset mvtec {mvtec} extra", 2, "No such command 'extra'"),
        ("{net} --no_such_flag 3 dataset mvtec {mvtec}", 2, "--no_such_flag"),
    ],
)
def test_a_mistake_is_one_line(run_main, tmp_path, mvtec, words, code, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "hollow").mkdir(parents=True)
    names = {"mvtec": mvtec, "empty": tmp_path / "empty", "hollow": tmp_path / "hollow"}
    words = words.format(net=" ".join(NET_HEAD), small=" ".join(SMALL_DATA), **names).split()
    done = run_main(*words)
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert done.returncode == code, done.stderr
    assert len(errors) == 1
    assert done.stderr.splitlines()[-1] == errors[0]
    assert re.search(message, errors[0]), errors[0]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    written = [name for name in files(tmp_path) if name.startswith("results/")]
    assert written in ([], ["results/project/group/test/config.json"])


def test_one_writer(run_main, tmp_path, mvtec):
    """A second process stops and names the first; what a dead one left is no lock; other runs are not disturbed."""
    folder = tmp_path / "results" / "project" / "group" / "test"
    folder.mkdir(parents=True)
    (folder / ".lock").write_text("process 1 on elsewhere")
    with only_writer(folder):
        done = run_main(*small(mvtec))
        assert done.returncode == 2
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        assert done.stderr.splitlines()[-1].startswith(
            f"Error: '{folder.relative_to(tmp_path)}' is being written by {holder}"
        )
        assert run_main("--run_name", "other", *small(mvtec, data=["-d", "nut"])).returncode == 0
    assert files(folder) == []
    (folder / ".lock").write_text("process 1 on elsewhere")
    assert run_main(*small(mvtec, data=["-d", "nut"])).returncode == 0
    assert ".lock" not in files(folder)


def test_a_broken_file_keeps_what_was_finished(run_main, tmp_path):
    make_mvtec(tmp_path / "mvtec", ["a", "b"])
    image = tmp_path / "mvtec" / "b" / "train" / "good" / "001.png"
    image.write_bytes(image.read_bytes()[:300])
    done = run_main(*small(tmp_path / "mvtec", data=["--num_workers", "1"]))
    assert done.returncode == 1
    assert "b/train/good/001.png' cannot be read" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    folder = tmp_path / "results" / "project" / "group" / "test"
    assert pd.read_csv(folder / "results.csv")["class"].tolist() == ["mvtec_a", "Mean"]
    assert sorted(path.name for path in (folder / "models" / "0").iterdir()) == ["mvtec_a"]


def test_debug_shows_where_an_error_comes_from(monkeypatch, capsys):
    monkeypatch.setattr(main, "stop_on_signals", lambda: None)
    words = ["report", "gone"]
    for given, traced in ((words, False), (["--debug", *words], True)):
        monkeypatch.setattr(sys, "argv", ["main.py", *given])
        assert main.cli() == 2
        said = capsys.readouterr().err
        assert ("Traceback" in said) == traced
        assert said.splitlines()[-1].startswith("Error: 'gone' is not the folder of a run")
