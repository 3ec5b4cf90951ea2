"""What predict writes where: nothing of the user's is replaced, nothing of its own is read, and nothing is lost."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from PIL import Image

import main
from errors import DataError, Interrupted, UsageError
from experiment.model_config import PredictConfig
from experiment.record.lock import LOCK, only_writer
from experiment.show.names import Names
from experiment.use import predict as predict_module
from simplenet import SimpleNet


def predict(*words):
    """In this process; the exit code."""
    return main.main(["predict", *map(str, words)], standalone_mode=False)


def rows(folder):
    return pd.read_csv(folder / "predictions.csv", dtype={"path": str, "error": str}, keep_default_na=False)


def paint(path, seed=0, size=(40, 48)):
    """An image file of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Three images in the working directory."""
    for i in range(3):
        paint(tmp_path / "photos" / f"{i}.png", i)
    monkeypatch.chdir(tmp_path / "photos")
    return tmp_path / "photos"


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Folders


@pytest.mark.parametrize(
    "mine", ["predictions.csv", "overlays/0.png", "notes.txt", ".hidden", "maps/0.npy", "table.csv", ".lock"]
)
def test_a_folder_with_files_of_the_users_is_refused(model, photos, tmp_path, mine):
    out = tmp_path / "out"
    (out / mine).parent.mkdir(parents=True)
    (out / mine).write_text("image,mine\nscore,1\n")
    before = tree(out)
    with pytest.raises(UsageError, match=rf"--out '.*out' holds '{mine}', which predict did not write"):
        predict(model, photos, "--out", out)
    assert tree(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_a_file_beside_earlier_predictions_is_refused(model, photos):
    assert predict(model, ".", "--map", "both") == 0
    for mine in ("predictions/overlays/mine.png", "predictions/maps/mine.npy", "predictions/mine.csv"):
        Path(mine).write_text("a,b\n")
        with pytest.raises(UsageError, match=r"holds '.*mine"):
            predict(model, ".", "--map", "both")
        assert Path(mine).read_text() == "a,b\n"
        Path(mine).unlink()
    assert predict(model, ".", "--map", "both") == 0


def test_the_folder_of_the_images_is_refused(model, photos):
    before = tree(photos)
    with pytest.raises(UsageError, match=r"--out '.' holds '0.png'"):
        predict(model, ".", "--out", ".")
    assert tree(photos) == before


def test_the_same_command_again_reads_no_output(model, photos, capsys):
    """Neither by search nor from a stream, and what it wrote before is replaced by the same."""
    for _ in range(3):
        assert predict(model, ".", "--map", "both", "--raw_format", "tiff") == 0
        table = rows(photos / "predictions")
        assert table["path"].tolist() == ["0.png", "1.png", "2.png"]
        assert table["picture"].tolist() == [f"overlays/{i}.png" for i in range(3)]
        assert table["map"].tolist() == [f"maps/{i}.tiff" for i in range(3)]
        assert sorted(path.name for path in photos.iterdir()) == ["0.png", "1.png", "2.png", "predictions"]
        assert len(tree(photos / "predictions")) == 7
    assert "6 pictures that predict or a run drew are left out" in capsys.readouterr().err
    assert predict(model, ".", "--out", "other/place") == 0
    assert len(rows(photos / "other/place")) == 3
    assert predict(model, ".", "--out", "third") == 0
    assert len(rows(photos / "third")) == 3


def test_outputs_in_a_stream_are_left_out(model, photos, monkeypatch):
    predict(model, ".")
    lines = sorted(str(path) for path in Path().rglob("*.png"))
    assert len(lines) == 6
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert predict(model, "-", "--out", "again") == 0
    assert rows(photos / "again")["path"].tolist() == ["0.png", "1.png", "2.png"]
    with pytest.raises(DataError, match="nothing to predict: 3 pictures that predict or a run drew"):
        predict(model, *photos.glob("predictions/overlays/*.png"), "--out", "more")
    assert not (photos / "more").exists()


def test_pictures_of_a_run_are_no_images(model, photos):
    assert predict(model, model / "examples" / "00000.jpg", "0.png") == 0
    assert rows(photos / "predictions")["path"].tolist() == ["0.png"]


def test_predictions_of_before_pictures_were_named(model, photos):
    """Their overlays are no images, and they are no files that predict could tell from the user's."""
    paint(photos / "predictions" / "overlays" / "0.png")
    (photos / "predictions" / "predictions.csv").write_text("path,score,decision,seconds,error\n0.png,1,0,0.1,\n")
    with pytest.raises(UsageError, match=r"holds 'overlays/0.png'"):
        predict(model, ".")
    predict(model, ".", "--out", "new")
    assert len(rows(photos / "new")) == 3


