"""Masks of interest: how they are read and carried to the network, and that nothing outside them is seen."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from conftest import SMALL, SMALL_DATA, make_mvtec, small
from PIL import Image

import backbones
import main
import metrics
from datasets import (
    DATASETS,
    ImageDataset,
    ImageTransform,
    RandomTransform,
    Sample,
    read_image,
    unpacked,
    with_interest,
)
from datasets.interest import pixels_of_interest, read_interest
from detection import Mapped, Prediction
from detection.anomaly_map import mean_of_highest
from detection.interest import BLANK, blanked, cells_inside, lowest_outside
from detection.moments import Moments
from detection.normal_scores import normal_scores
from errors import DataError, UsageError
from experiment.dataset_config import DatasetConfig
from experiment.record.inputs import Inputs
from experiment.serve.answers import Asked, answer
from experiment.use.finding import Finder
from experiment.use.maps import full_size
from methods import DETECTORS, load
from metrics import count_pixels

RNG = np.random.default_rng(0)
REFUSED = ("frequency", "multimodal")


def call(*words):
    return main.main([str(word) for word in words], standalone_mode=False)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def left(height=48, width=48, share=0.75):
    """A mask whose left part is white."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, : int(share * width)] = 255
    return mask


# From the file to the network


@pytest.mark.parametrize(
    ("transform", "size"),
    [
        (ImageTransform(40, 32), (60, 48)),
        (ImageTransform(40, 32), (33, 70)),
        (ImageTransform(32, 32, resize_mode="square"), (120, 50)),
        (ImageTransform(32, 32), (20, 20)),  # made larger
        (ImageTransform(32, 32), (32, 32)),
    ],
)
def test_what_is_inside_depends_on_nothing_outside(transform, size):
    """Through resizing and cropping, to the byte; and little of what is inside is lost."""
    width, height = size
    mask = np.zeros((height, width), bool)
    mask[height // 3 :, : 2 * width // 3] = True
    pixels = RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)
    changed = np.where(mask[..., None], pixels, 255 - pixels)
    one, two = (transform.pixels(Image.fromarray(own), mask) for own in (pixels, changed))
    inside = one[3] == 255
    assert one.shape == (4, 32, 32) and set(one[3].unique().tolist()) == {0, 255} and (one[3] == two[3]).all()
    assert (one[:3, inside] == two[:3, inside]).all() and (one[:3, ~inside] != two[:3, ~inside]).any()
    np.testing.assert_array_equal(transform.interest(mask).numpy(), inside.numpy())
    nearest = transform.nearest(Image.fromarray(np.uint8(mask))) > 0
    assert not (inside.numpy() & ~nearest).any()
    assert nearest.sum() - inside.sum() <= 2 * (nearest.any(0).sum() + nearest.any(1).sum())
    images, interest = unpacked(torch.stack([one, two]))
    first, second = blanked(images, interest)
    assert torch.equal(first, second) and (first[:, ~inside].abs() < 0.01).all()
    assert torch.equal(transform.pixels(Image.fromarray(pixels)), one[:3])


def test_random_changes_move_an_image_and_its_mask_alike():
    mask = np.zeros((48, 48), bool)
    mask[8:30, 20:40] = True
    transform = ImageTransform(48, 48, RandomTransform(rotate_degrees=30, translate=0.2, hflip=0.5, brightness=0.2))
    image = Image.fromarray(np.uint8(mask)[..., None].repeat(3, axis=2) * 250)
    torch.manual_seed(0)
    shown = [transform.pixels(image, mask) for _ in range(8)]
    for own in shown:
        assert ((own[0] > 90) == (own[3] > 0)).float().mean() > 0.96
    assert len({own[3].numpy().tobytes() for own in shown}) == 8
    away = replace(transform, random=RandomTransform(translate=1.0))
    shown = [pixels_of_interest(away, image, mask, "m", "i")[3] for _ in range(20)]
    assert all(own.any() for own in shown)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 127, 128, 255]], np.uint8), [0, 0, 1, 1]),
        (np.array([[0, 32000, 33500, 65535]], np.uint16), [0, 0, 1, 1]),
        (np.array([[[0, 0, 0], [255, 0, 0], [255, 255, 255], [200, 200, 200]]], np.uint8), [0, 0, 1, 1]),
        (np.array([[False, True]]), [0, 1]),
    ],
)
def test_white_is_of_interest(tmp_path, pixels, expected):
    assert read_interest(save(tmp_path / "m.png", pixels)).astype(int).tolist() == [expected]


