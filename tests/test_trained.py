"""A model after training: stored, tested again, loaded from Python, and what is said of one that cannot be used."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL_DATA, SMALL_NET
from PIL import Image
from safetensors import safe_open

import main
import simplenet
from datasets import DATASETS, ImageDataset, ImageTransform
from detection import Prediction
from errors import DataError, UsageError
from experiment.train.evaluation import normal_thresholds


def run(folder, data, *words, net=(), name="test", flags=SMALL_DATA):
    """A run in this process; its folder."""
    command = ["--results_path", str(folder), "--run_name", name, *words, *SMALL_NET, *net, "dataset", *flags, *data]
    main.main(list(map(str, command)), standalone_mode=False)
    return folder / "project" / "group" / name


@pytest.fixture(scope="module")
def trained(mvtec, tmp_path_factory):
    """Two classes; tests must not change it."""
    return run(tmp_path_factory.mktemp("trained"), ["mvtec", mvtec], net=["--meta_epochs", "2"])


@pytest.fixture
def copy(trained, tmp_path):
    """The folder to pass as --results_path, with a run of one's own in it."""
    shutil.copytree(trained, tmp_path / "project" / "group" / "test")
    return tmp_path


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "tfevents" not in path.name
    }


@pytest.mark.parametrize(
    ("words", "net", "data"),
    [
        ([], [], []),
        (["--feature_bank", "off"], [], []),
        (["--precision", "fp32", "--seed", "1", "--seed", "2"], [], []),
        (["--save_segmentation_images"], ["--train_backbone"], []),
        ([], ["--pre_proj", "2", "--proj_layer_type", "2", "--dsc_layers", "3"], ["--hflip", "0.5"]),
    ],
)
def test_test_gives_the_bytes_of_the_training_run(mvtec, tmp_path, words, net, data):
    chain = {"net": net, "flags": [*SMALL_DATA, *data]}
    folder = run(tmp_path, ["mvtec", mvtec], *words, **chain)
    before = contents(folder)
    again = [
        path for path in folder.rglob("*") if path.name in ("results.csv", "predictions.csv") or path.suffix == ".jpg"
    ]
    for path in again:
        path.unlink()
    run(tmp_path, ["mvtec", mvtec], *words, "--test", **chain)
    assert contents(folder) == before


def test_test_evaluates_only(mvtec, copy, monkeypatch):
    monkeypatch.setattr(simplenet.SimpleNet, "fit_embeddings", lambda *_: pytest.fail("it trains"))
    before = contents(copy)
    run(copy, ["-d", "nut", "mvtec", mvtec], "--test", net=["--meta_epochs", "2"])
    assert contents(copy) == before  # the rows of classes that are not tested stay


@pytest.mark.parametrize(
    ("name", "words", "net", "message"),
    [
        ("other", [], [], r"no model of 'mvtec_bolt' in .*: found no model at all; train it without --test"),
        ("test", [], ["--dsc_margin", "0.3"], r"trained with options\.dsc_margin 0\.8, not 0\.3$"),
        ("test", ["--seed", "4"], [], r"trained with backbone\.seed 0, not 4; seed 0, not 4$"),
        ("test", ["--threshold_quantile", "0.9"], [], r"threshold_quantile 0\.995, not 0\.9$"),
        ("test", [], ["-le", "layer3"], r"backbone\.layers \[\"layer1\", \"layer2\"\], not "),
    ],
)
def test_foreign_models_are_refused(mvtec, copy, name, words, net, message):
    before = contents(copy)
    with pytest.raises(UsageError, match=message):
        run(copy, ["mvtec", mvtec], *words, "--test", net=["--meta_epochs", "2", *net], name=name)
    assert contents(copy) == before


def test_precision_is_that_of_training(mvtec, tmp_path):
    folder = run(tmp_path, ["mvtec", mvtec], "--precision", "bf16")
    before = contents(folder)
    run(tmp_path, ["mvtec", mvtec], "--test")
    assert contents(folder) == before
    with pytest.raises(UsageError, match="precision bfloat16, not float32"):
        run(tmp_path, ["mvtec", mvtec], "--test", "--precision", "fp32")


def test_missing_models_are_listed(mvtec, copy):
    shutil.rmtree(copy / "project/group/test/models/0/mvtec_bolt")
    with pytest.raises(UsageError, match=r"no model of 'mvtec_bolt' .*: found mvtec_nut; train it"):
        run(copy, ["mvtec", mvtec], "--test", net=["--meta_epochs", "2"])


