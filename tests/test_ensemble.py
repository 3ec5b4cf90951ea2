"""PatchCore of several backbones: each with a bank of its own, their scores on the scale of normal images."""

import onnxruntime
import pandas as pd
import pytest
import torch
from conftest import SMALL_DATA
from test_patchcore import GOLDEN, batches
from test_resume import folder, outputs

import backbones
import main
from backbones import embed_patches
from datasets import read_image
from detection import Normal
from errors import DataError, UsageError
from methods import load
from methods.patchcore import Ensemble, PatchCore, averaged

LAYERS = ["0.layer1", "1.layer1", "0.layer2"]
OPTIONS = {"pretrain_embed_dimension": 24, "target_embed_dimension": 16}
WORDS = [
    *"patchcore --ensemble --backbone_weights random -b test_resnet -b resnet10t".split(),
    *"-le 0.layer1 -le 0.layer2 -le 1.layer2".split(),
    *(f"--{name}={value}" for name, value in OPTIONS.items()),
]


def call(*words):
    main.main([str(word) for word in words], standalone_mode=False)


def chain(mvtec, *words, data=()):
    return [*WORDS, *words, "dataset", *SMALL_DATA, "--train_val_split", "0.5", *data, "mvtec", mvtec]


def ensemble(**options):
    backbone = backbones.load("resnet18+resnet34", "random")
    return Ensemble(backbone, LAYERS, (32, 32), ensemble=True, **OPTIONS, **options)


def of_two(*seeds, images=6):
    return list(zip(*(batches(images, seed=seed) for seed in seeds), strict=True))