def test_other_predictions_are_kept(model, photos, capsys):
    """Of other images, of another threshold, changed by hand: the folder is moved aside as it is."""
    predict(model, "0.png", "1.png")
    for number, words in enumerate((["2.png"], ["2.png", "--threshold", "-1e9"], ["1.png", "2.png"]), start=1):
        before = tree(photos / "predictions")
        predict(model, *words)
        assert tree(photos / f"predictions.old-{number}") == before
        said = capsys.readouterr().err
        assert f"are now in '{photos / f'predictions.old-{number}'}'" in said
    assert len(rows(photos / "predictions")) == 2
    overlay = photos / "predictions/overlays/1.png"
    overlay.write_bytes(overlay.read_bytes() + b"a circle around the defect")
    before = tree(photos / "predictions")
    predict(model, "1.png", "2.png")
    assert tree(photos / "predictions.old-4") == before


def test_an_interrupted_predict_loses_nothing(model, photos, monkeypatch):
    """Neither the table of the finished one before it, nor its own rows; and the next one goes on."""
    assert predict(model, ".", "--batch_size", "2") == 0
    before = tree(photos / "predictions")
    write, written = predict_module.write_bytes, []

    def interrupted(path, content, **options):
        if len(written) == 2:
            raise Interrupted(2)
        written.append(path)
        write(path, content, **options)

    monkeypatch.setattr(predict_module, "write_bytes", interrupted)
    with pytest.raises(Interrupted):
        predict(model, ".", "--batch_size", "2")
    assert tree(photos / "predictions.old-1") == before
    table = rows(photos / "predictions")
    assert table["picture"].tolist() == ["overlays/0.png", "overlays/1.png", ""]
    monkeypatch.undo()
    monkeypatch.chdir(photos)
    assert predict(model, ".", "--batch_size", "2") == 0
    assert tree(photos / "predictions.old-1") == before
    assert rows(photos / "predictions")["path"].tolist() == ["0.png", "1.png", "2.png"]


def test_a_killed_predict_leaves_its_rows(model, photos):
    predict(model, ".")
    (photos / "predictions/predictions.csv").rename(photos / "predictions/.predictions.csv.partial")
    paint(photos / "predictions/overlays/late.png")
    predict(model, ".")
    assert len(rows(photos / "predictions")) == len(rows(photos / "predictions.old-1")) == 3


def test_one_writer_at_a_time(model, photos):
    (photos / "predictions").mkdir()
    with only_writer(photos / "predictions"):
        before = tree(photos)
        with pytest.raises(UsageError, match=r"'predictions' is being written by process \d+ on .*another --out$"):
            predict(model, ".")
        assert tree(photos) == before
    assert predict(model, ".") == 0
    assert not (photos / "predictions" / LOCK).exists()


def test_a_folder_that_is_taken_between_check_and_lock(model, photos, monkeypatch):
    monkeypatch.setattr(predict_module, "check_free", lambda out: None)
    paint(photos / "predictions" / "mine.png")
    with pytest.raises(UsageError, match=r"holds 'mine.png'"):
        predict(model, "0.png")
    assert [path.name for path in (photos / "predictions").iterdir()] == ["mine.png"]


# Names


def test_names_of_pictures():
    given = [
        (["a.jpg", "a.png", "a_2.png"], ["a", "a_2", "a_2_2"]),
        (["a_2", "a", "a"], ["a_2", "a", "a_3"]),
        (["A", "a", "\u00e9", "e\u0301"], ["A", "a_2", "\u00e9", "e\u0301_2"]),
        (["x" * 250, "x" * 251], ["x" * 200, "x" * 200 + "_2"]),
        (["\u6f22" * 80], ["\u6f22" * 66]),
        ([os.fsdecode(b"caf\xe9")], ["caf\\xe9"]),
        ([".", "..", "../../etc/x", "/etc/x"], ["image", "image_2", "etc/x", "etc/x_2"]),
        (["a.png/b", "a"], ["a.png_/b", "a"]),
    ]
    for wanted, expected in given:
        names = Names()
        stems = [Path(name).with_suffix("") if name.endswith((".jpg", ".png")) else Path(name) for name in wanted]
        assert [str(names.take(stem)) for stem in stems] == expected


def test_every_row_names_its_own_picture(model, tmp_path):
    folder = tmp_path / "in"
    long = "l" * 246
    names = [b"a.jpg", b"a.png", b"a_2.png", b"A.bmp", f"{long}.png".encode(), f"{long[:-1]}m.png".encode()]
    names += [b"caf\xe9.png", "\u6f22\u5b57.png".encode(), b"=1+1.png"]
    for seed, name in enumerate(names):
        paint(tmp_path / "one.png", seed)
        folder.mkdir(exist_ok=True)
        Image.open(tmp_path / "one.png").save(tmp_path / f"it{Path(os.fsdecode(name)).suffix}")
        (tmp_path / f"it{Path(os.fsdecode(name)).suffix}").rename(os.fsdecode(os.fsencode(folder) + b"/" + name))
    assert predict(model, folder, "--map", "both", "--out", tmp_path / "out") == 0
    table = rows(tmp_path / "out")
    assert len(table) == len(names)
    for column in ("picture", "map"):
        assert len(set(table[column].str.casefold())) == len(names)
        assert all((tmp_path / "out" / name).is_file() for name in table[column])
    assert str(folder / "caf") + "\\xe9.png" in table["path"].tolist()
    content = (tmp_path / "out" / "predictions.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbfpath,")
    assert content.decode("utf-8-sig").count("\u6f22\u5b57") == 3
    for _, row in table.iterrows():
        drawn = np.load(tmp_path / "out" / row["map"])
        assert drawn.shape == (32, 32)


