"""Regions of predict: where they lie in the original image, their masks and contours, and the files they are in."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw

import main
from datasets import ImageTransform
from detection import Detector, Prediction
from errors import UsageError
from experiment.use.maps import full_size
from experiment.use.regions import find_regions, outlines

WHOLE = ImageTransform(8, 8, resize_mode="square")


def call(*words):
    return main.main([str(word) for word in words], standalone_mode=False)


def enclosed(ring):
    """Twice the signed area of a closed line, by the shoelace formula."""
    x, y = ring.T.astype(int)
    return int((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
def test_outlines_run_along_the_edges_of_pixels(share):
    """The areas of random regions with holes are theirs, and filling an outline gives the region with its holes."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = cv2.connectedComponents((rng.uniform(size=(9, 13)) < share).astype(np.uint8), connectivity=8)[1]
        for number in range(1, labels.max() + 1):
            mask = labels == number
            outer, *holes = outlines(mask)
            areas = [enclosed(ring) for ring in (outer, *holes)]
            assert sum(areas) == areas[0] + sum(areas[1:]) and abs(sum(areas)) == 2 * mask.sum()
            assert all(area * areas[0] < 0 for area in areas[1:])
            filled = Image.new("L", (130, 90))
            for ring, colour in ((outer, 1), *((hole, 0) for hole in holes)):
                ImageDraw.Draw(filled).polygon([(10 * x, 10 * y) for x, y in ring.tolist()], fill=colour)
            np.testing.assert_array_equal(np.asarray(filled)[5::10, 5::10] > 0, mask)
    square = outlines(np.ones((3, 2), bool))[0]
    assert sorted(square.tolist()) == [[0, 0], [0, 3], [2, 0], [2, 3]]  # no corner twice, none between others


def test_what_is_said_of_a_region():
    scores = np.full((8, 8), 0.0, np.float32)
    scores[1:3, 2:6] = 2
    scores[2, 5] = 4
    scores[7, 0], scores[6, 1] = 9, 1.5  # they touch at a corner
    scores[4, 7] = 1  # not above the threshold
    (first, second) = find_regions(scores, WHOLE, 1.0, 1).found
    assert first.box == (0, 6, 2, 2) and first.area == 2 and first.highest == 9 and first.touches_border
    assert second.box == (2, 1, 4, 2) and second.area == 8 and not second.touches_border
    assert second.mean == pytest.approx(18 / 8) and second.share == pytest.approx(100 * 8 / 64)
    assert second.centre == (4, 2)
    found = find_regions(scores, WHOLE, 1.0, 3)
    assert found.found == [second] and set(np.unique(found.labels)) == {0, 1} and found.mask.sum() == 8
    assert find_regions(scores, WHOLE, 9.0, 1).found == []


def test_the_border_is_that_of_the_crop():
    scores = np.full((10, 10), np.nan, np.float32)
    scores[1:9, 1:9] = 0
    places = [(1, 4), (4, 1), (8, 4), (4, 8), (5, 4)]  # x and y
    for highest, (x, y) in enumerate(places):
        scores[y, x] = 9 - highest
        found = find_regions(np.where(scores == 9 - highest, scores, 0 * scores), ImageTransform(10, 8), 1.0, 1).found
        assert [own.touches_border for own in found] == [highest < 4] and found[0].box == (x, y, 1, 1)


@pytest.mark.parametrize(
    ("transform", "size"),
    [
        (ImageTransform(40, 32), (120, 80)),
        (ImageTransform(40, 32), (33, 70)),
        (ImageTransform(40, 32, resize_mode="square"), (120, 50)),
    ],
)
def test_coordinates_are_those_of_the_original_image(transform, size):
    """A bright square is found where the image has it, to a pixel of the network's, through resizing and cropping."""
    width, height = size
    left, top, side = int(0.45 * width), int(0.4 * height), min(size) // 4
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top : top + side, left : left + side] = 255
    seen = transform.pixels(Image.fromarray(pixels))[0].float().numpy()
    regions = find_regions(full_size(seen, transform, size), transform, 127.0, 1)
    (region,) = regions.found
    scale = max(width, height) / 32 if transform.resize_mode == "square" else min(size) / 40
    assert np.abs(np.array(region.box) - [left, top, side, side]).max() <= scale + 1
    assert np.abs(np.array(region.centre) - [left + side / 2, top + side / 2]).max() <= scale + 0.5
    assert not region.touches_border and regions.seen(32).shape == (32, 32)
    again = find_regions(full_size(255 - seen, transform, size), transform, 127.0, 1).found[0]
    window = transform.window(width, height)
    assert again.touches_border and again.box == (*window[:2], window[2] - window[0], window[3] - window[1])
    assert again.share <= 100 * again.area / (width * height) + 1e-9