def test_the_description_stands_alone(trained):
    model = trained / "models" / "0" / "mvtec_bolt"
    described = json.loads((model / "model.json").read_text())
    assert described["format"] == 2
    normalisation = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    backbone = {"name": "test_resnet", "layers": ["layer1", "layer2"], "weights": "random", "seed": 0}
    assert described["backbone"] == {**backbone, "normalisation": normalisation}
    assert described["transform"] == {"resize": 40, "imagesize": 32, "resize_mode": "aspect"}
    assert described["options"]["dsc_hidden"] == 8
    assert described["thresholds"]["source"] == "training images"
    results = pd.read_csv(trained / "results.csv", index_col="class")
    assert described["metrics"]["pro"] == pytest.approx(results.loc["mvtec_bolt", "pro"], abs=1e-6)
    with safe_open(model / "checkpoint.safetensors", "pt") as checkpoint:
        names = set(checkpoint.keys())
    assert "members.0.discriminator.body.0.1.running_var" in names
    assert not [name for name in names if name.startswith("backbone")]


def test_a_trained_backbone_is_in_the_checkpoint(mvtec, tmp_path):
    folder = run(tmp_path, ["-d", "nut", "mvtec", mvtec], net=["--train_backbone"]) / "models" / "0" / "mvtec_nut"
    described = json.loads((folder / "model.json").read_text())
    assert described["backbone_sha256"] is None
    (folder / "model.json").write_text(json.dumps({**described, "backbone": {**described["backbone"], "seed": 99}}))
    model = simplenet.load(folder)
    images = ImageDataset(DATASETS["mvtec"].read_class(mvtec, "nut").test, model.transform)
    scores = model.predict(torch.stack([image for image, _ in images])).scores
    expected = pd.read_csv(folder / "predictions.csv")["score"]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


class Given:
    """Predictions that were made before, in batches."""

    def __init__(self, scores, maps, batch):
        self.batches = [
            (Prediction(torch.tensor(s), torch.tensor(m)), None)
            for s, m in zip(np.split(scores, len(scores) // batch), np.split(maps, len(scores) // batch), strict=True)
        ]
        side = maps.shape[-1]
        self.dataset = type(
            "Dataset", (), {"__len__": lambda _: len(scores), "transform": ImageTransform(side, side)}
        )()

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.9, 0.995, 1.0])
def test_thresholds_are_quantiles(quantile):
    rng = np.random.default_rng(0)
    scores, maps = rng.normal(size=40).astype(np.float32), rng.normal(size=(40, 6, 6)).astype(np.float32)
    image, pixel = normal_thresholds(Given(scores, maps, 8), quantile)
    assert image == np.quantile(scores, quantile, method="higher")
    assert pixel == np.quantile(maps, quantile, method="higher")
    assert (scores <= image).mean() >= quantile


def test_held_out_images_set_the_threshold(mvtec, tmp_path):
    model = run(tmp_path, ["-d", "bolt", "--train_val_split", "0.5", "mvtec", mvtec]) / "models" / "0" / "mvtec_bolt"
    loaded = simplenet.load(model)
    held_out = DATASETS["mvtec"].read_class(mvtec, "bolt").train[1::2]
    prediction = loaded.predict([sample.image_path for sample in held_out])
    assert loaded.thresholds.source == "held-out normal images"
    assert loaded.thresholds.images == 2
    assert loaded.thresholds.image == pytest.approx(prediction.scores.max().item(), abs=1e-5)
    assert loaded.thresholds.pixel == pytest.approx(prediction.maps.flatten().quantile(0.995).item(), abs=0.02)


def test_decisions_follow_the_threshold(mvtec, tmp_path):
    folder = run(
        tmp_path, ["mvtec", mvtec], "--threshold_quantile", "0", net=["--recipe", "stable", "--meta_epochs", "3"]
    )
    for model in (folder / "models" / "0").iterdir():
        threshold = json.loads((model / "model.json").read_text())["thresholds"]["image"]
        predictions = pd.read_csv(model / "predictions.csv")
        assert predictions["decision"].tolist() == (predictions["score"] > threshold).astype(int).tolist()
        assert predictions["decision"].any()


def test_segmentation_images(mvtec, tmp_path):
    folder = run(tmp_path, ["-d", "nut", "mvtec", mvtec], "--save_segmentation_images") / "models" / "0" / "mvtec_nut"
    names = pd.read_csv(folder / "predictions.csv")["image"]
    assert sorted(p.relative_to(folder / "segmentations").as_posix() for p in folder.rglob("*.png")) == sorted(names)
    drawn = np.asarray(Image.open(folder / "segmentations" / "nut" / "test" / "crack" / "000.png"))
    assert drawn.shape == (22 + 32, 4 * 32, 3)
    dataset = ImageDataset(DATASETS["mvtec"].read_class(mvtec, "nut").test, ImageTransform(40, 32))
    mask = dataset[0][1].numpy()
    assert ((drawn[22:, 32:64] == 255).all(-1) == mask).all()
    assert (drawn[:22] == 255).any()


