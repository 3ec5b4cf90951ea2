"""Users are told of images that are darker or brighter than those that a threshold comes from."""

import functools
import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import SMALL_DATA, make_mvtec
from PIL import Image
from scipy.stats import betabinom
from test_trained import run

import main
from datasets import BatchLoader, ImageDataset, ImageTransform, Sample, brightness_of, read_image
from detection.brightness import Outside, chance, like
from methods import load


def test_it_is_the_mean_grey_value():
    """As OpenCV's grey image has it but for rounding, of pixels in either order; a row has none."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    pixels[:20, :, 0] = 0
    expected = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).mean()
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    assert brightness_of(image) == brightness_of(image.contiguous()) == pytest.approx(expected, abs=0.1)
    assert brightness_of(torch.zeros(5)) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_readers_take_it_in_order(mvtec, workers):
    samples = [Sample(path, (), False, "bolt", "good") for path in sorted(mvtec.glob("*/train/good/*.png"))]
    transform = ImageTransform(40, 32)
    loader = BatchLoader(ImageDataset(samples, transform), 3, workers)
    for _ in range(2):
        images = torch.cat([batch.images for batch in loader])
        assert loader.brightness.tolist() == [brightness_of(own) for own in images]
    rows = [Sample(Path("t.csv"), (), False, "t", "good", values=np.zeros(3, np.float32))] * 2
    loader = BatchLoader(ImageDataset(rows, transform), 2)
    list(loader)
    assert loader.brightness.shape == (0,)


@pytest.mark.parametrize("n", [2, 5, 50])
def test_as_many_new_images_lie_within(n):
    """With 95 % or a little more, whatever their number, as far as brightness is normally distributed."""
    draws = np.random.default_rng(0).normal(150, 12, (1500, 2, n))
    within = [low <= new.min() and new.max() <= high for old, new in draws for low, *_, high in [like(old, 0.95)]]
    assert 0.94 <= np.mean(within) <= 0.98


def test_the_range_holds_all_images_and_a_grey_level():
    assert like(np.full(9, 100.0), 0.95) == (99, 99, 101, 101)
    assert like(np.array([100.0]), 0.95) is None and like(np.empty(0), 0.95) is None
    lowest, low, high, highest = like(np.array([10.0, *[100.0] * 1000]), 0.95)
    assert lowest == 10 and 98 < low < 99 and 100 < high < 101 and 100 < highest < 120
    assert like(np.arange(100.0)[::-1], 0.95)[1:3] == (4, 95)


def test_what_is_said_of_them():
    outside = Outside(90.26, 95, 105, 110, 50).with_images([90.25, 91, 80]).with_images(np.array([110.5]))
    assert outside == Outside(90.26, 95, 105, 110, 50, darker=2, dark=3, bright=1, brighter=1, images=4)
    assert "Darker or brighter than" in outside.sentence("images")
    assert "(mean grey value below 90.3 or above 110.0): 2 and 1 of 4 images. " in outside.sentence("images")
    assert "value above 110.0): 1 of 1 photos. " in Outside(90, 95, 105, 110, 50).with_images([111]).sentence("photos")
    assert Outside(90, 95, 105, 110, 50).with_images([90, 110]).sentence("images") == ""


def test_of_a_single_image_it_is_said_too():
    outside = Outside(90, 95, 105, 110, 50)
    assert [outside.side_of(own) for own in (89.9, 90, 110, 110.1)] == ["darker", None, None, "brighter"]


def test_single_images_are_no_other_light():
    """Some beyond the range are told of, but what is promised holds for the others; many mean that it does not."""
    outside = Outside(90, 95, 105, 110, 50)
    alone = outside.with_images([80, *[100] * 99])
    assert alone.sentence("images") and not alone.is_other_light
    assert outside.with_images([80] * 40).is_other_light and outside.with_images([106] * 40).is_other_light
    assert not outside.is_other_light


def told(known, new):
    return Outside(*like(known, 0.95), len(known)).with_images(new).sentence("images")


def test_images_that_all_lie_at_one_end_are_said():
    """Values like those of MVTec AD's screw: each of them would be like the others, and all of them are not."""
    known = np.array([170.3, *np.random.default_rng(0).normal(184.2, 5.3, 318).clip(170.4, 199.7), 199.8])
    new = np.linspace(168.2, 173.3, 41)
    lowest, low, _, highest = like(known, 0.95)
    assert lowest < 168 and 173.3 < low < 178
    assert told(known, new).startswith(
        "Darker on the whole than the images that the model's threshold comes from (mean grey value below "
        f"{low:.1f}, where at most 5 % of those lie): 41 of 41 images. It promises nothing for them, "
        "and good ones may all be called anomalous: train with"
    )
    assert "Brighter on the whole than" in told(-known, -new) and "(mean grey value above -" in told(-known, -new)
    assert f"below {low:.1f}, where at most 5 % of those lie or above {highest:.1f}): 41 and 1 of 42 images" in told(
        known, [*new, 220]
    )
    assert "41 of 42 images" in told(known, [*new[:-1], 0, 184]) and "on the whole" in told(known, [*new[:-1], 0, 184])
    assert (
        f"Darker than the images that the model's threshold comes from (mean grey value below {lowest:.1f}): 41"
        in told(known, [0.0] * 41)
    )
    assert told(known, new[:2]) == "" != told(known, new[:3])


