"""main.py figure: images with masks and maps, mean ranks, and AUROC against time, as files for a paper."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_compared_runs import like, make  # noqa: F401 - fixtures
from test_cost import COST

import main
from errors import DataError, UsageError
from experiment.config import FigureConfig, job_names
from experiment.record.cost import write_cost
from experiment.record.read import read_run
from experiment.show.comparison import Contender
from experiment.show.figure_charts import draw_cost, draw_ranks, joined, milliseconds
from experiment.show.figure_images import draw_images
from methods import load
from metrics.significance import auroc_interval, critical_difference, placements

MM = 72 / 25.4  # points


@pytest.fixture
def runs(model, tmp_path):
    """Two finished runs of one class with two anomalous images: a real one and its copy."""
    folder = model.parents[2]
    return [shutil.copytree(folder, tmp_path / name) for name in ("one", "two")]


def figure(*words):
    main.main(["figure", *map(str, words)], standalone_mode=False)


def change(path, **values):
    """Change entries of a JSON file, those of inner ones by a name such as thresholds__pixel."""
    content = json.loads(path.read_text())
    for name, value in values.items():
        *outer, last = name.split("__")
        own = content
        for one in outer:
            own = own[one]
        own[last] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("width", "mm"), [("one", 85), ("two", 175)])
def test_a_file_has_text_and_the_width_of_columns(runs, tmp_path, width, mm):
    for name in ("a.svg", "b.svg"):
        figure(*runs, "--out", tmp_path / name, "--width", width)
    svg = (tmp_path / "a.svg").read_text()
    assert svg == (tmp_path / "b.svg").read_text()
    assert float(re.search(r'width="([\d.]+)pt"', svg)[1]) == pytest.approx(mm * MM, abs=2)
    said = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"image", "mask", "one", "two", "bolt, crack"} <= set(said)
    assert "highest pixel score of a detector" in " ".join(said)


@pytest.mark.parametrize("suffix", ["pdf", "png"])
def test_other_files_keep_their_bytes_and_yield_to_a_new_figure(runs, tmp_path, suffix):
    out = tmp_path / f"figure.{suffix}"
    contents = []
    for _ in range(2):
        figure(runs[0], "--out", out, "--rows", 1)
        contents.append(out.read_bytes())
    assert contents[0] == contents[1] and contents[0][:4] in (b"%PDF", b"\x89PNG")
    if suffix == "png":
        assert Image.open(out).size[0] == pytest.approx(175 / 25.4 * 300, abs=10)


def test_rows_are_images_and_columns_are_maps(runs):
    """Maps in the colours of their range, where the network sees the image; the worst image is first."""
    records = [read_run(folder) for folder in runs]
    config = FigureConfig(tuple(runs))
    drawn = draw_images(config, records)
    predictions = records[0].predictions(records[0].jobs[0]).query("label == 1").sort_values("score")
    model = load(runs[0] / records[0].jobs[0].folder)
    root = json.loads((runs[0] / "config.json").read_text())["dataset"]["data_path"]
    cells = drawn.axes[:8]
    assert [own.get_title() for own in cells[:4]] == ["image", "mask", "one", "two"]
    low, high = model.description.map_range
    for row, name in enumerate(predictions["image"]):
        image, mask, *maps = cells[4 * row : 4 * row + 4]
        pixels = np.asarray(Image.open(f"{root}/{name}"))
        assert (np.asarray(image.images[0].get_array()) == pixels).all()
        bright = np.nonzero(pixels.min(2) == 250)
        assert (np.nonzero(mask.images[0].get_array().filled(0)) == np.array(bright)).all()
        expected = (model.predict([f"{root}/{name}"]).maps[0].numpy() - low) / (high - low)
        for own in maps:
            shown = own.images[0]
            assert np.asarray(shown.get_array()) == pytest.approx(np.clip(expected, 0, 1), abs=1e-6)
            left, top, right, bottom = model.transform.window(48, 48)
            assert shown.get_extent() == [left, right, bottom, top] and own.get_xlim() == (0, 48)
    best = draw_images(FigureConfig(tuple(runs), images="best", rows=1), records)
    assert (np.asarray(best.axes[0].images[0].get_array()) == pixels).all()
    assert len(draw_images(FigureConfig((runs[0],), rows=1), records[:1]).axes) == 4


def test_images_that_a_file_names(runs, tmp_path):
    records, names = [read_run(runs[0])], tmp_path / "names.txt"
    names.write_text("bolt/test/good/001.png\n\nbolt/test/crack/000.png\n")
    drawn = draw_images(FigureConfig((runs[0],), images=str(names)), records)
    assert [own.get_ylabel() for own in drawn.axes if own.get_ylabel()] == ["bolt, good", "bolt, crack"]
    names.write_text("bolt/test/good/001.png\nbolt/test/good/009.png\n")
    with pytest.raises(UsageError, match=r"names.txt: 'bolt/test/good/009.png' is no test image of mvtec_bolt"):
        draw_images(FigureConfig((runs[0],), images=str(names)), records)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "figure.jpg"], "--out figure.jpg: expected a name that ends in .pdf, .svg, .png"),
        (["--out", "photo.png"], "'photo.png' is there already and no figure of this command: give another --out"),
        (["--ranks", "--cost"], "--ranks and --cost are two figures"),
        (["--ranks", "--rows", "2"], "--rows is of images, which --ranks draws none of"),
        (["--cost", "-d", "mvtec_bolt"], "-d is of images, which --cost draws none of"),
        (["--images", "nicest"], "--images nicest: expected worst, best, random, or a file of names"),
        (["-d", "mvtec_nut"], "-d mvtec_nut: expected a class that all runs have, such as mvtec_bolt"),
        (["--ranks"], "--ranks needs three runs or more on the same two classes or more, not 2 and 1"),
        (["--cost"], "mvtec_bolt' does not say how long an image took, as of earlier versions"),
    ],
)
def test_mistakes(runs, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(b"mine")
    next(runs[0].rglob("cost.json")).unlink()
    with pytest.raises(UsageError, match=re.escape(message)):
        figure(*runs, *words)
    assert (tmp_path / "photo.png").read_bytes() == b"mine"


def test_runs_without_maps_or_data(runs):
    model = next(runs[1].rglob("model.json"))
    change(runs[0] / "config.json", dataset__data_path="/nowhere")
    with pytest.raises(DataError, match=r"the data of '.*one' are not there any more: '/nowhere'"):
        draw_images(FigureConfig((runs[0],)), [read_run(runs[0])])
    change(model, map_range=None, thresholds__pixel=None)
    with pytest.raises(UsageError, match="figure: two has no anomaly maps, for net draws none: leave it out"):
        draw_images(FigureConfig(tuple(runs)), [read_run(folder) for folder in runs])


def test_cost_of_one_of_several_backbones():
    jobs = job_names([("mvtec", ["a"])], ["x", "y"], [0])
    known = {job: replace(COST, ms_from_file=ms) for job, ms in zip(jobs, (3, 8), strict=True)}
    record = SimpleNamespace(cost_of=known)
    assert milliseconds(Contender("y", record, "y", {"mvtec_a": jobs[1:]}), ["mvtec_a"]) == 8


def test_bars_join_what_chance_may_tell_apart():
    rising = np.array([1.0, 1.8, 2.1, 3.5, 4.2])
    assert joined(rising, 0.9) == [(0, 1), (1, 2), (3, 4)]
    assert joined(rising, 1.2) == [(0, 2), (3, 4)]
    assert joined(rising, 0.1) == [] and joined(rising, 9) == [(0, 4)]


def test_ranks(make):  # noqa: F811
    runs = [make(name, gap, ["a", "b", "c"], noise=gap) for name, gap in (("x", 0), ("y", 9), ("z", 2))]
    drawn = draw_ranks([read_run(folder) for folder in runs], "two")
    (axes,) = drawn.axes
    said = {text.get_text().strip(): text.get_position() for text in axes.texts}
    assert f"critical difference {critical_difference(3, 3):.2f} (3 classes)" in said
    assert {"y  1.00", "z  2.00", "x  3.00"} <= set(said)
    assert said["y  1.00"][0] < said["x  3.00"][0] and axes.xaxis_inverted()  # the best on the right


def test_cost(make):  # noqa: F811
    runs = [make("slow", 2, ["a", "b"]), make("fast", 1, ["a"], noise=2)]
    for folder, ms in zip(runs, (40.0, 5.0), strict=True):
        for name, own in (("a", ms), ("b", 900.0)):
            if (model := folder / f"models/0/mvtec_{name}").is_dir():
                write_cost(model, replace(COST, ms_from_file=own))
    drawn = draw_cost([read_run(folder) for folder in runs], "one")
    (axes,) = drawn.axes
    assert axes.get_xscale() == "log" and [text.get_text() for text in axes.texts] == ["slow", "fast"]
    for points, folder, ms in zip(axes.collections, runs, (40.0, 5.0), strict=True):
        record = read_run(folder)
        ((x, y),) = points.get_offsets()
        assert (x, y) == pytest.approx((ms, 100 * record.results_of[record.jobs[0]].row["image_auroc"]))
    table = record.predictions(record.jobs[0])
    ends = axes.lines[-1].get_ydata()
    assert ends == pytest.approx(100 * np.array(auroc_interval(placements(table["label"], table["score"]))))
    path = runs[1] / "models/0/mvtec_a/cost.json"
    path.write_text("{}")
    with pytest.raises(DataError, match=r"cost.json' cannot be read as what a model costs"):
        draw_cost([read_run(folder) for folder in runs], "one")
