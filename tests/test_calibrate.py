"""Scores among those of normal images, thresholds of fresh ones, and what is said of both."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from click import BadParameter
from conftest import make_mvtec
from scipy.stats import beta, binomtest, genpareto

import main
from datasets import brightness_of, read_image
from detection import Detector, Prediction, is_anomalous
from detection.brightness import like
from detection.decision import Thresholds, allowed_above, images_needed, share_interval
from detection.normal_scores import FURTHEST, LEAST, MOST, NormalScores, ranks
from errors import DataError, UsageError
from experiment.use.calibrate import outliers, threshold_of
from methods import load


def call(*words):
    return main.main([str(word) for word in words], standalone_mode=False)


# Scores among those of normal images


def test_a_p_value_counts_the_images_that_score_as_high():
    normal = NormalScores.of(np.array([3.0, 1.0, 2.0, 2.0]))
    assert normal.kept == (1, 2, 2, 3) and normal.images == 4 and normal.tail is None
    found = normal.p_values([0.5, 1, 1.5, 2, 3, 3.1, 1e9, math.nan])
    assert found == pytest.approx([1, 1, 0.8, 0.8, 0.4, 0.2, 0.2, math.nan], nan_ok=True)
    assert normal.beyond([3, 3.1, 1e9]) == 2


@pytest.mark.parametrize("images", [1, 40, MOST, MOST + 1, 3000])
def test_what_is_kept_is_bounded_and_exact_at_the_top(images):
    scores = np.random.default_rng(images).permutation(np.arange(images, dtype=float))
    normal, own = NormalScores.of(scores), ranks(images, min(images, MOST))
    assert len(normal.kept) == min(images, MOST) == len(set(own.tolist())) and normal.kept == tuple(own - 1)
    assert own[0] == 1 and own[-1] == images
    highest = np.arange(max(images - MOST // 2, 0), images)
    assert normal.p_values(highest) == pytest.approx((images + 1 - highest) / (images + 1))
    exact = (images + 1 - np.arange(images)) / (images + 1)
    assert (normal.p_values(np.arange(images)) >= exact - 1e-12).all()  # never less than it is
    assert normal.p_values(np.arange(images)) == pytest.approx(exact, abs=2 / MOST)


@pytest.mark.parametrize("shape", [0.0, 0.3])
def test_beyond_all_images_a_tail_goes_on(shape):
    """From the share above the highest, in parallel with the distribution that the scores come from."""
    scores = genpareto.rvs(shape, scale=2, size=20_000, random_state=0)
    normal = NormalScores.of(scores)
    assert normal.tail[2] == pytest.approx(shape, abs=0.12)
    highest, start = normal.kept[-1], normal.tail[0]
    fitted = genpareto(normal.tail[2], scale=normal.tail[1])
    beyond = highest * np.array([1.01, 1.5, 3])
    expected = fitted.sf(beyond - start) / fitted.sf(highest - start)
    assert expected[1] < expected[0] < 1 and expected[0] > FURTHEST
    assert normal.p_values(beyond) == pytest.approx(np.maximum(expected, FURTHEST) / 20_001)
    assert (np.diff(normal.p_values(np.sort([*scores[:100], *beyond]))) <= 0).all()
    assert normal.p_values(1e300) == pytest.approx(FURTHEST / 20_001)  # no rarer than that


def test_where_scores_tell_of_no_tail():
    rng = np.random.default_rng(0)
    assert NormalScores.of(rng.normal(size=2 * LEAST - 1)).tail is None
    assert NormalScores.of(np.ones(100)).tail is None
    assert NormalScores.of(np.array([*[0.0] * 99, 1.0])).tail is None
    assert NormalScores.of(rng.uniform(size=200)).tail[2] == 0  # its end is not believed
    assert "have the same: these tell of no tail" in NormalScores.of(np.ones(100)).said("held-out normal images", 3)
    told = NormalScores.of(rng.normal(size=100)).said("training images", 3)
    assert "100 training images, which score lower than new ones. For the 3 above all of them a tail fitted" in told
    assert "the highest 10 goes on" in told
    assert "tail" not in NormalScores.of(np.ones(100)).said("training images", 0)


# Thresholds of fresh images


@pytest.mark.parametrize(("share", "images"), [(0.01, 40), (0.05, 40), (0.1, 40), (0.01, 99), (0.29, 99), (0.9, 3)])
def test_as_few_are_expected_above_as_is_asked_for(share, images):
    above = allowed_above(share, images)
    assert 0 <= above < images
    assert above == 0 or (above + 1) / (images + 1) <= share + 1e-9
    assert (above + 2) / (images + 1) > share
    scores = np.random.default_rng(0).permutation(images).astype(np.float32)
    assert int(is_anomalous(scores, threshold_of(scores, share)).sum()) == above


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_how_many_images_it_takes(share):
    expected, sure = images_needed(share)
    assert 1 / (expected + 1) <= share + 1e-12 < 1 / expected
    assert beta.sf(share, 1, sure) <= 0.05 < beta.sf(share, 1, sure - 1)


@pytest.mark.parametrize(("count", "total"), [(0, 1), (1, 1), (0, 40), (3, 40), (40, 40)])
def test_the_interval_is_that_of_clopper_and_pearson(count, total):
    expected = binomtest(count, total).proportion_ci(0.95)
    assert share_interval(count, total) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_the_interval_holds_for_a_threshold_that_is_one_of_the_scores(share):
    """Of 4,000 thresholds of 40 scores each: a score's share of new ones above is known."""
    drawn = np.random.default_rng(0).uniform(size=(4000, 40))
    rates = np.array([1 - threshold_of(own, share) for own in drawn])
    low, high = share_interval(allowed_above(share, 40), 40)
    assert ((rates >= low) & (rates <= high)).mean() >= 0.945
    assert (rates > high).mean() == pytest.approx(0.025, abs=0.007)  # exact