def test_load_and_predict_from_python(mvtec, trained, tmp_path):
    folder = trained / "models" / "0" / "mvtec_bolt"
    model = simplenet.load(str(folder))
    samples = DATASETS["mvtec"].read_class(mvtec, "bolt").test
    expected = pd.read_csv(folder / "predictions.csv")["score"].to_numpy()
    paths = [sample.image_path for sample in samples]
    tensor = torch.stack([image for image, _ in ImageDataset(samples, model.transform)])
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    for images in (paths, tensor, pixels, [str(path) for path in paths]):
        scores, maps = model.predict(images)
        assert maps.shape == (4, 32, 32)
        np.testing.assert_allclose(scores, expected, atol=1e-5)
    for image in (paths[0], str(paths[0]), pixels[0]):
        np.testing.assert_allclose(model.predict(image).scores, expected[:1], atol=1e-5)
    several = [pixels[0], paths[1], np.ascontiguousarray(pixels[2]), str(paths[3])]
    np.testing.assert_allclose(model.predict(several).scores, expected, atol=1e-5)
    np.testing.assert_allclose(model.predict(list(pixels)).scores, expected, atol=1e-5)
    for bad in (pixels.astype(float), pixels[..., 0], [], [pixels], [pixels[0, :, :, 0]], [1], 3, pixels[:, :0], {}):
        with pytest.raises(ValueError, match=r"expected uint8|no images|expected images"):
            model.predict(bad)
    np.testing.assert_allclose(model.predict(iter(paths)).scores, expected, atol=1e-5)
    with pytest.raises(ValueError, match=re.escape("not uint8 [48, 48]")):
        model.predict(pixels[0, :, :, 0])
    with pytest.raises(DataError, match="is a video"):
        model.predict([tmp_path / "a.mp4"])


def test_arrays_of_several_sizes(trained, tmp_path):
    """As the files would be."""
    model, rng = simplenet.load(trained / "models" / "0" / "mvtec_bolt"), np.random.default_rng(0)
    arrays = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((48, 48), (40, 90), (200, 33))]
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    found = model.predict(arrays)
    expected = model.predict([tmp_path / f"{i}.png" for i in range(3)])
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0)
    torch.testing.assert_close(found.maps, expected.maps, rtol=0, atol=0)


@pytest.mark.parametrize("net", [[], ["--train_backbone"]])
def test_tensors_of_another_kind_are_refused_and_change_nothing(mvtec, trained, tmp_path, net):
    """The weights of a trained backbone above all: those of another size would be made anew, at random."""
    where = run(tmp_path, ["-d", "bolt", "mvtec", mvtec], net=net) if net else trained
    model = simplenet.load(where / "models" / "0" / "mvtec_bolt")
    images = torch.randn(2, 3, 32, 32)
    before = model.predict(images)
    weights = {name: tensor.clone() for name, tensor in model.detector.backbone.state_dict().items()}
    others = [torch.randn(2, 3, 128, 128), images.double(), images.half(), images[:, :1], images[0], images[:0]]
    others += [(images * 255).to(torch.uint8), torch.randn(2, 3, 32, 33)]
    for bad in others:
        for predict in (model.predict, model.detector.predict, model.detector.embed):
            with pytest.raises(ValueError, match=r"^expected float32 \[B, 3, 32, 32\] with B of 1 or more, not \w+ \["):
                predict(bad)
    after = model.predict(images)
    torch.testing.assert_close(after.scores, before.scores, rtol=0, atol=0)
    for name, tensor in model.detector.backbone.state_dict().items():
        assert torch.equal(tensor, weights[name])


def edit(change):
    def spoil(folder):
        described = json.loads((folder / "model.json").read_text())
        change(described)
        (folder / "model.json").write_text(json.dumps(described))

    return spoil