@pytest.fixture
def squares(monkeypatch, tmp_path):
    """Images, and a detector that scores a square with a hole, and a single pixel, in all but dark ones."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, level in (("a.png", 200), ("dark.png", 0), ("=b.png", 90)):
        Image.fromarray(np.full((40, 60, 3), level, np.uint8)).save(folder / name)

    def predicted(_, images):
        maps = torch.zeros(len(images), 32, 32)
        maps[:, 8:16, 8:16] = 5.0
        maps[:, 11:13, 11:13] = 0.0
        maps[:, 24, 24] = 7.0
        maps *= (images.flatten(1).float().mean(1) > 0)[:, None, None]
        return Prediction(maps.flatten(1).amax(1), maps)

    monkeypatch.setattr(Detector, "predict_read", predicted)
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_files_of_regions_agree(squares, model, tmp_path, capsys):
    """And the same command again replaces them, but none of the user's."""
    words = ["predict", model, squares, "--regions", "--pixel_threshold", "3", "--region_masks", "--batch_size", "2"]
    for _ in range(2):
        assert call(*words, "--contours", "geojson", "--out", "one") == 0
        assert call(*words, "--contours", "coco", "--out", "two", "--full_size", "--min_area", "3") == 0
    assert not list(tmp_path.glob("*.old*"))
    table = pd.read_csv("one/predictions.csv").set_index(pd.Series(["=b", "a", "dark"]))
    regions = pd.read_csv("one/regions.csv")
    assert table["regions"].tolist() == [2, 2, 0] and len(regions) == 4
    assert list(regions) == (
        "image region left top width height area area_percent centre_x centre_y mean_score highest_score touches_border"
    ).split(" ")
    assert regions["region"].tolist() == [1, 2] * 2 and (regions["highest_score"].diff()[1::2] < 0).all()
    assert regions["image"].tolist() == [str(squares / name) for name in ("=b.png", "=b.png", "a.png", "a.png")]
    mask = cv2.imread(f"one/{table.loc['a', 'mask']}", cv2.IMREAD_UNCHANGED)
    assert mask.shape == (40, 60) and set(np.unique(mask)) == {0, 255}
    assert (mask > 0).sum() == regions["area"][2:].sum()
    for row in regions[2:].itertuples():
        part = mask[row.top : row.top + row.height, row.left : row.left + row.width] > 0
        assert part.sum() == row.area and part.any(0).all() and part.any(1).all()
    assert not cv2.imread(f"one/{table.loc['dark', 'mask']}", cv2.IMREAD_UNCHANGED).any()
    features = json.loads(Path("one", table.loc["a", "contours"]).read_text())["features"]
    assert [own["properties"]["area"] for own in features] == regions["area"][2:].tolist()
    shapes = [[np.array(ring) for ring in own["geometry"]["coordinates"]] for own in features]
    assert [len(rings) for rings in shapes] == [1, 2]
    assert all((ring[0] == ring[-1]).all() for rings in shapes for ring in rings)
    assert [abs(sum(enclosed(ring[:-1]) for ring in rings)) / 2 for rings in shapes] == regions["area"][2:].tolist()
    assert json.loads(Path("one", table.loc["dark", "contours"]).read_text())["features"] == []
    content = json.loads(Path("two/coco.json").read_text())
    large = regions[regions["area"] >= 3]
    assert [own["area"] for own in content["annotations"]] == large["area"].tolist()
    assert [own["bbox"] for own in content["annotations"]] == large[["left", "top", "width", "height"]].values.tolist()
    assert [(own["id"], own["width"], own["height"]) for own in content["images"]] == [(i, 60, 40) for i in (1, 2, 3)]
    assert {own["image_id"] for own in content["annotations"]} == {1, 2}
    assert [own["id"] for own in content["annotations"]] == [*range(1, len(large) + 1)]
    assert Image.open("two/overlays/a.png").size == (180, 62) and Image.open("one/overlays/a.png").size == (96, 54)
    for drawn, has_some in (("a", True), ("dark", False)):
        overlay = np.asarray(Image.open(f"two/overlays/{drawn}.png"))[22:, 120:]
        assert ((overlay == (0, 255, 0)).all(axis=2)).any() == has_some
    capsys.readouterr()
    assert call("predict", model, "one", squares / "a.png", "--map", "none", "--out", "three") == 0
    assert "6 pictures that predict or a run drew are left out" in capsys.readouterr().err  # overlays and masks
    Path("one/regions.csv").write_text("image,mine\n")
    with pytest.raises(UsageError, match=r"holds 'regions\.csv', which predict did not write"):
        call(*words, "--out", "one")


def test_an_interrupted_predict_leaves_valid_files(squares, model, monkeypatch):
    from experiment.use import predict as predict_module

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict_module, "captioned", stopped)
    words = ["predict", model, squares, "--regions", "--pixel_threshold", "3", "--contours", "coco", "--out", "out"]
    with pytest.raises(BaseException):  # noqa: B017 - as click ends it
        call(*words)
    assert json.loads(Path("out/coco.json").read_text())["images"] == []
    assert len(pd.read_csv("out/regions.csv")) == 0 and not list(Path("out").glob(".*partial"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--min_area", "3"], "--min_area is of regions: give --regions too"),
        (["--pixel_threshold", "3", "--region_masks"], "--pixel_threshold, --region_masks is of regions"),
        (["--contours", "coco"], "--contours is of regions"),
    ],
)
def test_what_is_of_regions_alone(model, squares, words, message):
    with pytest.raises(UsageError, match=message):
        call("predict", model, squares, *words)
    assert not Path("predictions").exists()