class Counted(list):
    """Batches that count how often they are gone over."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


def test_scales_and_mean_are_those_of_the_authors_program():
    """Where the images that it scales by are all images."""
    for name in ("scores", "maps"):
        values = GOLDEN[f"ensemble_{name}"]
        scale = torch.stack(values.flatten(1).aminmax(dim=1), dim=1)
        torch.testing.assert_close(averaged(values, scale), GOLDEN[f"ensemble_{name}_out"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("held_out", [True, False])
def test_each_backbone_has_a_bank_and_the_range_of_normal_images(held_out):
    whole, train, normal = ensemble(whiten=0.1), Counted(of_two(0, 1)), of_two(2, 3, images=4)
    training = whole.training_on(Normal(train, normal if held_out else ()))
    list(training)
    assert train.passes == whole.passes_of(held_out).after(1) == 4 + (not held_out)
    alone = []
    for i, (member, own) in enumerate(zip(whole.members, zip(*train, strict=True), strict=True)):
        names = member.layers
        alone.append(
            PatchCore(backbones.load(f"resnet{(18, 34)[i]}", "random"), names, (32, 32), whiten=0.1, **OPTIONS)
        )
        alone[-1].fit_embeddings(own)
        torch.testing.assert_close(alone[-1].bank.memory, member.bank.memory, rtol=0, atol=0)
    queries, expected = of_two(4, 5, images=2)[0], []
    for i, one in enumerate(alone):
        seen = torch.cat([one.score(batch[i]).scores for batch in (normal if held_out else train)])
        expected.append((one.score(queries[i]).scores - seen.min()) / (seen.max() - seen.min()))
    found = whole.score(queries)
    torch.testing.assert_close(found.scores, (expected[0] + expected[1]) / 2, rtol=1e-4, atol=1e-4)
    resumed = ensemble(whiten=0.1)
    assert resumed.training_on(Normal(train), state=training.state_dict()).finished
    torch.testing.assert_close(resumed.score(queries).maps, found.maps, rtol=0, atol=0)
    assert found.maps.shape == (2, 32, 32) and found.maps.max() > found.maps.min()


def test_features_are_those_of_each_backbone():
    found, images = ensemble(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name, layers, own in zip(
        ("resnet18", "resnet34"), (["layer1", "layer2"], ["layer1"]), found.embed(images), strict=True
    ):
        maps = backbones.load(name, "random")(images, layers)
        torch.testing.assert_close(own.flatten(1, 2), embed_patches(maps, *OPTIONS.values()))
    assert all(name.startswith(("members.", "score_scale", "map_scale")) for name in found.state_dict())
    assert not [name for name in found.state_dict() if "backbone" in name]


def test_extending_is_training_on_both():
    """Scales stay: they are those of the images that were held out."""
    first, second, normal = of_two(0, 1), of_two(2, 3, images=4), of_two(4, 5)
    extended, whole = ensemble(sampler="identity"), ensemble(sampler="identity")
    list(extended.training_on(Normal(first, normal)))
    list(whole.training_on(Normal([*first, *second], normal)))
    extended.extend(second)
    whole.score_scale, whole.map_scale = extended.score_scale, extended.map_scale
    (query,) = of_two(6, 7, images=2)
    torch.testing.assert_close(extended.score(query).scores, whole.score(query).scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "normal", "message"),
    [
        ({"sampler": "identity"}, (), "by no backbone, for --sampler identity keeps their own patches: hold"),
        (
            {},
            [tuple(one[:1] for one in of_two(2, 3)[0])],
            "by backbone resnet18, for all are the same: hold at least two",
        ),
    ],
)
def test_scores_without_a_range_are_said(options, normal, message):
    with pytest.raises(DataError, match=message):
        list(ensemble(**options).training_on(Normal(of_two(0, 1), normal)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-b", "resnet18", "-le", "layer1"], "give -b more than once"),
        (["-b", "resnet18", "-b", "resnet34.seed-7", "-le", "0.layer1", "-le", "1.layer1"], "have one seed, the run's"),
        (
            ["-b", "resnet18", "-b", "resnet34", "-le", "0.layer1"],
            "-b resnet34 needs layers, such as -le 1.layer2: its",
        ),
        (["-b", "resnet18", "-b", "resnet34", "-le", "layer1"], "with 2 backbones write INDEX.LAYER"),
        (
            ["-b", "resnet18", "-b", "vit_base", "-le", "0.layer1", "-le", "1.blocks.3", "--normalisation", "model"],
            "resnet18's have mean .* and standard deviation .*; vit_base's have",
        ),
    ],
)
def test_what_is_no_ensemble_is_said(mvtec, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        call("patchcore", "--ensemble", *words, "--backbone_weights", "random", "dataset", *SMALL_DATA, "mvtec", mvtec)


@pytest.fixture(scope="module")
def run(mvtec, tmp_path_factory):
    where = tmp_path_factory.mktemp("ensemble")
    call("--results_path", where / "results", "--precision", "fp32", *chain(mvtec, data=["-d", "bolt"]))
    return folder(where)


def test_it_is_one_model_of_both(run, mvtec, tmp_path):
    """As a run, again by --test, as a trained model, in ONNX, and extended."""
    model_folder = run / "models/0/mvtec_bolt"
    table = pd.read_csv(model_folder / "predictions.csv")
    model = load(model_folder)
    paths = [mvtec / name for name in table["image"]]
    assert model.predict(paths).scores.tolist() == pytest.approx(table["score"].tolist(), rel=1e-4, abs=1e-4)
    before = outputs(run)
    call("--results_path", run.parents[2], "--precision", "fp32", "--test", *chain(mvtec, data=["-d", "bolt"]))
    assert outputs(run) == before
    call("export", model_folder, "--out", tmp_path / "model.onnx")
    pixels = torch.stack([model.transform.pixels(read_image(path, model.transform.reading)) for path in paths])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    scores, maps = session.run(None, {"images": pixels.permute(0, 2, 3, 1).numpy()})
    assert scores.tolist() == pytest.approx(table["score"].tolist(), rel=1e-3, abs=1e-3)
    assert maps.shape == (len(paths), 32, 32)
    call("extend", model_folder, mvtec / "nut/train/good", "--out", tmp_path / "new")
    assert int(load(tmp_path / "new").detector.members[1].bank.seen) == 6 * 16


def test_a_grid_embeds_once(run, mvtec, tmp_path, monkeypatch, embedded):
    monkeypatch.chdir(tmp_path)
    call("--precision", "fp32", "--grid", "percentage=0.1,0.2", *chain(mvtec, data=["-d", "bolt"]))
    assert embedded == ["mvtec_bolt"]
    assert outputs(folder(tmp_path) / "percentage=0.1") == outputs(run)