def flip(folder):
    content = bytearray((folder / "checkpoint.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "checkpoint.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (flip, DataError, r"checkpoint\.safetensors' is damaged or from another model"),
        (lambda f: (f / "checkpoint.safetensors").unlink(), DataError, r"no '.*checkpoint\.safetensors'"),
        (lambda f: (f / "model.json").unlink(), UsageError, r"is not the folder of a model: expected model\.json"),
        (lambda f: (f / "model.json").write_text("{"), DataError, r"model\.json' cannot be read"),
        (lambda f: (f / "model.json").write_text("[]"), DataError, r"model\.json' cannot be read"),
        (edit(lambda d: d.update(format=1)), DataError, "is of format 1, and this version reads 2"),
        (edit(lambda d: d.pop("thresholds")), DataError, r"model\.json' cannot be read"),
        (edit(lambda d: d["options"].update(new=3)), DataError, "holds options that do not exist.*new"),
        (edit(lambda d: d["options"].update(dsc_hidden=9)), DataError, "does not fit .* is .*, not .*9"),
        (edit(lambda d: d["options"].update(dsc_hidden=65536)), DataError, "does not fit"),
        (edit(lambda d: d["options"].update(dsc_hidden=10**12)), DataError, "dsc_hidden is 1000000000000"),
        (edit(lambda d: d["options"].update(dsc_hidden=-1)), DataError, "dsc_hidden is -1"),
        (edit(lambda d: d["options"].update(ensemble=60000)), DataError, "too little for .*'ensemble': 60000"),
        (edit(lambda d: d["options"].update(cos_lr="no")), DataError, "cos_lr is 'no'"),
        (edit(lambda d: d["options"].update(dsc_lr=float("inf"))), DataError, "dsc_lr is inf"),
        (edit(lambda d: d["transform"].update(imagesize=10**9)), DataError, "imagesize is 1000000000"),
        (edit(lambda d: d["transform"].update(resize_mode="up")), DataError, "resize_mode is 'up'"),
        (edit(lambda d: d["backbone"].update(layers=[1])), DataError, "layers is 1"),
        (edit(lambda d: d.update(seed=True)), DataError, "seed is True"),
        (edit(lambda d: d.update(precision="int8")), DataError, "cannot be read as a model's description: 'int8'"),
        (edit(lambda d: d["thresholds"].update(image=None)), DataError, "image is None"),
        (edit(lambda d: d["thresholds"].update(brightness=[1, "2"])), DataError, "brightness is '2'"),
        (edit(lambda d: d["thresholds"].update(brightness=[1.0])), DataError, "brightness is"),
        (lambda f: (f / "model.json").write_text("[" * 10**5), DataError, r"model\.json' cannot be read"),
        (edit(lambda d: d["backbone"].update(seed=5)), DataError, "are not those that .* was trained with"),
        (edit(lambda d: d["backbone"].update(name="resnet999")), UsageError, "unknown backbone 'resnet999'"),
        (edit(lambda d: d["backbone"].update(weights="/gone/x.pth")), UsageError, "no such file"),
    ],
)
def test_a_spoilt_model_is_named(copy, spoil, error, message):
    folder = copy / "project" / "group" / "test" / "models" / "0" / "mvtec_bolt"
    spoil(folder)
    with pytest.raises(error, match=message):
        simplenet.load(folder)


def test_models_below_are_named(trained):
    with pytest.raises(UsageError, match=r"there are models in .*/mvtec_bolt, .*/mvtec_nut"):
        simplenet.load(trained)


def test_backbone_weights_may_have_moved(mvtec, tmp_path):
    import timm

    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "own.pth")
    net = ["--backbone_weights", str(tmp_path / "own.pth")]
    folder = run(tmp_path, ["-d", "nut", "mvtec", mvtec], net=net) / "models" / "0" / "mvtec_nut"
    moved = (tmp_path / "own.pth").rename(tmp_path / "moved.pth")
    with pytest.raises(UsageError, match=re.escape("own.pth': no such file")):
        simplenet.load(folder)
    assert simplenet.load(folder, backbone_weights=str(moved)).description.class_name == "nut"
    torch.manual_seed(123)
    torch.save(timm.create_model("test_resnet").state_dict(), moved)
    with pytest.raises(DataError, match="give the file of those with --backbone_weights"):
        simplenet.load(folder, backbone_weights=str(moved))


@pytest.mark.parametrize(
    ("size", "mode", "expected"),
    [
        ((64, 64), "aspect", (6, 6, 58, 58)),
        ((128, 64), "aspect", (38, 6, 90, 58)),
        ((64, 128), "aspect", (6, 38, 58, 90)),
        ((100, 50), "square", (0, 0, 100, 50)),
    ],
)
def test_window_is_what_the_network_sees(size, mode, expected):
    transform = ImageTransform(40, 32, resize_mode=mode)
    assert transform.window(*size) == expected
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    left, top, right, bottom = expected
    mask[top:bottom, left:right] = 255
    assert (transform.nearest(Image.fromarray(mask)) > 0).mean() > 0.93  # all but the rounded border
    assert not (transform.nearest(Image.fromarray(255 - mask)) > 0).mean() > 0.07