@pytest.mark.parametrize(("known", "new"), [(2, 60), (19, 30), (50, 100), (320, 41)])
def test_images_like_the_others_are_seldom_said(monkeypatch, known, new):
    """However brightness is distributed; two of a thousand, and so many where a quantile is of few images too."""
    monkeypatch.setattr("detection.brightness.chance", functools.cache(chance))  # of few numbers, and often
    draws = np.random.default_rng(0).exponential(40, (1000, known + new))
    assert sum("on the whole" in told(own[:known], own[known:]) for own in draws) < 10


@pytest.mark.parametrize("known", [2, 32, 320])
def test_chance_is_beta_binomial(known):
    rank = math.ceil(known / 20)
    for images in (1, 41, 500):
        counts = np.unique(np.linspace(0, images, 12).astype(int))
        expected = betabinom.sf(counts - 1, images, rank, known + 1 - rank)
        assert [chance(int(own), images, known) for own in counts] == pytest.approx(expected, abs=6e-5)


CHANGING = [*SMALL_DATA, "--augment", "--brightness", "0.5"]


@pytest.fixture(scope="module")
def darkened(tmp_path_factory):
    """A tree whose normal test images are darker than all others, and runs on it; tests must not change them."""
    folder = tmp_path_factory.mktemp("darkened")
    root = make_mvtec(folder / "data", ["bolt"], test=3)
    for path in sorted(root.glob("bolt/test/good/*.png"))[1:]:
        Image.fromarray((0.6 * np.asarray(Image.open(path))).astype(np.uint8)).save(path)
    words = ["--precision", "fp32", "--seed", "0", "--seed", "1"]
    return SimpleNamespace(
        root=root,
        words=words,
        folder=folder,
        kept=run(folder, ["mvtec", root], *words, name="kept"),
        off=run(folder, ["mvtec", root], *words[:4], "--feature_bank", "off", name="off", flags=CHANGING),
    )


def model_of(folder):
    return min(folder.rglob("model.json")).parent


def described(folder, name):
    return json.loads((model_of(folder) / f"{name}.json").read_text())


NOTE = (
    "2 of 3 normal test images of mvtec_bolt. It promises nothing for them, and good ones may all be called anomalous: "
    "train with --match_light"
)


def test_a_run_keeps_what_is_normal_and_says_what_is_not(darkened, capsys):
    """The same with a bank, and without one where training images change; with --test again; of two seeds once."""
    known, new = (
        np.array([brightness_of(ImageTransform(40, 32).pixels(read_image(own))) for own in darkened.root.glob(paths)])
        for paths in ("bolt/train/*/*.png", "bolt/test/good/*.png")
    )
    bounds = like(known, 0.95)
    expected = asdict(Outside(*bounds, len(known)).with_images(new))
    for folder in (darkened.kept, darkened.off):
        assert described(folder, "model")["thresholds"]["brightness"] == pytest.approx(list(bounds))
        assert described(folder, "job")["outside"] == pytest.approx(expected)
    for name, word in (("kept", "--test"), ("kept", ""), ("off", "--test")):
        words = darkened.words if name == "kept" else [*darkened.words[:4], "--feature_bank", "off"]
        flags = SMALL_DATA if name == "kept" else CHANGING
        run(darkened.folder, ["mvtec", darkened.root], *words, *filter(None, [word]), name=name, flags=flags)
        assert capsys.readouterr().err.count(NOTE) == 1
    assert load(model_of(darkened.kept)).thresholds.brightness == pytest.approx(bounds)


def test_the_report_says_it_beside_the_threshold(darkened, tmp_path, capsys):
    main.main(["report", str(darkened.kept), "--out", str(tmp_path / "page.html")], standalone_mode=False)
    assert capsys.readouterr().err.count(NOTE) == 1
    assert (tmp_path / "page.html").read_text().count(NOTE) == 2  # seeds


@pytest.mark.parametrize("limit", [0, 1])  # of chance: never another light, and always
def test_the_report_promises_nothing_in_another_light(limit, darkened, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(darkened.kept, tmp_path / "kept")
    for path in folder.rglob("model.json"):
        path.write_text(path.read_text().replace("training images", "held-out normal images"))
    monkeypatch.setattr("detection.brightness.CHANCE", limit)
    main.main(["report", str(folder), "--out", str(tmp_path / "page.html")], standalone_mode=False)
    rows = [line for line in capsys.readouterr().out.splitlines() if "held-out normal images" in line]
    assert len(rows) == 2  # seeds
    for row in rows:
        assert row.split()[-2:] == (["-", "-"] if limit else ["20.0", "52.7"])


def test_predict_says_it_unless_the_model_does_not_know(darkened, tmp_path, capsys):
    folder = model_of(darkened.off)
    words = ["predict", str(folder), str(darkened.root / "bolt/test/good"), "--map", "none", "--out"]
    main.main([*words, str(tmp_path / "new"), "--batch_size", "2"], standalone_mode=False)
    said = capsys.readouterr().err
    assert ": 2 of 3 images. It promises nothing for them" in said
    assert "memory bank). In the threshold's own light: How many new normal images" in said
    content = described(darkened.off, "model")
    del content["thresholds"]["brightness"]
    kept = (folder / "model.json").read_text()
    try:
        (folder / "model.json").write_text(json.dumps(content))
        main.main([*words, str(tmp_path / "old")], standalone_mode=False)
    finally:
        (folder / "model.json").write_text(kept)
    said = capsys.readouterr().err
    assert "mean grey value" not in said and "own light" not in said
    tables = [(tmp_path / name / "predictions.csv").read_text().splitlines()[0] for name in ("new", "old")]
    assert tables == ["path,score,decision,percentile,p_value,seconds,error,picture,map"] * 2