def test_ascii_has_no_mark(model, photos):
    predict(model, ".", "--map", "none")
    assert (photos / "predictions/predictions.csv").read_bytes().startswith(b"path,")


def test_lines_that_are_no_images(model, photos, monkeypatch, capsys):
    lines = [".", "..", "/", "a\0b", "y" * 5000, os.fsdecode(b"gone\xe9.png"), "0.png", "clip.mp4"]
    (photos / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert predict(model, "-") == 1
    table = rows(photos / "predictions")
    assert len(table) == len(lines)
    assert (table["score"] != "").tolist() == [line == "0.png" for line in lines]
    assert "is a folder" in table["error"][0]
    assert "ffmpeg -i clip.mp4" in table["error"][7]
    assert capsys.readouterr().err.count("Error: ") == 7


def test_standard_input_may_hold_any_bytes(model, photos):
    command = [sys.executable, str(ROOT / "main.py"), "predict", str(model), "--map", "none"]
    done = subprocess.run(command, input=b"0.png\ncaf\xe9.png\n", capture_output=True, cwd=photos)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"Error: 'caf\\xe9.png' cannot be read" in done.stderr
    assert rows(photos / "predictions")["path"].tolist() == ["0.png", "caf\\xe9.png"]


def test_videos_are_named(model, tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "part.AVI").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"part.AVI' is a video, .*ffmpeg -i part.AVI -vf fps=2 frames/%06d.png"):
        predict(model, tmp_path / "clips", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Pictures and memory


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (1, 1)])
def test_an_image_too_narrow_for_its_own_size(model, photos, size, capsys):
    paint(photos / "1b.png", 5, size)
    code = predict(model, ".", "--full_size", "--map", "both")
    table = rows(photos / "predictions").set_index("path")
    assert (table["score"] != "").all()
    assert table.drop("1b.png")["picture"].str.len().all()
    if size == (1, 1):
        assert code == 0
        return
    assert code == 1
    assert "network saw less than one; leave out --full_size" in table.loc["1b.png", "error"]
    assert table.loc["1b.png", "picture"] == ""
    assert capsys.readouterr().err.count("Error: ") == 1


def test_memory_that_is_short(model, photos, monkeypatch, capsys):
    """Fewer images at once give the same rows; where a single one has no room, one line says so."""
    embed = SimpleNet.embed
    predict(model, ".", "--map", "none", "--out", "enough")

    def full(self, images, interest=None, room=1):
        if len(images) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return embed(self, images)

    monkeypatch.setattr(SimpleNet, "embed", full)
    assert predict(model, ".", "--map", "none", "--out", "short") == 0
    assert "Out of memory at prediction of 3 images at once: going on with fewer" in capsys.readouterr().err
    np.testing.assert_allclose(
        rows(photos / "short")["score"].astype(float), rows(photos / "enough")["score"].astype(float), atol=1e-5
    )
    monkeypatch.setattr(SimpleNet, "embed", lambda self, images, interest: full(self, images, room=0))
    with pytest.raises(DataError, match="out of memory at prediction of a single image: free some memory"):
        predict(model, ".", "--out", "none")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")])
def test_no_memory_to_read_or_load(model, photos, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(predict_module, "load", full)
    with pytest.raises(DataError, match=r"^out of memory: free some memory, or choose another --gpu$"):
        predict(model, ".")
    monkeypatch.undo()
    monkeypatch.chdir(photos)
    monkeypatch.setattr("experiment.use.inputs.read_image", full)
    assert predict(model, "0.png") == 1
    assert "'0.png' cannot be read: " in rows(photos / "predictions")["error"][0]


def test_a_picture_that_cannot_be_drawn(model, photos, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(predict_module, "captioned", full)
    assert predict(model, "0.png") == 1
    table = rows(photos / "predictions")
    assert "was scored, but cannot be drawn at 48 x 40 pixels: out of memory" in table["error"][0]
    assert table["score"][0] != ""


def test_a_config_from_python(model, photos):
    config = PredictConfig(model, ("0.png",), Path("here"), 8, 2, 0, None, "none", None, False, None)
    assert predict_module.predict(config) == 0
    assert len(rows(photos / "here")) == 1