def test_a_mask_of_another_size_and_the_same_aspect(tmp_path):
    path = save(tmp_path / "half.png", left(24, 24))
    image = save(tmp_path / "i.png", RNG.integers(0, 256, (48, 48, 3)).astype(np.uint8))
    (read, _) = ImageDataset([Sample(image, (), False, "c", "good", path)], ImageTransform(48, 48)).read(0)
    assert (read[3] == torch.from_numpy(left())).all()


# What detectors make of it


def test_scores_outside():
    scores = torch.arange(8.0).view(2, 2, 2)
    inside = torch.tensor([[[True, False], [True, True]], [[False, False], [True, False]]])
    assert lowest_outside(scores, inside).tolist() == [[[0, 0], [2, 3]], [[6, 6], [6, 6]]]
    assert lowest_outside(scores, None) is scores
    assert mean_of_highest(scores, 2, inside).tolist() == [2.5, 6]
    assert mean_of_highest(scores, 3, inside, torch.tensor([1, 3])).tolist() == [3, 6]
    interest = torch.zeros(1, 8, 8, dtype=torch.bool)
    interest[0, 3, 5] = True
    assert cells_inside(interest, (2, 4))[0].nonzero().tolist() == [[0, 2]]
    within = Prediction(torch.zeros(1), torch.ones(1, 8, 8)).within(interest).maps
    assert within.nansum() == 1 and within.isnan().sum() == 63


def test_moments_of_some_rows():
    """As of these alone, at every place; where there are none, no number is lost."""
    rows = torch.randn(30, 3, 2, dtype=torch.float64)
    inside = torch.rand(30, 3) > 0.4
    inside[:, 2] = False
    found = Moments(3, 2, rows.device)
    for i in (0, 10, 20):
        found.add(rows[i : i + 10], inside[i : i + 10])
    for place in (0, 1):
        alone = Moments(1, 2, rows.device)
        alone.add(rows[inside[:, place], place].unsqueeze(1))
        assert torch.allclose(found.mean[place], alone.mean[0])
        assert torch.allclose(found.covariance()[place], alone.covariance()[0])
        assert torch.allclose(found.shrinkage()[place], alone.shrinkage()[0])
    assert (found.covariance()[2] == 0).all() and found.shrinkage()[2] == 0.5


def detector_of(command):
    """A detector in its smallest setting."""
    own = main.main.get_command(None, command)
    config = own.invoke(own.make_context(command, small(command)[1:]))[0]
    (backbone,), kind = config.backbones, DETECTORS[command]
    source = backbones.load(backbone.name, config.backbone_weights)
    return kind(source, backbone.layers, (32, 32), **config.options)


@pytest.mark.parametrize("command", [name for name in SMALL if name not in REFUSED])
def test_a_defect_outside_is_not_seen_and_one_inside_is(command):
    """Not by a byte of scores, and not in maps, which have no values there; training sees nothing of it either."""
    torch.manual_seed(0)
    detector, images = detector_of(command), torch.rand(4, 3, 32, 32) - 0.5
    interest = torch.zeros(4, 32, 32, dtype=torch.bool)
    interest[:, :, :14], interest[:2, 20:] = True, False  # not the same of all
    detector.fit_embeddings(Mapped(lambda own: detector.embed(*own), [(images[i::2], interest[i::2]) for i in (0, 1)]))
    outside, inside = images.clone(), images.clone()
    outside[:, :, 2:8, 20:28], inside[:, :, 8:16, 2:9] = 4, 4
    first, second, third = (detector.predict(own, interest) for own in (images, outside, inside))
    assert torch.equal(first.scores, second.scores) and torch.equal(first.maps.isnan(), ~interest)
    assert torch.equal(first.maps[interest], second.maps[interest])
    assert first.scores.isfinite().all() and (third.scores != first.scores).all()
    with torch.no_grad():
        raw = detector(detector.embed(images), interest).maps
    most = torch.where(interest, raw, -torch.inf).flatten(1).amax(1)
    assert (raw[:, :, 28:].flatten(1).amax(1) <= most + 1e-5).all()  # far from what is inside nothing is high


# Metrics and thresholds


