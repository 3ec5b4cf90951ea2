"""The benchmarks: their tables, and the defects they paste."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_NET
from fake_cuda import CUDA, fake_cuda

sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy
import calibration
import efficientad
import flows
import gpu
import recipes
import robust
import synthetic


def test_accuracys_table(mvtec, monkeypatch):
    words = [
        "mvtec",
        str(mvtec),
        "-d",
        "bolt",
        "--imagesize",
        "64",
        "--settings",
        "paper",
        "stable",
        "PatchCore",
        "CFA, whitened",
        "--epochs",
        "2",
        "--seeds",
        "0",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["accuracy.py", *words])
    found = accuracy.table(accuracy.run(accuracy.parse(), accuracy.measure_class))
    header, rows = list(found.columns), found.to_numpy().tolist()
    assert header[:6] == ["class", "setting", "image AUROC", "std", "worst seed", "moves by"]
    settings = ["paper", "PatchCore", "stable", "CFA, whitened"]  # those of the same features together
    assert [row[:2] for row in rows[:4]] == [["bolt", setting] for setting in settings]
    assert [row[1] for row in rows[4:]] in ([], ["anomalib's CFA"])
    for row in rows:
        mean, _, worst, _, pixel_auroc, pro, *_ = map(float, row[2:])
        assert 0 <= worst <= mean <= 1
        assert 0 <= pixel_auroc <= 1
        assert 0 <= pro <= 1


def test_a_backbone_is_refused_where_none_is_read(mvtec, monkeypatch):
    words = ["mvtec", str(mvtec), "--settings", "PatchCore", "template", "--backbone", "resnet18"]
    monkeypatch.setattr(sys, "argv", ["accuracy.py", *words])
    with pytest.raises(
        SystemExit, match="--backbone resnet18: 'template' does not read efficientnet_lite0: leave it out"
    ):
        accuracy.run(accuracy.parse(), accuracy.measure_class)


@pytest.mark.parametrize("kind", synthetic.DEFECTS)
def test_synthetic_defects(kind):
    """Nothing changes outside the mask that can be seen, what is inside does, and a seed draws the same again."""
    cells = np.random.default_rng(0).integers(100, 200, (2, 300, 300), dtype=np.uint8)
    draw = synthetic.DEFECTS[kind]
    for seed in range(20):
        image, mask = draw(*cells, np.random.default_rng(seed))
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
        changed = np.abs(image.astype(int) - cells[0]) > synthetic.VISIBLE * cells[0] + 1
        assert not changed[mask == 0].any()
        assert changed[mask == 255].mean() > 0.3
        again, same = draw(*cells, np.random.default_rng(seed))
        assert np.array_equal(image, again)
        assert np.array_equal(mask, same)


@pytest.mark.parametrize("change", robust.CHANGES)
def test_changes_of_light_and_place(change):
    """Of a ramp from black to white: its shape stays, and what is promised of its brightness."""
    ramp = np.repeat(np.linspace(0, 200, 64, dtype=np.float32)[None, :, None], 64, 0).repeat(3, 2)
    found = robust.CHANGES[change](ramp, np.random.default_rng(0))
    assert found.shape == ramp.shape
    factor = {"0.8 x brightness": 0.8, "1.2 x brightness": 1.2}.get(change, 1.0)
    if change == "gradient of light":
        factor = np.linspace(0.8, 1.2, 64)[None, :, None]
    tolerance = {"noise": 1.0, "slight blur": 2.0, "5 degrees": 6.0}.get(change, 1e-3)
    assert abs((found - factor * ramp)[8:-8, 8:-8].mean()) < tolerance
    assert np.array_equal(found, ramp) == (change == robust.AS_THEY_ARE)


def test_robusts_table(mvtec, monkeypatch):
    """A line per setting, and what a change costs in points."""
    for matching in ("off", "gain"):
        monkeypatch.setitem(accuracy.SETTINGS, matching, " ".join([*SMALL_NET, "--match_light", matching]))
    words = ["mvtec", str(mvtec), "-d", "bolt", "--imagesize", "64", "--settings", "off", "gain", "--precision", "fp32"]
    monkeypatch.setattr(sys, "argv", ["robust.py", *words])
    rows = accuracy.run(accuracy.parse(robust.__doc__, robust.DEFAULT, [0]), robust.measure_class)
    lines = robust.table(rows)
    assert lines["setting"].tolist() == ["off", "gain"]
    assert list(lines)[2:] == list(robust.CHANGES)
    assert rows["image_auroc"].between(0, 1).all()
    value = rows.set_index(["setting", "change"])["image_auroc"]
    drops = lines.set_index("setting")
    assert drops.loc["off", "noise"] == pytest.approx(100 * (value["off", "as they are"] - value["off", "noise"]))


def test_calibrations_table():
    """Of scores that any draw is a sample of, an interval of 95 % holds in about as many draws; of few it is wide."""
    scores = np.random.default_rng(0).permutation(2000).astype(np.float32)
    for share, stated in ((0.01, "0.00 to 8.8 %"), (0.05, "0.06 to 13.2 %")):
        found = calibration.row(scores, 40, 200, share)
        assert found["interval"] == stated
        held, _, count = found["holds"].split()
        assert 0.9 * int(count) <= int(held) <= int(count) == 200
        assert float(found["of the others"].split()[0]) == pytest.approx(float(found["expected"].split()[0]), abs=0.6)
    (above, others), *_ = calibration.draws(np.arange(50, dtype=np.float32), 40, 1, 0.01)
    assert others == 10 and 0 <= above <= 10


def test_flows_lines(capsys):
    flows.main(["--imagesize", "32", "--batch_size", "1", "--rounds", "1"])
    _, *lines = capsys.readouterr().out.splitlines()
    whats = [
        f"{command}, {what}, 1 images" for command in ("fastflow", "msflow") for what in ("train step", "prediction")
    ]
    assert [line[:44].strip() for line in lines] == whats
    assert all(float(line[44:].split()[0]) > 0 for line in lines)


def test_efficientads_lines(capsys, monkeypatch):
    """Of small networks; without an export, which takes seconds."""
    monkeypatch.setattr(efficientad, "session", lambda *_: None)
    efficientad.main(["--width", "0.05", "--side", "40", "--rounds", "1"])
    _, _, *lines = capsys.readouterr().out.splitlines()
    whats = ["predict, 1 images", "predict, 8 images", "train step, 1 image"]
    assert [line[:28].strip() for line in lines] == [f"{name}, {what}" for name in ("bf16", "fp32") for what in whats]
    assert all(float(one) > 0 for line in lines for one in line[28:].split()[:3])


def test_recipes_lines(capsys, monkeypatch):
    """Recipes in turn: the first is what the others are compared with."""
    for recipe in recipes.RECIPES:
        monkeypatch.setitem(recipes.RECIPES[recipe], "meta_epochs", 1)
    words = "--backbone resnet18 -le layer1 --dims 8 --imagesize 32 --train_images 2 --train_rounds 1 --rounds 1"
    recipes.main([*words.split(), "--images", "1", "2"])
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["stable:", "1", "2", "memory:", "1", "2"]
    assert lines[0].endswith("1.00 x stable's")
    for line in (*lines[1:3], *lines[4:]):
        *_, ratio, _, _, _, bare = line.split()
        ours = line.partition(": ")[2].split()[0]
        assert float(ours) / float(bare) == pytest.approx(float(ratio), rel=0.2)
        assert float(bare) > 0


def test_scales_table():
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), "--images", "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[2:]] == ["50.00", "60.00"]
    assert all(float(row[1]) > 0 and float(row[3]) > 100 for row in rows[2:])


def test_gpus_table(capsys):
    assert gpu.main(["--device", "cpu", "--precision", "fp32", "--detectors", "net", "rd"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "PASS"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said[4:-2]]
    assert [row[0] for row in rows] == ["net", "rd"]
    for _, seconds, milliseconds, peak, off, same in rows:
        assert min(float(seconds), float(milliseconds), float(peak)) > 0
        assert float(off) == 0
        assert same == "yes"


def test_gpus_table_of_a_device_of_its_own():
    with fake_cuda():
        row = gpu.measure("cfa", gpu.TINY, CUDA, torch.float32)
    assert row.problems == []
    assert row.peak == 8


def test_gpus_table_fails(monkeypatch, capsys):
    """Where scores differ from the CPU's, training is another every time, or a detector breaks; the others go on."""
    good = gpu.Row("net", 1.0, 1.0, 1.0, 0.0, True, True)
    rows = {"net": good, "rd": good._replace(off=float("nan"), finite=False), "cfa": good._replace(same=False)}

    monkeypatch.setattr(gpu, "measure", lambda command, *_: rows[command])
    assert gpu.main(["--device", "cpu", "--detectors", "logicrd", *rows]) == 1
    assert capsys.readouterr().out.splitlines()[-5:] == [
        "",
        "FAIL logicrd: 'logicrd'",
        "FAIL rd: scores are nan of their deviation off the CPU's, more than 0.02",
        "FAIL rd: scores are not finite",
        "FAIL cfa: training again gave other bytes",
    ]


def test_no_gpu_is_one_line(capsys):
    assert gpu.main([]) == 1
    assert capsys.readouterr() == (
        "",
        "Error: no CUDA device found: run this where there is one, or with --device cpu\n",
    )
