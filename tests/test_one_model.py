"""One model of several classes: trained on all their images together, with thresholds and results of each."""

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL_DATA, make_mvtec, small
from test_alarms import numbers
from test_resume import folder, outputs

import main
from datasets import ClassSamples, RandomTransform, Sample
from errors import DataError, Interrupted, UsageError
from experiment.dataset_config import DatasetConfig
from experiment.plan.class_names import classes_of_one_model
from experiment.train import train
from experiment.train.training_set import TrainingEmbeddings, TrainingSet, learned_from
from methods import load

CLASSES = ["bolt", "nut"]
CHAIN = [*small("net"), "--match_light", "gain_offset", "--meta_epochs", "2", *small("patchcore")]


def command(mvtec, *data, name="test", detectors=CHAIN):
    return ["--run_name", name, "--precision", "fp32", *detectors, "dataset", *SMALL_DATA, *data, "mvtec", str(mvtec)]


@pytest.fixture(scope="module")
def where(mvtec, tmp_path_factory):
    """The folder of a run of two detectors, interrupted after the first state of training and continued."""
    where = tmp_path_factory.mktemp("one_model")

    def stop(*given, write=train.write_state):
        write(*given)
        raise Interrupted(2)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        with patch.context() as inner, pytest.raises(Interrupted):
            inner.setattr(train, "write_state", stop)
            main.main(command(mvtec, "--one_model"), standalone_mode=False)
        main.main(command(mvtec, "--one_model"), standalone_mode=False)
    return where


def models(where, detector):
    return [folder(where) / detector / f"models/0/mvtec_{name}" for name in CLASSES]


@pytest.mark.parametrize("detector", ["net", "patchcore"])
def test_a_model_has_thresholds_and_results_of_each_class(where, mvtec, detector):
    """The model in each folder is the same but for its threshold and its light, and says what was recorded."""
    rows = pd.read_csv(folder(where) / detector / "results.csv")["class"]
    assert rows.tolist() == ["mvtec_bolt", "mvtec_nut", "Mean"]
    said = [json.loads((own / "model.json").read_text()) for own in models(where, detector)]
    assert [own["classes"] for own in said] == [CLASSES, CLASSES]
    assert said[0]["thresholds"]["image"] != said[1]["thresholds"]["image"]
    assert {own["thresholds"]["images"] for own in said} == {4}
    assert said[0]["checkpoint_sha256"] == said[1]["checkpoint_sha256"]
    assert len({(own / "checkpoint.safetensors").stat().st_ino for own in models(where, detector)}) == 1
    for own in models(where, detector):
        table = pd.read_csv(own / "predictions.csv")
        scores = load(own).predict([mvtec / name for name in table["image"]]).scores
        assert scores.numpy() == pytest.approx(table["score"].to_numpy(), rel=1e-4)


def test_all_images_are_learned(where):
    (bank,) = {len(load(own).detector.bank.memory) for own in models(where, "patchcore")}
    assert bank == int(0.2 * 8 * 8 * 8)  # of the cells of the images of both classes


def test_each_class_has_its_light(where):
    first, second = (load(own).detector for own in models(where, "net"))
    assert (first.part, second.part) == (0, 1)
    assert torch.equal(first.light.reference, second.light.reference)
    assert not torch.equal(*first.light.reference)


def test_an_interrupted_run_is_as_one_in_one_go(where, mvtec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main.main(command(mvtec, "--one_model"), standalone_mode=False)
    assert outputs(folder(tmp_path)) == outputs(folder(where))


def test_of_one_class_it_is_as_without(mvtec, tmp_path, monkeypatch):
    """In a grid, of several seeds, to the byte of the model."""
    monkeypatch.chdir(tmp_path)
    words = ["--grid", "one_model=true,false", "--seed", "1", "--seed", "2", *command(mvtec, "-d", "nut")]
    main.main(words, standalone_mode=False)
    for detector in ("net", "patchcore"):
        one, plain = (folder(tmp_path) / detector / f"one_model={chosen}" for chosen in ("true", "false"))
        assert outputs(one) == outputs(plain)
        paths = [path.relative_to(one) for path in one.glob("models/0/*/model.json")]
        assert len(paths) == 2 and all((one / own).read_bytes() == (plain / own).read_bytes() for own in paths)


def test_predict_says_which_class_is_meant(where, mvtec, tmp_path, capsys):
    (_, nut), images = models(where, "patchcore"), str(mvtec / "nut/test/good")
    main.main(["predict", str(nut), images, "--out", str(tmp_path / "out")], standalone_mode=False)
    assert "One model of bolt, nut: images are taken to be of nut" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"there are models in .*mvtec_bolt, .*mvtec_nut"):
        main.main(["predict", str(nut.parent), images], standalone_mode=False)