def test_metrics_leave_pixels_out():
    """They are those of the other pixels alone, by regions at full size or not."""
    maps, masks = RNG.normal(size=(5, 12, 16)), np.zeros((5, 12, 16), bool)
    masks[1, 2:5, 3:12], masks[2, 8:, 1:4], masks[3, 3:6, 12:15], masks[4] = True, True, True, True
    partly = maps.copy()
    partly[..., 9:] = np.nan
    regions = np.repeat([3, 0, 1, 2], [own.sum() for own in masks[1:]])
    own = np.repeat([3, 0, 2], [masks[i, :, :9].sum() for i in (1, 2, 4)])
    for all_of, some in ((None, None), (regions, own)):
        found = metrics.pixel_metrics(masks, partly, regions=all_of)
        assert found == metrics.pixel_metrics(masks[..., :9], maps[..., :9], regions=some)
        counted, alone = count_pixels(masks, partly, all_of), count_pixels(masks[..., :9], maps[..., :9], some)
        for one, other in zip(counted[:-1], alone[:-1], strict=True):  # nothing was called
            np.testing.assert_allclose(one, other)
    defects = [(i, masks[i], float(masks[i].sum())) for i in (1, 2, 3, 4)]
    cut = [(i, masks[i, :, :9], float(masks[i, :, :9].sum())) for i in (1, 2, 4)]
    assert metrics.spro(defects, partly) == metrics.spro(cut, maps[..., :9])
    assert math.isnan(metrics.pixel_metrics(masks[3:4], partly[3:4])["auroc"])  # its defect is outside
    assert math.isnan(metrics.pixel_metrics(masks[4:], partly[4:])["auroc"])  # nothing else is inside


@pytest.mark.parametrize("quantile", [0, 0.5, 0.9, 1])
def test_thresholds_are_of_pixels_inside(quantile):
    maps = RNG.normal(size=(6, 8, 8)).astype(np.float32)
    partly = maps.copy()
    partly[:, 5:] = np.nan
    batches = [Prediction(torch.zeros(3), torch.from_numpy(partly[i : i + 3])) for i in (0, 3)]
    expected = np.quantile(maps[:, :5], quantile, method="higher")
    assert normal_scores(batches, 6, quantile)[1] == expected


def test_maps_at_the_images_size():
    transform = ImageTransform(8, 8)
    small_map = np.ones((8, 8), np.float32)
    small_map[:, 5:] = np.nan
    small_map[:, :2] = 3
    found = full_size(small_map, transform, (32, 32))
    np.testing.assert_array_equal(np.isnan(found), np.arange(32) >= 20 + np.zeros((32, 1)))
    assert found[0, 19] == pytest.approx(1) and found[0, 0] == 3  # no NaN, nor any 0, takes part


