"""--match_light: images in the light of the training images, in training, prediction, models and exports."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from conftest import SMALL_DATA, SMALL_NET, small
from PIL import Image
from safetensors.torch import load_file
from test_multimodal import write_table

import backbones
import main
from datasets import ImageTransform, read_image
from detection.light import KNOTS, LIMIT, Light
from experiment.use.export import Exported
from methods import load
from simplenet import SimpleNet

MATCHING = ("gain", "gain_offset", "histogram")
TRANSFORM = ImageTransform(32, 32)


def call(*words):
    return main.main([str(word) for word in words], standalone_mode=False)


def images_of(pixels):
    """Normalised images of values from 0 to 1, [B, H, W, 3]."""
    mean, std = torch.tensor(backbones.IMAGENET.mean), torch.tensor(backbones.IMAGENET.std)
    return ((torch.as_tensor(pixels, dtype=torch.float32) - mean) / std).permute(0, 3, 1, 2)


def textures(count, seed, side=32):
    """Values from 0.1 to 0.6, each image of its own texture."""
    return np.random.default_rng(seed).uniform(0.1, 0.6, (count, side, side, 3)) ** 1.5


def learned(matching, pixels):
    light = Light(matching)
    light.learn(images_of(pixels).split(2))
    return light


@pytest.mark.parametrize("matching", MATCHING)
@pytest.mark.parametrize("gain", [0.5, 0.8, 1.25, 1.6])
@pytest.mark.parametrize("side", [32, 200])  # squares of one pixel, and of 3 x 3
def test_a_factor_of_brightness_is_undone(matching, gain, side):
    light, tests = learned(matching, textures(3, 0, side)), textures(2, 1, side)
    expected, found = (light(images_of(own)) for own in (tests, gain * tests))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("matching", MATCHING[1:])
def test_contrast_is_matched_too(matching):
    light, tests = learned(matching, textures(3, 0)), textures(2, 1)
    expected, found = (light(images_of(own)) for own in (tests, 0.6 * tests + 0.2))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(learned("gain", textures(3, 0))(images_of(0.6 * tests + 0.2)), expected, atol=0.05)


def test_a_histogram_undoes_what_is_no_line():
    light, tests = learned("histogram", textures(8, 0).mean(3, keepdims=True).repeat(3, 3)), textures(2, 1)
    tests = tests.mean(3, keepdims=True).repeat(3, 3)
    bent = light(images_of(tests**1.3))
    expected = light(images_of(tests))
    line = learned("gain_offset", textures(8, 0).mean(3, keepdims=True).repeat(3, 3))
    assert (bent - expected).abs().mean() < 0.5 * (line(images_of(tests**1.3)) - line(images_of(tests))).abs().mean()


@pytest.mark.parametrize("matching", MATCHING)
def test_a_training_image_is_what_it_was(matching):
    """Of one image, its own light is the reference: nothing changes."""
    image = textures(1, 0)
    torch.testing.assert_close(learned(matching, image)(images_of(image)), images_of(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("matching", MATCHING)
@pytest.mark.parametrize("train", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("test", [0.0, 0.4, 1.0])
def test_images_of_one_colour_stay_finite(matching, train, test):
    light = learned(matching, np.full((1, 32, 32, 3), train))
    flat = np.full((1, 32, 32, 3), test)
    flat[0, 3, 3] = 1.0  # a saturated pixel
    noisy = np.clip(flat + np.random.default_rng(0).normal(0, 1e-3, flat.shape), 0, 1)
    found = light(images_of(np.concatenate([flat, noisy, textures(1, 0)])))
    assert found.isfinite().all()
    assert (found[1] - found[0]).std() <= LIMIT * 1e-3 / 0.22 * 1.1


@pytest.mark.parametrize("matching", MATCHING)
def test_a_small_defect_does_not_count(matching):
    light, plain = learned(matching, textures(3, 0)), textures(1, 1)
    for level in (0.0, 1.0):
        spoilt = plain.copy()
        spoilt[0, 4:10, 4:10] = level  # 3.5 % of the image
        difference = (light(images_of(spoilt)) - light(images_of(plain)))[0]
        difference[:, 4:10, 4:10] = 0
        assert difference.abs().mean() < 0.1 * images_of(plain).std()


def test_a_dark_background_does_not_decide():
    """Of a bright part on black, it is the part that is matched."""
    dark = np.zeros((2, 32, 32, 3))
    dark[:, 10:20, 10:20] = textures(1, 0, 10)
    light = learned("gain", dark)
    torch.testing.assert_close(light(images_of(0.7 * dark)), images_of(dark), atol=1e-5, rtol=0)


def test_fit_learns_it_and_scores_do_not_move_with_brightness():
    """Without matching, they do."""
    moved = {}
    train, test = images_of(textures(6, 0)), textures(3, 1)
    for matching in ("off", *MATCHING):
        detector = SimpleNet(
            backbones.load("resnet18", "random"),
            ["layer1"],
            (32, 32),
            pretrain_embed_dimension=16,
            target_embed_dimension=16,
            dsc_hidden=8,
            pre_proj=1,
            match_light=matching,
        )
        detector.fit(train.split(2))
        scores = [detector.predict(images_of(gain * test)).scores for gain in (1, 0.8, 1.25)]
        moved[matching] = max((own - scores[0]).abs().max().item() for own in scores[1:])
    assert all(moved[matching] < 0.02 * moved["off"] for matching in MATCHING), moved


@pytest.fixture(scope="module")
def trained(mvtec, tmp_path_factory):
    """The runs of a grid over match_light, by what it was, and the titles of the classes that were embedded."""
    from experiment.train import banks

    folder, titles, build = tmp_path_factory.mktemp("results"), [], banks.build_banks
    words = ["--results_path", folder, "--precision", "fp32", "--grid", f"match_light=off,{','.join(MATCHING)}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(banks, "build_banks", lambda title, *args: [titles.append(title), build(title, *args)][1])
        call(*words, "--grid", "dsc_hidden=8,6", *SMALL_NET, "dataset", *SMALL_DATA, "-d", "bolt", "mvtec", mvtec)
    return {own: next(folder.rglob(f"match_light={own},dsc_hidden=8")) for own in ("off", *MATCHING)}, titles


def model_of(point, width=8):
    return point.with_name(point.name.replace("=8", f"={width}")) / "models/0/mvtec_bolt"


def test_features_are_shared_within_a_matching_alone(trained):
    points, titles = trained
    assert titles == ["mvtec_bolt"] * 4
    scores = {tuple(pd.read_csv(model_of(point) / "predictions.csv")["score"]) for point in points.values()}
    assert len(scores) == 4
    references = [load_file(model_of(points["gain"], width) / "checkpoint.safetensors") for width in (8, 6)]
    assert torch.equal(*(own["light.reference"] for own in references))


def test_nothing_is_said_of_light_that_is_matched(trained):
    kept = {own: load(model_of(point)).thresholds.brightness for own, point in trained[0].items()}
    assert len(kept.pop("off")) == 4 and not any(kept.values())


@pytest.mark.parametrize("matching", MATCHING)
def test_a_model_predicts_and_is_tested_with_it(trained, mvtec, tmp_path, matching):
    point = trained[0][matching]
    table = pd.read_csv(model_of(point) / "predictions.csv")
    model = load(model_of(point))
    assert model.description.options["match_light"] == matching
    np.testing.assert_allclose(model.predict([mvtec / own for own in table["image"]]).scores, table["score"], atol=1e-4)
    assert call("predict", model_of(point), mvtec / "bolt/test", "--out", tmp_path / "p", "--map", "none") == 0
    found = pd.read_csv(tmp_path / "p/predictions.csv")
    expected = {Path(path).parts[-2:]: score for path, score in zip(table["image"], table["score"], strict=True)}
    for path, score in zip(found["path"], found["score"], strict=True):
        assert score == pytest.approx(expected[Path(path).parts[-2:]], abs=1e-4)


def test_test_reads_the_models_own(trained, mvtec, tmp_path, monkeypatch):
    """The light of the training images is not looked at again: it is in the model."""
    from experiment.train import light

    point = trained[0]["histogram"]
    monkeypatch.setattr(light, "learn_light_of", None)
    before = [(model_of(point, width) / "predictions.csv").read_bytes() for width in (8, 6)]
    words = [
        "--results_path",
        point.parents[3],
        "--precision",
        "fp32",
        "--grid",
        f"match_light=off,{','.join(MATCHING)}",
    ]
    words += ["--grid", "dsc_hidden=8,6", "--test", *SMALL_NET, "dataset", *SMALL_DATA, "-d", "bolt", "mvtec", mvtec]
    call(*words)
    assert [(model_of(point, width) / "predictions.csv").read_bytes() for width in (8, 6)] == before


@pytest.mark.parametrize("matching", MATCHING)
def test_it_is_inside_exports(trained, mvtec, matching):
    model, paths = load(model_of(trained[0][matching])), sorted(mvtec.glob("bolt/test/*/*.png"))
    pixels = np.stack([model.transform.pixels(read_image(path)).permute(1, 2, 0) for path in paths])
    pixels = np.concatenate([pixels, np.zeros_like(pixels[:1]), (0.8 * pixels).astype(np.uint8)])
    with torch.no_grad():
        scores, _ = Exported(model)(torch.from_numpy(pixels))
    expected = model.predict(torch.stack([TRANSFORM.image(Image.fromarray(one)) for one in pixels]))
    np.testing.assert_allclose(scores, expected.scores, atol=1e-3)


@pytest.mark.parametrize("matching", MATCHING)
def test_onnx_computes_it(tmp_path, monkeypatch, matching):
    """Other parts of a model: test_detectors.py; knots are few here, since every piece is translated."""
    monkeypatch.setitem(KNOTS, "histogram", (5, 30, 60, 95))
    light, images = learned(matching, textures(3, 0)), images_of(0.6 * textures(2, 1) + 0.1)
    program = torch.export.export(light, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    torch.onnx.export(program, f=str(tmp_path / "light.onnx"), input_names=["images"], verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "light.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2):
        (found,) = session.run(None, {"images": images[:count].numpy()})
        np.testing.assert_allclose(found, light(images[:count]), atol=1e-5)


def test_half_an_export_keeps_the_light_whole(trained, tmp_path):
    model = load(model_of(trained[0]["gain"]))
    assert Exported(model, half=True).light.reference.dtype == torch.float32


def test_models_older_than_it_match_nothing(trained, mvtec, tmp_path):
    folder = model_of(trained[0]["off"])
    kept = (folder / "model.json").read_text()
    content = json.loads(kept)
    assert content["options"].pop("match_light") == "off"
    table = pd.read_csv(folder / "predictions.csv")
    try:
        (folder / "model.json").write_text(json.dumps(content))
        model = load(folder)
    finally:
        (folder / "model.json").write_text(kept)
    assert model.detector.light is None and "light.reference" not in model.detector.state_dict()
    np.testing.assert_allclose(model.predict([mvtec / own for own in table["image"]]).scores, table["score"], atol=1e-5)


def test_every_class_has_its_own_light_beside_tables(mvtec, tmp_path):
    """One model of two classes and a table."""
    table = write_table(tmp_path / "records.csv")
    words = [*small("multimodal"), "--match_light", "gain", "dataset", *SMALL_DATA, "mvtec", mvtec]
    call("--results_path", tmp_path / "results", *words, "dataset", "--label", "sick", "table", table)
    models = sorted((tmp_path / "results").rglob("checkpoint.safetensors"))
    references = [load_file(path)["light.reference"] for path in models]
    assert all(own.shape == (3, 1) for own in references)
    bolt, nut, of_table = references[0].flatten().tolist()
    assert 0 < bolt < 1 and 0 < nut < 1 and bolt != nut and of_table != of_table
    rows = pd.read_csv(next(path.parent for path in models if "nut" in path.parent.name) / "predictions.csv")
    found = load(next(path.parent for path in models if "nut" in path.parent.name)).predict(
        [mvtec / own for own in rows["image"]]
    )
    np.testing.assert_allclose(found.scores, rows["score"], atol=1e-3)
