"""predict at a line: a folder that is watched, rows as they come, and how long an image takes."""

import io
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import Command, wait_for
from PIL import Image

import main
from detection import Detector
from errors import DataError, Interrupted, UsageError
from experiment.use import arrivals
from experiment.use.arrivals import PATIENCE, Arrivals
from experiment.use.growing import appending
from experiment.use.inputs import Item


class Steps:
    """In the place of an Event: between two looks the next step is done, and after the last one it is set.

    Args:
        steps: functions, or None for a look at which nothing is new.
        at_end: called then.
    """

    def __init__(self, *steps, at_end=lambda: True):
        self.steps, self.at_end = list(steps), at_end

    def is_set(self):
        return False

    def wait(self, _):
        if not self.steps:
            return self.at_end()
        step = self.steps.pop(0)
        if step is not None:
            step()
        return False


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "in"
    path.mkdir()
    return path


@pytest.fixture
def picture():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def read(item):
    """As read_item does, of files that hold nothing but "whole"."""
    return (
        item if Path(item.path).read_text() == "whole" else Item(item.path, item.name, error=f"'{item.path}' is broken")
    )


def taken(folder, *steps, known=(), read=read):
    """The names of what is taken at each of the looks, "!" before those that are broken."""
    looks = [[]]
    stop = Steps(*((lambda own=step: (looks.append([]), own and own())) for step in steps))
    for item in Arrivals(folder, read, known, stop):
        looks[-1].append(f"{'!' * bool(item.error)}{item.name}")
    return looks


def test_each_image_is_taken_once_when_it_is_whole(folder):
    def write(name, text="whole"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    (folder / "old.png").write_text("whole")
    (folder / "known.png").write_text("whole")
    looks = taken(
        folder,
        None,  # the second look at what was there
        lambda: write("new.png", "wh"),
        lambda: write("new.png", "whol"),  # it grows between two looks
        None,  # it stands still, but is no image yet
        lambda: write("new.png"),
        None,
        lambda: (write("notes.txt"), write("sub/a.png"), write(".hidden.png")),
        None,
        lambda: write("old.png", "whole"[::-1]),
        lambda: write("old.png", "whole"),  # the same length at another time: another image
        None,
        None,
        known=[str(folder / "known.png")],
    )
    assert looks == [[], ["old"], [], [], [], [], ["new"], [], ["sub/a"], [], [], ["old"], []]


def test_what_stays_broken_is_taken_as_that_once(folder):
    (folder / "a.png").write_text("")
    looks = taken(folder, *[None] * (PATIENCE + 3))
    assert looks == [*[[]] * (PATIENCE - 1), ["!a"], *[[]] * 4]


def test_a_folder_that_vanishes_is_waited_for(folder, tmp_path, capsys):
    (folder / "a.png").write_text("whole")
    away = tmp_path / "away"
    looks = taken(
        folder,
        None,
        lambda: folder.rename(away),
        None,
        folder.mkdir,  # as where a disk is mounted no more
        folder.rmdir,
        lambda: away.rename(folder),
        lambda: (folder / "b.png").write_text("whole"),
        None,
        None,
    )
    assert looks == [[], ["a"], [], [], [], [], [], [], ["b"], []]
    gone, again = f"'{folder}' is not there any more: waiting for it", f"'{folder}' is there again"
    assert capsys.readouterr().err.splitlines() == [gone, again] * 2
    with pytest.raises(UsageError, match=r"--watch '.*gone' is not a folder"):
        Arrivals(tmp_path / "gone", read)


def test_what_goes_away_is_forgotten(folder):
    """A camera may use its names again."""
    path = folder / "a.png"
    path.write_text("whole")
    state = path.stat()

    def again():
        path.write_text("whole")
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    assert taken(folder, None, path.unlink, again, None) == [[], ["a"], [], [], ["a"]]


def test_pictures_of_predict_are_not_taken(folder):
    shutil.copytree(folder, folder / "overlays")
    (folder / "predictions.csv").write_text("path,score,decision,seconds,error\n")
    (folder / "overlays" / "a.png").write_text("whole")
    assert taken(folder, None, None) == [[], [], []]


def interrupt():
    raise Interrupted(signal.SIGINT)


@pytest.fixture
def watch(model, folder, tmp_path, monkeypatch):
    """Call predict --watch, which is interrupted after some steps; the exit code."""

    def call(*words, steps=(None, None)):
        monkeypatch.setattr(arrivals, "Event", lambda: Steps(*steps, at_end=interrupt))
        line = ["predict", model, "--watch", folder, "--out", tmp_path / "out", *words]
        return main.main([str(word) for word in line], standalone_mode=False)

    return call


def rows(tmp_path, **more):
    return pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False, **more)


