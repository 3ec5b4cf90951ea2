"""Prediction on one's own images: every kind of file, standard input, pictures, and what goes wrong."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import ROOT, Command, wait_for
from PIL import Image

import main
import simplenet
from datasets import DATASETS, ImageTransform
from experiment.use.maps import full_size


def rows(folder):
    return pd.read_csv(folder / "predictions.csv", dtype={"path": str, "error": str})


def predict(*words):
    """In this process; the exit code."""
    return main.main(["predict", *map(str, words)], standalone_mode=False)


def test_predict_gives_the_scores_of_the_training_run(run_main, mvtec, model, tmp_path):
    done = run_main("predict", model, mvtec / "bolt" / "test", "--out", "found", "--map", "both")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    table, expected = rows(tmp_path / "found"), pd.read_csv(model / "predictions.csv")
    assert list(table.columns) == [
        "path",
        "score",
        "decision",
        "percentile",
        "p_value",
        "seconds",
        "error",
        "picture",
        "map",
    ]
    assert table["path"].tolist() == [str(mvtec / name) for name in expected["image"]]
    np.testing.assert_allclose(table["score"], expected["score"], atol=1e-6)
    assert table["decision"].tolist() == expected["decision"].tolist()
    assert (table["seconds"] >= 0).all()
    assert table["error"].isna().all()
    drawn = Image.open(tmp_path / "found" / "overlays" / "crack" / "000.png")
    assert drawn.size == (3 * 32, 22 + 32)
    saved = np.load(tmp_path / "found" / "maps" / "crack" / "000.npy")
    again = simplenet.load(model).predict(table["path"][0]).maps[0].numpy()
    assert saved.dtype == np.float32
    np.testing.assert_allclose(saved, again, atol=1e-6)
    assert "threshold" in done.stderr
    assert "found" in done.stderr


def test_standard_input(run_main, run_process, mvtec, model, tmp_path):
    paths = [str(path) for path in sorted((mvtec / "bolt" / "test").rglob("*.png"))]
    lines = "\n".join([paths[0], "", "missing.png", paths[1]]) + "\r\n"
    for dash in ([], ["-"]):
        command = ["predict", model, *dash, "--out", tmp_path / "o", "--map", "none"]
        done = run_process(*command, input=lines) if dash else run_main(*command, stdin=lines)
        assert done.returncode == 1
        assert "Error: 'missing.png' cannot be read: " in done.stderr
        assert "Traceback" not in done.stderr
        table = rows(tmp_path / "o")
        assert table["path"].tolist() == [paths[0], "missing.png", paths[1]]
        assert table["score"].isna().tolist() == [False, True, False]
        assert "No such file" in table["error"][1]


@pytest.fixture
def zoo(tmp_path):
    """Images of every kind, and files that are none."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(folder / "a_rgb.png")
    Image.fromarray((rgb[..., 0].astype(np.uint16)) * 257).save(folder / "b_grey16.png")
    Image.fromarray(rgb).convert("RGBA").save(folder / "c_rgba.png")
    Image.fromarray(rgb).convert("CMYK").save(folder / "d_cmyk.jpg")
    Image.fromarray(rgb).convert("P").save(folder / "e_palette.gif")
    Image.fromarray(rgb[:1, :1]).save(folder / "f_one_pixel.png")
    Image.fromarray(rgb).convert("1").save(folder / "g_bits.png")
    (folder / "y_truncated.png").write_bytes((folder / "a_rgb.png").read_bytes()[:300])
    (folder / "z_empty.png").write_bytes(b"")
    return folder


@pytest.mark.parametrize("size", [[], ["--full_size"]])
def test_every_kind_of_image(model, zoo, tmp_path, capsys, size):
    assert predict(model, zoo, "--out", tmp_path / "out", "--map", "both", "--raw_format", "tiff", *size) == 1
    table = rows(tmp_path / "out").set_index(rows(tmp_path / "out")["path"].map(lambda path: Path(path).name))
    broken = table.index[table["score"].isna()].tolist()
    assert broken == ["y_truncated.png", "z_empty.png"]
    assert np.isfinite(table["score"].drop(broken)).all()
    assert table.loc["c_rgba.png", "score"] == table.loc["a_rgb.png", "score"]
    errors = [line for line in capsys.readouterr().err.splitlines() if "Error: " in line]
    assert len(errors) == 2
    assert "y_truncated.png" in errors[0]
    shape = (40, 50) if size else (32, 32)
    values = np.asarray(Image.open(tmp_path / "out" / "maps" / "a_rgb.tiff"))
    assert values.dtype == np.float32
    assert values.shape == shape
    assert Image.open(tmp_path / "out" / "overlays" / "a_rgb.png").size == (3 * shape[1], 22 + shape[0])


def test_full_size_puts_the_map_where_the_network_looked():
    map_ = np.arange(32 * 32, dtype=np.float32).reshape(32, 32)
    square = full_size(map_, ImageTransform(40, 32, resize_mode="square"), (64, 48))
    assert square.shape == (48, 64)
    assert np.isfinite(square).all()
    cropped = full_size(map_, ImageTransform(40, 32), (128, 64))
    assert cropped.shape == (64, 128)
    assert np.isfinite(cropped[6:58, 38:90]).all()
    assert np.isfinite(cropped).sum() == 52 * 52
    assert np.unravel_index(np.nanargmax(cropped), cropped.shape) == (57, 89)