def test_outliers_are_far_above_the_others():
    scores = np.append(np.random.default_rng(0).normal(size=60), [9, 12]).astype(np.float32)
    assert outliers(scores).tolist() == [False] * 60 + [True] * 2
    assert not outliers(-scores).any() and not outliers(np.ones(3, np.float32)).any()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Good images and bad ones; tests must not change them."""
    return make_mvtec(tmp_path_factory.mktemp("fresh"), ["nut"], train=24, test=3) / "nut"


def test_calibrate_writes_a_copy_at_thresholds_of_fresh_images(model, fresh, tmp_path, capsys):
    """And predict says shares of those images."""
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    new = tmp_path / "new"
    words = ["--bad", fresh / "test/crack", "--false_alarms", "0.1", "--out", new]
    assert call("calibrate", model, fresh / "train", *words) == 0
    said = capsys.readouterr().err
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in new.iterdir()) == ["checkpoint.safetensors", "model.json"]
    assert (new / "checkpoint.safetensors").read_bytes() == (model / "checkpoint.safetensors").read_bytes()
    good = sorted((fresh / "train").rglob("*.png"))
    calibrated = load(new)
    scores, maps = calibrated.predict(good)
    levels = np.array([brightness_of(calibrated.transform.pixels(read_image(path))) for path in good])
    own = calibrated.thresholds
    assert (own.source, own.images, own.above, own.unseen) == ("fresh normal images", 24, 1, 24)
    assert own.image == pytest.approx(scores.sort().values[-2].item(), abs=1e-5)
    assert own.pixel == pytest.approx(maps.flatten().quantile(0.9, interpolation="higher").item(), abs=1e-5)
    assert own.brightness == pytest.approx(like(levels, 0.95)) and own.quantile == pytest.approx(0.9)
    assert own.scores == pytest.approx(scores.sort().values.tolist(), abs=1e-5) and len(own.tail) == 3
    assert replace(calibrated.description, thresholds=None) == replace(load(model).description, thresholds=None)
    assert f"became {own.image:.4g}; written to {new}" in said
    assert "reject about 8 % of good parts, 0.11 to 21 % (95 % interval), by 24 fresh normal images, 1 of" in said
    bad = calibrated.predict(sorted((fresh / "test/crack").iterdir())).scores
    assert f"It finds {int((bad > own.image).sum())} of 3 bad images: " in said and "images are few" not in said
    out = tmp_path / "out"
    assert call("predict", new, *good[:2], fresh / "test/crack", "--map", "none", "--out", out) == 0
    table = pd.read_csv(out / "predictions.csv")
    expected = own.normal.p_values(table["score"].astype(np.float32))
    assert table["p_value"].tolist() == pytest.approx(expected, rel=1e-3)
    assert table["percentile"].tolist() == pytest.approx(100 * (1 - expected), rel=1e-5)
    said = capsys.readouterr().err
    assert "About 8.0 % of new normal images are called anomalous, and at most" in said
    assert said.count("percentile and p_value compare with 24 fresh normal images.") == 1


def test_few_images_and_outliers_are_said_and_all_counted(model, fresh, tmp_path, capsys, monkeypatch):
    """With the threshold that would be without outliers."""
    scores = iter([*np.linspace(0, 1, 22).tolist(), 7.0, 5.0])

    def predicted(_, images):
        return Prediction(torch.tensor([next(scores) for _ in images]), torch.zeros(len(images), 32, 32))

    monkeypatch.setattr(Detector, "predict_read", predicted)
    call("calibrate", model, fresh / "train", "--out", tmp_path / "new", "--false_alarms", "0.03")
    said = capsys.readouterr().err
    names = f"'{fresh / 'train/good/022.png'}' (7), '{fresh / 'train/good/023.png'}' (5)"
    assert f"2 of them score far above the others, and count all the same: {names}. If they are bad" in said
    assert "without them the threshold were 1." in said and "Image threshold" in said
    assert "24 images are few: to expect 3 % or less takes 33, to be 95 % sure of it 99; the threshold is the" in said
    own = load(tmp_path / "new").thresholds
    assert own.image == 7 and own.images == len(own.scores) == 24


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["{good}/000.png"], UsageError, "000.png' is not a folder: expected one with fresh good images"),
        (["{good}", "--bad", "{gone}"], UsageError, "gone' is not a folder: expected one with bad images"),
        (["{good}", "--out", "{good}"], UsageError, "good' is there already: give another --out"),
        (["{empty}"], DataError, "no images in '.*empty'"),
        (["{good}", "--bad", "{good}"], UsageError, r"000.png' and 23 more would be good and bad"),
        (["{broken}"], DataError, "b.png' is not an image .*no image is left out of a calibration"),
        (["{good}", "--max_pixels", "9"], DataError, "48 x 48.*--max_pixels"),
        (["{good}", "--false_alarms", "0"], BadParameter, "not in the range 0<x<1"),
        (["{good}", "--false_alarms", "1"], BadParameter, "not in the range 0<x<1"),
    ],
)
def test_what_cannot_be_calibrated(model, fresh, tmp_path, words, error, message):
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    shutil.copy(fresh / "train/good/000.png", tmp_path / "broken/a.png")
    (tmp_path / "broken/b.png").write_bytes(b"\x89PNG")
    places = {name: tmp_path / name for name in ("empty", "broken", "gone")} | {"good": fresh / "train/good"}
    words = [word.format(**places) for word in words]
    words += [] if "--out" in words else ["--out", tmp_path / "new"]
    with pytest.raises(error, match=message):
        call("calibrate", model, *words)
    assert not list(tmp_path.glob("*new*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [1.0, "2"]}, "a normal score is '2'"),
        ({"scores": [2.0, 1.0]}, "scores and tail are not those"),
        ({"scores": []}, "scores and tail are not those"),
        ({"scores": 3}, "cannot be read"),
        ({"scores": [float("nan")]}, "a normal score is nan"),
        ({"scores": [0.0] * 5}, "scores and tail are not those"),  # of four images
        ({"scores": [0.0, 1.0], "tail": [0.5, 1.0]}, "scores and tail are not those"),
        ({"scores": [0.0, 1.0], "tail": [2.0, 1.0, 0.0]}, "scores and tail are not those"),
        ({"scores": [0.0, 1.0], "tail": [0.5, 0.0, 0.0]}, "scores and tail are not those"),
        ({"scores": [0.0, 1.0], "tail": [0.5, 1.0, -0.1]}, "scores and tail are not those"),
        ({"scores": None, "tail": [0.5, 1.0, 0.1]}, "scores and tail are not those"),
        ({"above": 2, "unseen": 1}, "2 above, of 1 unseen"),
    ],
)
def test_what_a_model_claims_of_normal_scores_is_checked(model, tmp_path, change, message):
    copied = shutil.copytree(model, tmp_path / "model")
    described = json.loads((copied / "model.json").read_text())
    described["thresholds"] |= change
    (copied / "model.json").write_text(json.dumps(described))
    with pytest.raises(DataError, match=message):
        load(copied)


def test_a_model_that_is_older_says_so(model, mvtec, tmp_path, capsys):
    copied = shutil.copytree(model, tmp_path / "model")
    described = json.loads((copied / "model.json").read_text())
    for name in ("scores", "tail"):
        del described["thresholds"][name]
    (copied / "model.json").write_text(json.dumps(described))
    out = tmp_path / "out"
    assert call("predict", copied, mvtec / "bolt/test/good", "--map", "none", "--out", out) == 0
    assert "percentile and p_value stay empty: the model, older than they are" in capsys.readouterr().err
    assert pd.read_csv(out / "predictions.csv")[["percentile", "p_value"]].isna().all(axis=None)


def test_held_out_thresholds_stay_as_they_were():
    assert Thresholds(0.0, 0.0, 0.995, "held-out normal images", 47).false_alarms.expected == pytest.approx(1 / 48)
    assert Thresholds(0.0, 0.0, 0.9, "training images", 47).false_alarms is None
