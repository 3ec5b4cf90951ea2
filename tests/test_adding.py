"""What CONTRIBUTING says of adding is all that it takes: a detector and a dataset of a module and a line each.

A metric is tried in test_entries.py.
"""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import SMALL_DATA, SMALL_NET

import datasets
import main
import methods
from cli.tables import table
from errors import DataError
from methods import Entry, load

DETECTOR = '''
"""Colour: how far an image's colours are from the mean colour c of normal ones, d = |x - c|^p."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detection import Detector, EndOfPass, Prediction
from detection.anomaly_map import align_maps
from detection.light import Matching, match_light
from options import option


@dataclass(frozen=True)
class Options:
    """Colour: distances to a mean colour."""

    align_maps: bool = align_maps()
    match_light: Matching = match_light()
    power: float = option(2.0, "p, of the distance.", above=0)
    epochs: int = option(1, "Passes over the training images.", at_least=1)


class Step(NamedTuple):
    loss: Tensor


class Colour(Detector):
    Options = Options

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.mean = nn.Parameter(torch.zeros(3))

    def features(self, images):
        return self.backbone(images, self.layers)[0].permute(0, 2, 3, 1)

    def trainer(self, *classes):
        return Trainer(self)

    def forward(self, embeddings):
        maps = self.drawn((embeddings.float() - self.mean).abs().pow(self.options.power).sum(dim=-1))
        return Prediction(maps.flatten(1).amax(dim=1), maps)


class Trainer:
    def __init__(self, detector):
        self.detector = detector
        self.optimizer = torch.optim.SGD([detector.mean], lr=0.1)

    def steps(self, batches):
        for batch in batches:
            loss = (batch.float() - self.detector.mean).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            yield Step(loss.detach())

    def end_pass(self):
        return EndOfPass()

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)
'''
DATASET = '''
"""Stripes: DATA_PATH/NAME/*.png, the last --striped of which are anomalous."""

from dataclasses import dataclass

from datasets.folders import images
from datasets.sample import ClassSamples, DatasetReader, Sample
from options import option


@dataclass(frozen=True)
class Options:
    """Which images are anomalous."""

    striped: int = option(2, "How many.", at_least=1)


def reader(options):
    def find_classes(root):
        return sorted(path.name for path in root.iterdir() if path.is_dir())

    def read_class(root, class_name):
        paths = images(root / class_name)
        normal, anomalous = paths[: -options.striped], paths[-options.striped :]
        train = [Sample(path, (), False, class_name, "good") for path in normal]
        test = [Sample(path, (), path in anomalous, class_name, "striped") for path in [normal[0], *anomalous]]
        return ClassSamples(train, test)

    words = ("stripes", "stripes, for a test", "NAME/*.png")
    return DatasetReader(*words, find_classes, read_class, options=options, of=reader)


STRIPES = reader(Options())
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module and let it be imported, as one of the product's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(main.main, "made", {})

    def write(name: str, text: str) -> None:
        Path(f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


def call(*words):
    return main.main([str(word) for word in words], standalone_mode=False)


def test_a_detector(module, monkeypatch, mvtec, capsys):
    module("colour", DETECTOR)
    monkeypatch.setitem(methods.ENTRIES, "colour", Entry("colour", "Colour", "Colour: distances to a mean."))
    chain = [
        "colour",
        "-b",
        "pixels",
        "-le",
        "input",
        "--power",
        "3",
        "dataset",
        *SMALL_DATA,
        "-d",
        "nut",
        "mvtec",
        mvtec,
    ]
    call("--seed", "1", *chain)
    run = Path("results/project/group/test")
    model = run / "models/0/mvtec_nut"
    before = (run / "results.csv").read_bytes()
    assert json.loads((model / "model.json").read_text())["options"]["power"] == 3
    call("--test", "--seed", "1", *chain)
    assert (run / "results.csv").read_bytes() == before
    assert call("predict", model, mvtec / "nut" / "test" / "crack", "--map", "none") == 0
    rows, found = pd.read_csv("predictions/predictions.csv"), pd.read_csv(model / "predictions.csv")
    ours = found[found["image"].str.contains("crack")]["score"].tolist()
    assert rows["score"].tolist() == pytest.approx(ours, rel=1e-5)
    call("--run_name", "grid", "--grid", "power=1,2", *chain)
    call("report", run, "results/project/group/grid", "--out", "page.html")
    assert "power" in Path("page.html").read_text()
    call("--help")
    assert "Colour: distances to a mean." in capsys.readouterr().out
    assert "| `--power` | `2` | p, of the distance. |" in table("colour")
    assert load(model).predict(torch.zeros(1, 3, 32, 32)).maps.shape == (1, 32, 32)
    description = json.loads((model / "model.json").read_text())
    description["options"]["power"] = "3"
    (model / "model.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="power is '3'"):
        load(model)


def test_a_dataset(module, monkeypatch, mvtec, capsys):
    module("stripes", DATASET)
    import stripes

    monkeypatch.setitem(datasets.DATASETS, "stripes", stripes.STRIPES)
    folder = Path("data/nut")
    folder.mkdir(parents=True)
    for i, path in enumerate(sorted((mvtec / "nut").rglob("good/*.png"))):
        (folder / f"{i:02}.png").write_bytes(path.read_bytes())
    call(*SMALL_NET, "dataset", *SMALL_DATA, "--striped", "3", "stripes", "data")
    run = Path("results/project/group/test")
    assert pd.read_csv(run / "models/0/stripes_nut/predictions.csv")["label"].tolist() == [0, 1, 1, 1]
    assert json.loads((run / "config.json").read_text())["dataset"]["options"] == {"striped": 3}
    with pytest.raises(Exception, match="--striped is an option of dataset stripes, not of 'mvtec'"):
        call(*SMALL_NET, "dataset", "--striped", "3", "mvtec", mvtec)
    call("dataset", "--help")
    assert "stripes, for a test" in capsys.readouterr().out
    assert "| `--striped` | `2` | How many. |" in table("dataset stripes")
