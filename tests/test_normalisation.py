"""--normalisation: mean and standard deviation that a backbone is given images by."""

import json

import numpy as np
import pytest
import torch
from conftest import SMALL_DATA, SMALL_NET
from PIL import Image

import backbones
import main
from backbones import IMAGENET, Normalisation, normalisation_of
from backbones.names import BACKBONES
from datasets import ImageTransform
from errors import DataError
from methods import load

HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NET = [word if word != "test_resnet" else "resnetv2_18.ra4_e3600_r224_in1k" for word in SMALL_NET]
NET = [{"layer1": "stages.0", "layer2": "stages.1"}.get(word, word) for word in NET]


def test_what_timm_says():
    assert normalisation_of("resnet18") == normalisation_of("torchvision/resnet18") == IMAGENET
    assert normalisation_of("efficientnet_lite0") == normalisation_of("vit_base") == HALF
    assert normalisation_of("efficientnet_lite0", "imagenet") == normalisation_of("pixels") == IMAGENET
    clip = normalisation_of("vit_base_patch16_clip_224.openai")
    assert clip.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073)) and clip not in (IMAGENET, HALF)
    assert normalisation_of("timm/vit_base_patch16_siglip_224.webli") == HALF
    others = [name for name in BACKBONES if normalisation_of(name) != IMAGENET]
    assert {"vit_small", "inception_v4", "resnetv2_50_bit", "efficientnetv2_m"} <= set(others)


@pytest.mark.parametrize("own", [IMAGENET, HALF, Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))])
def test_the_network_sees_pixels_normalised_by_it(own):
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    images = ImageTransform(32, 32).image(pixels)[None]
    seen = backbones.load("pixels", normalisation=own)(images, ["input"])[0]
    expected = (np.asarray(pixels) / 255 - own.mean) / own.std
    np.testing.assert_allclose(seen[0].permute(1, 2, 0), expected, atol=2e-6)
    assert own != IMAGENET or seen.equal(images)  # the paper's recipe keeps its bits


@pytest.fixture(scope="module")
def trained(mvtec, tmp_path_factory):
    """The models of two runs that differ in nothing else, by rule."""
    folder = tmp_path_factory.mktemp("results")
    words = ["--results_path", str(folder), "--precision", "fp32", "--grid", "normalisation=imagenet,model", *NET]
    main.main([*words, "dataset", *SMALL_DATA, "-d", "bolt", "mvtec", str(mvtec)], standalone_mode=False)
    return {rule: next(folder.rglob(f"normalisation={rule}/models/0/mvtec_bolt")) for rule in ("imagenet", "model")}


def recorded(folder):
    return json.loads((folder / "model.json").read_text())["backbone"]["normalisation"]


def test_a_run_records_it_and_predicts_with_it(trained, mvtec):
    assert {rule: Normalisation.from_dict(recorded(folder)) for rule, folder in trained.items()} == {
        "imagenet": IMAGENET,
        "model": HALF,
    }
    tables = [(folder / "predictions.csv").read_text().splitlines()[1:] for folder in trained.values()]
    assert tables[0] != tables[1]
    for folder, rows in zip(trained.values(), tables, strict=True):
        model = load(folder)
        assert model.detector.backbone.normalisation == Normalisation.from_dict(recorded(folder))
        scores = model.predict([mvtec / row.split(",")[0] for row in rows]).scores
        np.testing.assert_allclose(scores, [float(row.split(",")[3]) for row in rows], atol=1e-4)


def test_it_is_inside_exports(trained, tmp_path):
    """main's check compares with PyTorch; here pixels go in, and what the model itself makes of them is expected."""
    out = tmp_path / "model.pt2"  # what ONNX files are translated from
    words = ["export", str(trained["model"]), "--format", "torch_export", "--out", str(out)]
    main.main(words, standalone_mode=False)
    pixels, notes = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8), {"metadata.json": ""}
    network = torch.export.load(str(out), extra_files=notes).module()
    assert json.loads(json.loads(notes["metadata.json"])["normalisation"])["mean"] == [0.5, 0.5, 0.5]
    scores = network(torch.from_numpy(pixels))[0].detach()
    transform = ImageTransform(32, 32)
    images = torch.stack([transform.image(Image.fromarray(one)) for one in pixels])
    np.testing.assert_allclose(scores, load(trained["model"]).predict(images).scores, atol=1e-3)


def test_models_older_than_it_are_imagenets(trained, mvtec):
    path = trained["imagenet"] / "model.json"
    kept = path.read_text()
    content = json.loads(kept)
    del content["backbone"]["normalisation"]
    try:
        path.write_text(json.dumps(content))
        assert load(trained["imagenet"]).detector.backbone.normalisation == IMAGENET
        content["backbone"]["normalisation"] = {"mean": [0.5, 0.5], "std": [0.5, 0.0, 0.5]}
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"model\.json"):
            load(trained["imagenet"])
    finally:
        path.write_text(kept)


def test_a_line_says_where_they_differ(mvtec, tmp_path, capsys):
    end = ["dataset", *SMALL_DATA, "-d", "bolt", "mvtec", str(mvtec)]
    said = {}
    usual = [word if word != "test_resnet" else "resnet18" for word in SMALL_NET]
    for run, net in {"a": NET, "b": [*NET, "--normalisation", "model"], "c": usual}.items():
        main.main(["--results_path", str(tmp_path / run), *net, *end], standalone_mode=False)
        said[run] = [line for line in capsys.readouterr().err.splitlines() if "--normalisation" in line]
    assert said["b"] == said["c"] == []
    (line,) = said["a"]
    assert "trained with mean (0.5, 0.5, 0.5) and standard deviation (0.5, 0.5, 0.5), not with ImageNet's" in line