def test_threshold_and_names(model, mvtec, tmp_path):
    (tmp_path / "in").mkdir()
    image = Image.open(next((mvtec / "bolt" / "test").rglob("*.png"))).convert("RGB")
    for name in ("a.png", "a.bmp", "b.png"):
        image.save(tmp_path / "in" / name)
    for threshold, decision in ((-1e9, 1), (1e9, 0)):
        words = ["--out", tmp_path / "out", "--threshold", threshold]
        assert predict(model, tmp_path / "in", tmp_path / "in" / "b.png", *words) == 0
        assert rows(tmp_path / "out")["decision"].tolist() == [decision] * 4
    assert sorted(p.name for p in (tmp_path / "out" / "overlays").iterdir()) == ["a.png", "a_2.png", "b.png", "b_2.png"]


def test_batch_size_and_workers_change_nothing(model, mvtec, tmp_path):
    tables = []
    for i, words in enumerate(
        (["--batch_size", "1", "--num_workers", "1"], ["--batch_size", "3", "--num_workers", "4"])
    ):
        assert predict(model, mvtec, "--map", "none", "--out", tmp_path / str(i), *words) == 0
        tables.append(rows(tmp_path / str(i)))
    assert tables[0]["path"].tolist() == tables[1]["path"].tolist()
    np.testing.assert_allclose(tables[0]["score"], tables[1]["score"], atol=1e-5)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("predict {model}", 2, "predict needs images"),
        ("predict {model} nowhere.png", 2, "no such file or folder: 'nowhere.png'"),
        ("predict {model} {empty}", 1, "no images in '.*empty': expected files ending in .*png"),
        ("predict {empty} {mvtec}", 2, "empty' is not the folder of a model: expected model.json"),
        ("predict {model} {mvtec} --out {file}/x", 2, "cannot write to.*--out"),
        ("predict {flipped} {mvtec}", 1, "checkpoint.safetensors' is damaged"),
        ("--seed 3 predict {model} {mvtec}", 2, "predict takes no run options: leave out --seed"),
        ("net predict {model} {mvtec}", 2, "a backbone|stands alone"),
    ],
)
def test_mistakes(run_main, model, mvtec, tmp_path, words, code, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    flipped = tmp_path / "flipped"
    shutil.copytree(model, flipped)
    content = bytearray((flipped / "checkpoint.safetensors").read_bytes())
    content[-1] ^= 1
    (flipped / "checkpoint.safetensors").write_bytes(content)
    places = {
        "model": model,
        "mvtec": mvtec,
        "empty": tmp_path / "empty",
        "file": tmp_path / "file",
        "flipped": flipped,
    }
    done = run_main(*words.format(**places).split())
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert done.returncode == code, done.stderr
    assert len(errors) == 1
    assert "Traceback" not in done.stderr
    assert pd.Series(errors).str.contains(message).all()


def make_many(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i:05}.bmp")
    return folder


def test_an_interrupt_leaves_a_valid_table(model, tmp_path):
    many = make_many(tmp_path / "many", 3000)
    process = Command(["predict", model, many, "--out", tmp_path / "out"], tmp_path)
    wait_for(lambda: len(list((tmp_path / "out").glob("overlays/*.png"))) >= 40, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "Error: interrupted; what was finished is kept"
    assert "Traceback" not in errors
    table = rows(tmp_path / "out")
    assert 8 <= len(table) < 3000
    assert table["score"].notna().all()
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's accounting")
def test_memory_does_not_grow_with_the_images(model, tmp_path):
    """Resident memory after many images beside that after the first hundred."""
    many = make_many(tmp_path / "many", 1200)
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import experiment.use.predict as p
resident = lambda: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")) / 1024
marks, done, original = [], 0, p._predict_one
def counted(*words):
    global done
    done += 1
    if done in (96, 1192):
        marks.append(resident())
    return original(*words)
p._predict_one = counted
import main
main.main(["predict", {str(model)!r}, {str(many)!r}, "--out", {str(tmp_path / "out")!r}], standalone_mode=False)
print(marks[1] - marks[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 45  # MiB


@pytest.mark.skipif(os.geteuid() != 0 if hasattr(os, "geteuid") else True, reason="mounts a small file system")
def test_a_full_disk_is_one_line(run_main, model, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        many = make_many(tmp_path / "many", 200)
        done = run_main("predict", model, many, "--out", disk / "out")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("Error: '")
        assert "No space left on device" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        table = rows(disk / "out")
        assert table["score"].notna().all()
        assert not [path for path in disk.rglob("*") if "partial" in path.name]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_elpv_paths_need_no_dataset(model):
    """A model knows nothing of the dataset's reader: it is asked by paths alone."""
    sample = DATASETS["elpv"].read_class(DATASETS["elpv"].default_root(), "mono").test[0]
    assert simplenet.load(model).predict(sample.image_path).scores.shape == (1,)
