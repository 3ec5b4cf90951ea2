"""Training images that are drawn: few of them, and some that are not normal."""

from pathlib import Path

import pandas as pd
import pytest
from conftest import SMALL_DATA, small
from hypothesis import given
from hypothesis import strategies as st
from test_resume import folder

import main
from datasets import ClassSamples, Sample, drawn
from errors import DataError


def sample(name, anomalous=False):
    return Sample(Path(name), (Path(f"{name}.mask"),) if anomalous else (), anomalous, "bolt", "good")


def a_class(train, good, bad):
    test = [sample(f"test {i}", anomalous=i % 2 == 0 and i // 2 < bad) for i in range(2 * max(good, bad))]
    return ClassSamples([sample(f"train {i}") for i in range(train)], test)


def names(samples):
    return [own.image_path.name for own in samples]


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 40), st.integers(0, 5), st.data())
def test_what_is_drawn(train, bad, contamination, seed, data):
    """So many images, each once and in order, and what is taken of the test set is in it no longer."""
    samples = a_class(train, 12, bad)
    shots = data.draw(st.none() | st.integers(1, train))
    count = round((shots or train) * contamination / 100)
    if count >= bad:
        with pytest.raises(DataError, match=f"takes {count} anomalous images for {shots or train} to train on.*{bad}$"):
            drawn(samples, shots, contamination, seed)
        return
    found = drawn(samples, shots, contamination, seed)
    kept, taken = found.train[: len(found.train) - count], found.train[len(found.train) - count :]
    assert len(found.train) == (shots or train)
    assert [one for one in samples.train if one in kept] == kept
    anomalous = [one for one in samples.test if one.anomalous]
    assert len(set(names(taken))) == count and set(names(taken)) <= set(names(anomalous))
    assert not any(one.anomalous or one.mask_paths for one in found.train)
    assert found.test == [one for one in samples.test if one.image_path.name not in names(taken)]


def test_seeds_draw_others_and_more_hold_fewer():
    samples = a_class(20, 5, 10)
    few, more, other = (drawn(samples, shots, 0, seed).train for shots, seed in ((4, 0), (9, 0), (4, 1)))
    assert set(names(few)) < set(names(more)) and names(few) != names(other)
    assert drawn(samples, None, 0, 3) == samples


def test_more_shots_than_images():
    with pytest.raises(DataError, match=r"--shots 6: there are 5 training images"):
        drawn(a_class(5, 1, 1), 6, 0, 0)


def test_each_seed_of_a_run_draws_its_own(tmp_path, monkeypatch, mvtec, embedded):
    """The test set is what is left, and a seed's images are those of a run of that seed alone."""
    monkeypatch.chdir(tmp_path)
    words = [*small("patchcore"), "dataset", *SMALL_DATA, "-d", "bolt", "--shots", "3", "--contamination", "30"]
    main.main(["--seed", "0", "--seed", "3", *words, "mvtec", str(mvtec)], standalone_mode=False)
    main.main(["--run_name", "alone", "--seed", "3", *words, "mvtec", str(mvtec)], standalone_mode=False)
    tables = [pd.read_csv(path) for path in sorted(folder(tmp_path).glob("models/0/*/predictions.csv"))]
    assert len(embedded) == 3 and len(tables) == 2
    assert [len(own) for own in tables] == [3, 3]
    assert tables[0]["score"].tolist() != tables[1]["score"].tolist()
    (alone,) = folder(tmp_path, "alone").glob("models/0/*/predictions.csv")
    assert alone.read_bytes() == sorted(folder(tmp_path).glob("models/0/*/predictions.csv"))[1].read_bytes()