# The chain


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A class whose last defect lies outside of the mask, and the mask."""
    root = tmp_path_factory.mktemp("interest")
    tree = make_mvtec(root / "data", ["bolt"], train=4, test=2)
    pixels, mask = np.asarray(Image.open(tree / "bolt/test/good/000.png")).copy(), np.zeros((48, 48), np.uint8)
    pixels[10:30, 40:46], mask[10:30, 40:46] = 250, 255
    save(tree / "bolt/test/crack/002.png", pixels)
    save(tree / "bolt/ground_truth/crack/002_mask.png", mask)
    save(root / "mask.png", left())
    for path in (tree / "bolt").rglob("*.png"):
        if "ground_truth" not in path.parts:
            save(root / "masks" / path.relative_to(tree).with_suffix(".bmp"), left())
    return root


CHAIN = ["--precision", "fp32", *small("patchcore"), "dataset", *SMALL_DATA]


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """The folder of a model with one mask for all images."""
    results = tmp_path_factory.mktemp("one")
    call("--results_path", results, *CHAIN, "--mask_of_interest", data / "mask.png", "mvtec", data / "data")
    return next(results.rglob("mvtec_bolt"))


def scores(folder):
    return pd.read_csv(folder / "predictions.csv")["score"].tolist()


def test_a_model_keeps_the_mask_that_is_one_for_all(one, data, tmp_path, monkeypatch, capsys):
    """predict, calibrate, extend, export and Python use it without being told."""
    monkeypatch.chdir(tmp_path)
    assert (read_interest(one / "mask_of_interest.png") == (left() > 0)).all()
    images = data / "data/bolt/test"
    assert call("predict", one, images, "--regions", "--map", "raw", "--full_size", "--pixel_threshold", "-1") == 0
    assert scores(Path("predictions")) == scores(one)
    full = np.load("predictions/maps/crack/002.npy")
    assert np.isnan(full[:, 36:]).all() and not np.isnan(full[6:42, 6:33]).any()
    regions = pd.read_csv("predictions/regions.csv")
    assert (regions["left"] + regions["width"] <= 36).all() and len(regions) == 5
    call("calibrate", one, images / "good", "--bad", images / "crack", "--out", "again")
    assert load("again").mask is not None and load("again").thresholds.source == "fresh normal images"
    call("extend", one, images / "good", "--out", "more")
    assert load("more").mask is not None
    model = load(one)
    paths = sorted(images.rglob("*.png"))
    found = model.predict(paths)
    finder = Finder(model, one, max_pixels=10**6)
    served = finder.find(paths[0], "it")
    assert served.score == pytest.approx(found.scores[0].item(), abs=1e-6) and np.isnan(served.map).any()
    assert answer(finder, served, "it", Asked(map=True))["map"].startswith("data:image/png")
    assert found.maps.isnan().float().mean() > 0.1 and model.thresholds.pixel < found.maps.nan_to_num().max()
    tensors = torch.stack([model.transform.image(read_image(path)) for path in paths])
    assert torch.equal(model.predict(tensors).scores, found.scores)
    call("export", one, "--out", "m.onnx")
    seen = np.stack([model.transform.pixels(read_image(path)).permute(1, 2, 0).numpy() for path in paths])
    exported, maps = onnxruntime.InferenceSession("m.onnx").run(None, {"images": seen})
    np.testing.assert_allclose(exported, found.scores, atol=1e-4)
    np.testing.assert_allclose(maps, found.maps, atol=1e-4)
    shutil.copytree(one, "other")
    save(Path("other/mask_of_interest.png"), left(share=0.5))
    with pytest.raises(DataError, match="is not the mask of interest that the model was trained with"):
        load("other")
    with pytest.raises(UsageError, match="has its own, which is used: leave it out"):
        call("predict", one, images, "--mask_of_interest", data / "mask.png")


def test_a_run_with_a_mask(one, data, capsys):
    """--test gives the same bytes, another mask is told from it, and defects that lie outside are named."""
    results, before = one.parents[5], (one / "predictions.csv").read_bytes()
    words = ["--results_path", results, "--test", *CHAIN, "--mask_of_interest"]
    call(*words, data / "mask.png", "mvtec", data / "data")
    said = capsys.readouterr().err
    assert "masks that lie wholly outside of what is of interest" in said and "crack/002_mask.png')" in said
    assert (one / "predictions.csv").read_bytes() == before
    other = save(data / "other.png", left(share=0.5))
    with pytest.raises(UsageError, match="was trained with mask_of_interest "):
        call(*words, other, "mvtec", data / "data")
    row = pd.read_csv(one.parents[2] / "results.csv").iloc[0]
    assert row["pixel_auroc"] > 0.9 and row["image_auroc"] < 1  # 002 scores as a normal image


def test_a_mask_per_image(one, data, tmp_path, monkeypatch, capsys):
    """Gives the numbers of one that is the same for all; predict is to be told where they are."""
    monkeypatch.chdir(tmp_path)
    masks, images = data / "masks", data / "data/bolt/test"
    call(*CHAIN, "--mask_of_interest", masks, "mvtec", data / "data")
    each = next(Path("results").rglob("mvtec_bolt"))
    assert scores(each) == scores(one) and json.loads((each / "model.json").read_text())["mask_of_interest"] == "each"
    assert not (each / "mask_of_interest.png").exists()
    for words in (["predict", each, images], ["calibrate", each, images], ["extend", each, images / "good"]):
        with pytest.raises(UsageError, match="give --mask_of_interest"):
            call(*words)
    with pytest.raises(UsageError, match="with a mask of interest per image, and an export reads images alone"):
        call("export", each)
    with pytest.raises(UsageError, match="wants a mask of interest of every image, and serve has none: use predict"):
        call("serve", each, "--port", "0")
    own = masks / "bolt/test"
    assert call("predict", each, images, "--mask_of_interest", own, "--out", "all", "--map", "none") == 0
    assert scores(Path("all")) == scores(one)
    fewer = shutil.copytree(own, "fewer")
    Path(fewer, "crack/001.bmp").unlink()
    assert call("predict", each, images, "--mask_of_interest", fewer, "--out", "some", "--map", "none") == 1
    table = pd.read_csv("some/predictions.csv")
    assert table["error"].notna().sum() == 1 and "expected 'fewer/crack/001.png', with any ending" in table["error"][1]
    call("extend", each, images / "good", "--mask_of_interest", own / "good", "--out", "more")
    call("calibrate", each, images / "good", "--mask_of_interest", own / "good", "--out", "again")
    with pytest.raises(UsageError, match=r"000\.png' has the name of a good image, and so its mask"):
        call("calibrate", each, images / "good", "--bad", images / "crack", "--mask_of_interest", own / "good")
    path = images / "good/000.png"
    found = load(each).predict(path, [own / "good/000.bmp"])
    assert found.scores.item() == pytest.approx(scores(one)[3], abs=1e-6)
    with pytest.raises(ValueError, match="the model needs one per image"):
        load(each).predict(path)


@pytest.mark.parametrize(
    ("words", "mask", "error", "message"),
    [
        ([], left(48, 40), DataError, r"m\.png' is 40 x 48 pixels, but '.*' is 48 x 48: expected the image's size, or"),
        ([], np.zeros((48, 48), np.uint8), DataError, r"m\.png' is black, with values up to 0 of 255: expected white"),
        ([], np.ones((48, 48), np.uint8), DataError, "is black, with values up to 1 of 255"),
        ([], b"no image", DataError, r"mask of interest: '.*m\.png' is not an image"),
        ([], None, UsageError, r"m\.png: no such file or folder: expected a mask, or a folder with one per image"),
        ([], left(share=0.03), DataError, r"leaves nothing of '.*' at the network's size: expected white"),
        (["frequency"], left(), UsageError, "not for frequency as it is here: a spectrum is of a whole image"),
        (["template"], left(), UsageError, "not for template as it is here: --align moves images"),
        (["lowrank", "--of", "image"], left(), UsageError, "--of image decomposes whole images"),
        ([*small("patchcore"), "--match_light", "gain"], left(), UsageError, "--match_light looks at the light"),
        (small("multimodal"), left(), UsageError, "what was tampered with is told by whole images"),
    ],
)
def test_what_cannot_be_used(data, tmp_path, monkeypatch, words, mask, error, message):
    monkeypatch.chdir(tmp_path)
    if isinstance(mask, bytes):
        Path("m.png").write_bytes(mask)
    elif mask is not None:
        save(Path("m.png"), mask)
    chain = [*(words or small("patchcore")), "dataset", *SMALL_DATA]
    with pytest.raises(error, match=message):
        call(*chain, "--mask_of_interest", "m.png", "mvtec", data / "data")


def test_parts_are_not_cut():
    given = {"name": "mvtec", "resize": 32, "imagesize": 32, "mask_of_interest": Path("m.png")}
    with pytest.raises(UsageError, match="--tile and --mask_of_interest do not go together, for a tile may have"):
        DatasetConfig(**given, tile="16")
    assert DatasetConfig(**given, tile="32").tiling.count == 1


def test_another_mask_is_another_input(data, tmp_path):
    """A run that is there is not taken for one with a mask that was changed."""
    samples = DATASETS["mvtec"].read_class(data / "data", "bolt")
    found = [Inputs.of(samples, data / "data")]
    for share in (0.5, 0.6):
        masked = with_interest(samples, save(tmp_path / "m.png", left(share=share)), data / "data")
        found.append(Inputs.of(masked, data / "data"))
    assert len({own.content for own in found}) == 3


def test_masks_that_are_missing_or_there_twice(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    masks = shutil.copytree(data / "masks", "masks")
    words = [*small("patchcore"), "dataset", *SMALL_DATA, "--mask_of_interest", masks, "mvtec", data / "data"]
    again = save(Path(masks, "bolt/test/good/000.png"), left())
    with pytest.raises(DataError, match="would be masks of one image: remove or rename one of them"):
        call(*words)
    for path in (again, again.with_suffix(".bmp"), Path(masks, "bolt/train/good/001.bmp")):
        path.unlink()
    with pytest.raises(DataError, match=r"train/good/001\.png' and 1 more images: expected 'masks/bolt/train/good/001"):
        call(*words)
    Path("empty").mkdir()
    with pytest.raises(DataError, match="no masks in it: expected one per image"):
        call(*[word if word != masks else "empty" for word in words])


def test_the_mean_colour_is_blank():
    assert BLANK == (124, 116, 104)