def test_predict_watches_and_adds_rows(watch, folder, model, tmp_path, picture, capsys):
    (folder / "a.png").write_bytes(picture)
    (folder / "sub").mkdir()
    (folder / "sub" / "broken.png").write_bytes(picture[:200])
    assert watch("--stream", "jsonl", "--regions", "--pixel_threshold", -1, steps=[None] * PATIENCE) == 1
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    table = rows(tmp_path)
    assert (
        [line["path"] for line in lines]
        == table["path"].tolist()
        == [
            str(folder / "a.png"),
            str(folder / "sub" / "broken.png"),
        ]
    )
    assert lines[0]["score"] == float(table["score"][0]) and lines[0]["decision"] in (0, 1)
    assert lines[0]["error"] is None and lines[0]["picture"] == "overlays/a.png" and lines[0]["regions"] == 1
    assert lines[1]["score"] is None and "cannot be read" in lines[1]["error"] + table["error"][1]
    assert f"written to {tmp_path / 'out'}" in said.err and "Traceback" not in said.err

    (folder / "b.png").write_bytes(picture)
    (folder / "a.png").rename(folder / "c.png")
    first = (tmp_path / "out" / "predictions.csv").read_text()
    drawn = (tmp_path / "out" / "overlays" / "a.png").read_bytes()

    def come_again():
        Image.new("RGB", (48, 40)).save(folder / "a.png")

    words = ["--stream", "csv", "--regions", "--pixel_threshold", -1]
    assert watch(*words, steps=[None, come_again, None, None]) == 0
    text = (tmp_path / "out" / "predictions.csv").read_text()
    assert text.startswith(first) and capsys.readouterr().out == first.splitlines(keepends=True)[0] + text[len(first) :]
    table = rows(tmp_path)
    assert table["path"].tolist()[2:] == [str(folder / name) for name in ("b.png", "c.png", "a.png")]
    assert table["picture"].tolist()[2:] == [f"overlays/{name}.png" for name in ("b", "c", "a_2")]
    assert (tmp_path / "out" / "overlays" / "a.png").read_bytes() == drawn
    assert pd.read_csv(tmp_path / "out" / "regions.csv")["image"].tolist() == [table["path"][i] for i in (0, 2, 3, 4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]

    words = ["predict", str(model), str(folder / "b.png"), "--out", str(tmp_path / "alone"), "--map", "none"]
    main.main(words, standalone_mode=False)
    assert pd.read_csv(tmp_path / "alone" / "predictions.csv")["score"][0] == float(table["score"][2])


def test_a_watching_process_ends_cleanly(model, folder, tmp_path, picture):
    process = Command(["predict", model, "--watch", folder, "--stream", "csv", "--map", "none"], tmp_path)
    wait_for((tmp_path / "predictions" / "predictions.csv").is_file, process)
    (folder / "new.png").write_bytes(picture)
    wait_for(lambda: "new.png" in (tmp_path / "predictions" / "predictions.csv").read_text(), process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output == (tmp_path / "predictions" / "predictions.csv").read_text()
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["predictions.csv"]


def test_a_table_that_grows_at_its_place(tmp_path):
    path = tmp_path / "t.csv"
    with appending(path, "a,b\n") as write:
        assert path.read_text() == "a,b\n"
        write("1,2\n")
        assert path.read_bytes() == b"a,b\n1,2\n"
    with path.open("a") as file:
        file.write("3," + "x" * 70_000)  # half of a row, of a process that was killed
    with appending(path, "a,b\n") as write:
        write("é,4\n")
        write("5,6\n")
        assert path.read_bytes() == "\ufeffa,b\n1,2\né,4\n5,6\n".encode()
        path.rename(tmp_path / "moved.csv")
        write("7,8\n")
    with appending(path, "a,b\n") as write:
        write("9,é\n")
    assert path.read_bytes() == "\ufeffa,b\n7,8\n9,é\n".encode()
    with pytest.raises(UsageError, match=r"t.csv' has other columns than the rows .*: choose another --out"):
        appending(path, "a,b,c\n").__enter__()


def test_a_row_is_written_whole_or_not_at_all(tmp_path):
    resource = pytest.importorskip("resource")
    path, limits = tmp_path / "t.csv", resource.getrlimit(resource.RLIMIT_FSIZE)
    with appending(path, "a,b\n") as write:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6, limits[1]))
        try:
            with pytest.raises(DataError, match=r"t.csv' cannot be written: File too large"):
                write("1,2\n")  # two bytes of it are
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_text() == "a,b\n"
        write("1,2\n")
    assert path.read_text() == "a,b\n1,2\n"


def test_latency_and_warm_up(model, mvtec, tmp_path, monkeypatch, capsys):
    """The columns are added, no score changes, and the same again takes the place of the earlier predictions."""
    batches = []
    predicted = Detector.predict_read
    monkeypatch.setattr(Detector, "predict_read", lambda self, read: batches.append(len(read)) or predicted(self, read))
    line = ["predict", model, mvtec / "bolt" / "test", "--map", "none"]

    def call(*words):
        assert main.main([str(word) for word in [*line, *words]], standalone_mode=False) == 0

    call("--out", tmp_path / "plain", "--stream", "csv")
    plain = pd.read_csv(tmp_path / "plain" / "predictions.csv")
    assert capsys.readouterr().out == (tmp_path / "plain" / "predictions.csv").read_text()
    assert batches == [4]
    for _ in range(2):
        call("--out", tmp_path / "timed", "--latency", "--warm_up", 3, "--batch_size", 2)
    timed = pd.read_csv(tmp_path / "timed" / "predictions.csv")
    assert batches == [4, *[2] * 6]  # those of the images are timed
    assert timed.columns.tolist() == [*plain.columns, "decode_ms", "embed_ms", "score_ms"]
    np.testing.assert_allclose(timed["score"], plain["score"], atol=1e-5)
    parts = timed[["decode_ms", "embed_ms", "score_ms"]]
    assert (parts > 0).all(axis=None) and (
        parts[["embed_ms", "score_ms"]].sum(axis=1) <= 1000 * timed["seconds"] + 1
    ).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "timed"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.png"], "--watch stands in the place of PATH: leave out it or 'x.png'"),
        (["--batch_size", "2"], "--batch_size is of many images"),
        (["--num_workers", "2"], "--num_workers is of many images"),
        (["--regions", "--contours", "coco"], "--contours coco is one file of all images"),
    ],
)
def test_what_does_not_go_with_watch_is_refused(watch, words, message):
    with pytest.raises(UsageError, match=message):
        watch(*words)
