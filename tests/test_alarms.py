"""Of how many false alarms users are told: by held-out images, by cross-validation, or that it is not known."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL_DATA, SMALL_NET, small
from scipy.stats import binomtest
from test_resume import folder as run_folder
from test_trained import run

import main
from backbones import FeatureBank
from datasets import ClassSamples, Sample
from detection import Prediction, false_alarms
from detection.decision import Thresholds
from errors import UsageError
from experiment.dataset_config import DatasetConfig
from experiment.record.read import read_run
from experiment.show.tables import decisions
from experiment.train.calibration import cross_validate
from experiment.train.training_set import TrainingSet


@pytest.mark.parametrize(("images", "quantile"), [(47, 0.995), (47, 0.9), (20, 0.5), (20, 0.0)])
def test_held_out_images_tell_of_new_ones(images, quantile):
    """Of many thresholds, each of so many images, the mean share of new ones above, and what 95 in 100 stay below."""
    told = Thresholds(0.0, 0.0, quantile, "held-out normal images", images).false_alarms
    drawn = np.random.default_rng(0).uniform(size=(20_000, images))  # a score's share of new ones above is 1 - score
    shares = 1 - np.quantile(drawn, quantile, axis=1, method="higher")
    assert told.expected == pytest.approx(shares.mean(), abs=0.002)
    assert told.at_most == pytest.approx(np.quantile(shares, 0.95), abs=0.005)


@pytest.mark.parametrize(("above", "unseen"), [(0, 1), (0, 40), (7, 40), (39, 40), (40, 40)])
def test_the_bound_is_that_of_clopper_and_pearson(above, unseen):
    expected = binomtest(above, unseen, alternative="less").proportion_ci(0.95).high
    assert false_alarms(above, unseen).at_most == pytest.approx(expected)


class Epoch:
    """A training of one epoch."""

    def __init__(self, learn) -> None:
        self.learn = learn

    def __iter__(self):
        yield self.learn()


class Memory:
    """A detector that scores what it was trained on by 0, and all else by 1: the worst to set a threshold by."""

    meta_epochs = 1

    def __init__(self, forgets: bool = False, is_joint: bool = True) -> None:
        self.forgets = forgets
        self.JOINT = is_joint
        self.learned: set[float] = set()

    def for_part(self, part: int) -> "Memory":
        return self

    def training_on(self, *classes):
        assert not any(len(own.held_out) for own in classes)
        return Epoch(lambda: self.learned.update(*(batch.flatten().tolist() for own in classes for batch in own.train)))

    def score(self, embeddings):
        known = torch.tensor([value in self.learned for value in embeddings.flatten().tolist()])
        scores = torch.zeros(len(embeddings)) if self.forgets else 1 - known.float()
        return Prediction(scores, scores.view(-1, 1, 1).expand(-1, 2, 2))


def numbers(count: int, start: int = 0) -> TrainingSet:
    """Images whose features are their numbers."""
    samples = ClassSamples([Sample(Path(f"{i}.png"), (), False, "bolt", "good") for i in range(count)], [])
    bank = FeatureBank((count, 1), torch.float32, "host", torch.device("cpu"))
    bank.fill([torch.arange(start, start + count).float().view(-1, 1)])
    return TrainingSet(samples, DatasetConfig("mvtec", Path(), batch_size=2), bank)


@pytest.mark.parametrize("is_joint", [True, False])
def test_every_image_is_decided_on_by_a_detector_that_has_not_seen_it(is_joint):
    made: list[Memory] = []

    def fresh() -> Memory:
        made.append(Memory(is_joint=is_joint))
        return made[-1]

    first, second = cross_validate(fresh, [numbers(10), numbers(2, start=100)], 0, 3, 0.995, "test")
    assert first == (10, 10)
    assert second == (2, 2)
    assert [len(own.learned) for own in made] == [6 + 1, 7 + 1, 7 + 2]  # of three folds of two images one is empty
    assert cross_validate(lambda: Memory(forgets=True), [numbers(10)], 0, 5, 0.995, "test") == [(0, 10)]


@pytest.fixture(scope="module")
def calibrated(mvtec, tmp_path_factory):
    """The same run with and without --calibrate; tests must not change them."""
    folder = tmp_path_factory.mktemp("calibrated")
    words = ["-d", "bolt", "mvtec", mvtec]
    return SimpleNamespace(
        with_=run(folder, words, "--calibrate", "2", name="with"), without=run(folder, words, name="without")
    )


def test_calibration_adds_what_is_known_and_changes_nothing(calibrated):
    files = [
        path.relative_to(calibrated.without)
        for path in calibrated.without.rglob("*")
        if path.suffix in (".csv", ".safetensors") and path.name != "cost.csv"  # which holds times
    ]
    assert len(files) > 4
    for file in files:
        assert (calibrated.with_ / file).read_bytes() == (calibrated.without / file).read_bytes(), file
    described = [
        json.loads((folder / "models/0/mvtec_bolt/model.json").read_text())["thresholds"]
        for folder in (calibrated.with_, calibrated.without)
    ]
    assert described[0]["unseen"] == 4 and 0 <= described[0]["above"] <= 4
    assert described[0] == {**described[1], "unseen": 4, "above": described[0]["above"]}
    assert described[1]["unseen"] is described[1]["above"] is None


@pytest.mark.parametrize(("matching", "more"), [("off", []), ("gain", ["--brightness", "0.5", "--draw_once"])])
def test_calibration_without_a_bank_is_the_same(mvtec, tmp_path, matching, more):
    """Further detectors know the light that the first has learned, and images change as in the bank."""
    read = []
    for name, words in (("kept", []), ("off", ["--feature_bank", "off"])):
        words = ["--precision", "fp32", "--calibrate", "2", "--threshold_quantile", "0.5", *words]
        data = [*more, "-d", "bolt", "mvtec", mvtec]
        folder = run(tmp_path, data, *words, net=["--match_light", matching], name=name)
        read.append(json.loads((folder / "models/0/mvtec_bolt/model.json").read_text())["thresholds"])
    assert read[0] == read[1] and read[0]["above"] > 0


def predicted(folder, mvtec, out, capsys, *words):
    model = folder / "models" / "0" / "mvtec_bolt"
    images = mvtec / "bolt" / "test" / "good"
    main.main(["predict", str(model), str(images), "--out", str(out), "--map", "none", *words], standalone_mode=False)
    return capsys.readouterr().err


def test_predict_says_what_is_known(calibrated, mvtec, tmp_path, capsys):
    said = predicted(calibrated.with_, mvtec, tmp_path / "a", capsys)
    assert "% of new normal images are called anomalous, and at most" in said
    assert "by cross-validation of 4 training images" in said
    said = predicted(calibrated.without, mvtec, tmp_path / "b", capsys)
    assert "is not known" in said and "--calibrate 5" in said and "4 training images" in said
    said = predicted(calibrated.with_, mvtec, tmp_path / "c", capsys, "--threshold", "3")
    assert "new normal" not in said


CHANGED = ["--augment", "--draw_once"]


@pytest.mark.parametrize("more", [[], CHANGED, ["--augment"], ["--imagesize", "40", "--tile", "32"]])
def test_a_memory_bank_tells_of_its_training_images(mvtec, tmp_path, monkeypatch, capsys, more):
    """Each is scored without what is kept of it; not where that cannot be told apart."""
    monkeypatch.chdir(tmp_path)
    data = [*SMALL_DATA, "--batch_size", "2", *more, "-d", "bolt", "mvtec", str(mvtec)]
    main.main([*small("patchcore"), "dataset", *data], standalone_mode=False)
    told = json.loads((run_folder(tmp_path) / "models/0/mvtec_bolt/model.json").read_text())["thresholds"]
    is_known = more in ([], CHANGED)
    assert (told["above"], told["unseen"]) == ((0, 4) if is_known else (None, None))
    assert told["source"] == "training images"
    capsys.readouterr()
    said = predicted(run_folder(tmp_path), mvtec, tmp_path / "out", capsys)
    assert ("by cross-validation of 4 training images" in said) == is_known


def test_reports_say_what_is_known(calibrated, tmp_path, capsys):
    for folder in (calibrated.with_, calibrated.without):
        main.main(["report", str(folder), "--out", str(tmp_path / "page.html")], standalone_mode=False)
    capsys.readouterr()
    for folder in (calibrated.with_, calibrated.without):
        table = decisions([read_run(folder)])
        row = dict(zip(table.heads, table.rows[0], strict=True))
        told = json.loads((folder / "models/0/mvtec_bolt/model.json").read_text())["thresholds"]
        if told["unseen"]:
            assert row["expected rate"] == f"{100 * (told['above'] + 1) / 5:.1f}"
            assert float(row["rate at most"]) > float(row["expected rate"])
        else:
            assert row["expected rate"] == row["rate at most"] == "-"


def test_held_out_images_are_told_of(mvtec, tmp_path, capsys):
    folder = run(tmp_path, ["-d", "bolt", "--train_val_split", "0.5", "mvtec", mvtec])
    capsys.readouterr()
    said = predicted(folder, mvtec, tmp_path / "out", capsys)
    assert "About 33.3 % of new normal images are called anomalous, and at most 77.6 % (95 % sure)" in said
    assert "by 2 held-out normal images" in said


def test_calibration_needs_a_threshold_of_training_images(mvtec, tmp_path):
    words = ["--results_path", str(tmp_path), "--calibrate", "3", *SMALL_NET, "dataset", *SMALL_DATA]
    with pytest.raises(UsageError, match="--calibrate has no effect with a --train_val_split below 1"):
        main.main([*words, "--train_val_split", "0.5", "mvtec", str(mvtec)], standalone_mode=False)


def test_single_images_cannot_be_left_out(mvtec, tmp_path):
    """The threshold is told as one of which nothing is known."""
    shutil.copytree(mvtec / "bolt", tmp_path / "data" / "bolt")
    for path in sorted((tmp_path / "data" / "bolt" / "train" / "good").iterdir())[1:]:
        path.unlink()
    folder = run(tmp_path, ["mvtec", tmp_path / "data"], "--calibrate", "2")
    described = json.loads((folder / "models/0/mvtec_bolt/model.json").read_text())
    assert described["thresholds"]["unseen"] is None
    assert pd.read_csv(folder / "results.csv")["class"][0] == "mvtec_bolt"