def test_other_classes_are_another_model(where, mvtec, monkeypatch):
    monkeypatch.chdir(where)
    with pytest.raises(UsageError, match=r'classes \["bolt", "nut"\], not null'):
        main.main(["--test", *command(mvtec, "--one_model", "-d", "nut")], standalone_mode=False)


@pytest.mark.parametrize("claim", [["bolt", 3], ["nut"], "bolt"])
def test_a_description_that_is_of_none_of_its_classes(model, tmp_path, claim):
    content = json.loads((model / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**content, "classes": claim}))
    with pytest.raises(DataError, match="classes are"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("detector", "why"),
    [
        (small("multimodal"), "--one_model has no effect with multimodal, of which all classes train one model anyway"),
        (
            [word for word in small("cpr") if word not in ("--kind", "texture")],
            "--one_model: --kind would be texture for carpet and object for bolt: give it for all of them",
        ),
    ],
)
def test_what_does_not_go_together(tmp_path, monkeypatch, detector, why):
    monkeypatch.chdir(tmp_path)
    make_mvtec(tmp_path / "mvtec", ["carpet", "bolt"], train=2, test=1)
    words = ["-d", "carpet", "-d", "bolt", "--one_model"]
    with pytest.raises(UsageError, match=why):
        main.main(command("mvtec", *words, detectors=detector), standalone_mode=False)


def test_classes_that_are_each_others_anomalies():
    with pytest.raises(UsageError, match="--one_model: anomalous images of a class of cifar10 are normal ones"):
        classes_of_one_model(SimpleNamespace(), DatasetConfig("cifar10"), [])


class Levels:
    """Embeds an image as its brightness, and 1000 more of every further class."""

    JOINT = False

    def __init__(self, part: int = 0) -> None:
        self.part = part

    def for_part(self, part: int) -> "Levels":
        return Levels(part)

    def embed_read(self, read):
        return read.float().mean(dim=(1, 2, 3)).view(-1, 1) + 1000 * self.part


@pytest.fixture
def pictures():
    """Images of two classes by their brightness, as training sets without banks."""

    def of(name, levels):
        samples = [
            Sample(Path(f"{level}.png"), (), False, name, "good", pixels=np.full((8, 8, 3), level, np.uint8))
            for level in levels
        ]
        data = DatasetConfig(
            "mvtec", batch_size=4, num_workers=0, resize=8, imagesize=8, random=RandomTransform(hflip=1)
        )
        return TrainingSet(ClassSamples(samples, []), data, None)

    return [of("bolt", range(10, 15)), of("nut", range(20, 27))]


@pytest.mark.parametrize("is_kept", [True, False])
def test_batches_hold_images_of_all_classes(is_kept, pictures):
    """Every image once a pass, each as its own class embeds it, in an order that a state takes up."""
    sets = [numbers(5, start=10), numbers(7, start=1020)] if is_kept else pictures
    sets = [replace(own, data=replace(own.data, batch_size=5)) for own in sets]
    (batches,) = learned_from(Levels(), sets, seed=0)
    images = [*range(10, 15), *range(1020, 1027)]
    state = batches.order.state_dict()
    first, second = ([batch.flatten().tolist() for batch in batches] for _ in range(2))
    for one in (first, second):
        assert [len(batch) for batch in one][:-1] == [batches.batch_size] * (len(batches) - 1)
        assert sorted(chain.from_iterable(one)) == images
        assert any(min(batch) < 1000 < max(batch) for batch in one)
    assert first != second
    assert [*chain.from_iterable(second)] == [images[i] for i in batches.order.drawn]
    batches.order.load_state_dict(state)
    batches.pass_over()
    assert [batch.flatten().tolist() for batch in batches] == second


def test_a_joint_detector_learns_every_class_by_itself():
    joint = SimpleNamespace(JOINT=True, for_part=Levels)
    batches = learned_from(joint, [numbers(5), numbers(7)], 0)
    assert [len(own.order) for own in batches] == [5, 7] and all(isinstance(own, TrainingEmbeddings) for own in batches)
