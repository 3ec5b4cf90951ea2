"""A detector that has none of what most have: no steps, backbone, parameters, map or export; and several features."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from conftest import SMALL_DATA
from test_adding import call, module  # noqa: F401 - a fixture
from test_resume import outputs
from test_state import interrupt_after

import backbones
import methods
from detection import Prediction
from detection.state import fits, in_words
from errors import DataError, Interrupted, UsageError
from experiment.machine import progress as bars
from methods import Entry, load

SHADES = '''
"""Shades: how far the mean and the deviation of an image's colours are from those of the nearest normal image."""

from dataclasses import dataclass

import torch

from detection import Detector, Passes, Prediction
from options import option


@dataclass(frozen=True)
class Options:
    """Shades: distances to what is remembered of normal images."""

    most: int = option(100, "Images that are remembered.", at_least=1)
    secret: bool = option(False, "Never exported.")


class Shades(Detector):
    Options = Options
    NEEDS_BACKBONE = False

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("seen", torch.empty(0, 6))

    @property
    def sized_by_data(self):
        return {"seen": (range(1, self.options.most + 1), 6)}

    @property
    def not_exported(self):
        return "it is a secret" if self.options.secret else super().not_exported

    def passes_of(self, has_held_out):
        return Passes(steps=0, settling=1)

    def features(self, images):
        return images.mean((2, 3)), images.std((2, 3))

    def settle(self, own):
        self.seen = torch.cat([torch.cat(batch, dim=1) for batch in own.train])[: self.options.most].float()
        return {"spread": torch.pdist(self.seen).max().item()}

    def forward(self, embeddings):
        apart = (torch.cat(embeddings, dim=1).unsqueeze(1) - self.seen).square()
        nearest = apart.sum(2).argmin(1).view(-1, 1, 1).expand(-1, 1, 2)
        terms = apart.unflatten(2, (2, 3)).sum(3).gather(1, nearest)[:, 0].unbind(1)
        return Prediction(sum(terms), terms={"means": terms[0], "deviations": terms[1]})
'''
RUN = Path("results/project/group")
CHAIN = ["dataset", *SMALL_DATA, "--batch_size", "3", "-d", "nut", "mvtec"]


@pytest.fixture
def shades(module, monkeypatch):  # noqa: F811
    module("shades", SHADES)
    monkeypatch.setitem(methods.ENTRIES, "shades", Entry("shades", "Shades", "Shades: distances to normal images."))


@pytest.mark.usefixtures("shades")
def test_the_whole_chain(mvtec, monkeypatch, capsys):
    made, make = [], bars._make_bar
    monkeypatch.setattr(bars, "_make_bar", lambda *args, **kwargs: made.append(make(*args, **kwargs)) or made[-1])
    words = ["--precision", "fp32", "--save_segmentation_images", "shades", *CHAIN, mvtec]
    call(*words)
    (bar,) = [bar for bar in made if bar.desc == "mvtec_nut seed 0"]
    assert bar.n == bar.total == 2 + 1  # batches of training images, to settle on, and of test images
    model = RUN / "test/models/0/mvtec_nut"
    history, results = pd.read_csv(RUN / "test/history.csv"), pd.read_csv(RUN / "test/results.csv", index_col="class")
    assert history["meta_epoch"].tolist() == [1] and history["loss"].isna().all() and (history["spread"] > 0).all()
    row = results.loc["mvtec_nut"]
    assert row["image_auroc"] >= 0 and row[["pixel_auroc", "pro", "pixel_ap", "pixel_f1_max"]].isna().all()
    predictions = pd.read_csv(model / "predictions.csv")
    assert (predictions["means"] + predictions["deviations"]).tolist() == pytest.approx(predictions["score"].tolist())
    drawn = sorted(path.relative_to(model / "segmentations") for path in model.glob("segmentations/**/*.png"))
    assert len(drawn) == len(predictions)
    description = json.loads((model / "model.json").read_text())
    assert description["map_range"] is None and description["thresholds"]["pixel"] is None
    assert description["backbone"]["name"] == "pixels"
    before = outputs(RUN / "test")
    call("--test", *words)
    assert outputs(RUN / "test") == before
    call("report", RUN / "test", "--out", "page.html")

    assert call("predict", model, mvtec / "nut/test", "--out", "p") == 0
    found = pd.read_csv("p/predictions.csv")
    assert sorted(found["score"]) == pytest.approx(sorted(predictions["score"]), rel=1e-5)
    assert found["map"].isna().all() and all(Path("p", name).is_file() for name in found["picture"])
    with pytest.raises(UsageError, match="draws no maps, and --map both and --full_size asks for some"):
        call("predict", model, mvtec / "nut/test", "--out", "q", "--map", "both", "--full_size")

    capsys.readouterr()
    call("export", model, "--out", "m.onnx")
    assert "draws no maps: the file gives scores alone" in capsys.readouterr().err
    session = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    assert [own.name for own in session.get_outputs()] == ["scores"]
    trained = load(model)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    assert trained.predict(pixels).maps is None
    expected = trained.detector.predict_read(torch.from_numpy(pixels).permute(0, 3, 1, 2)).scores
    np.testing.assert_allclose(session.run(None, {"images": pixels})[0], expected, atol=1e-3)

    for change, message in (
        ({"options": {"most": 2, "secret": False}}, r"seen is torch.float32 \[4, 6\], not torch.float32 \[1 to 2, 6\]"),
        ({"map_range": [0, 1]}, "a score of pixels is None"),
        ({"thresholds": {**description["thresholds"], "pixel": 0.5}}, "map_range is None, and a pixel's threshold 0.5"),
    ):
        (model / "model.json").write_text(json.dumps({**description, **change}))
        with pytest.raises(DataError, match=message):
            load(model)


@pytest.mark.usefixtures("shades")
def test_an_interrupted_run_goes_on_with_what_it_has_settled(mvtec, monkeypatch):
    words = ["shades", "--secret", *CHAIN, mvtec]
    call("--run_name", "whole", *words)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(patch, 1)
        call(*words)
    (path,) = RUN.glob("test/models/0/*/state.pt")
    state = torch.load(path, weights_only=True)
    seen = state["training"]["detector"]["seen"]
    for size in (0, 101):
        state["training"]["detector"]["seen"] = torch.zeros(size, 6)
        torch.save(state, path)
        with pytest.raises(DataError, match=rf"damaged \(seen is \[{size}, 6\], not \[1 to 100, 6\]\)"):
            call(*words)
    state["training"]["detector"]["seen"] = seen
    torch.save(state, path)
    import shades

    with monkeypatch.context() as patch:
        patch.setattr(shades.Shades, "settle", None)  # it has
        call(*words)
    assert outputs(RUN / "test") == outputs(RUN / "whole")
    with pytest.raises(UsageError, match=r"cannot be exported \(it is a secret\): use predict"):
        call("export", RUN / "test/models/0/mvtec_nut", "--out", "m.onnx")


@pytest.mark.usefixtures("shades")
def test_it_needs_no_backbone(mvtec):
    with pytest.raises(UsageError, match="this detector reads pixels, and no backbone: leave out -b and -le"):
        call("shades", "-b", "resnet18", "-le", "layer1", *CHAIN, mvtec)


@pytest.mark.usefixtures("shades")
def test_gradients_where_they_are_needed():
    """The device of a detector without parameters, and what it predicts by a gradient, which nobody sees."""
    from shades import Shades

    class Steep(Shades):
        NEEDS_GRADIENTS = True

        def forward(self, embeddings):
            first = embeddings[0].detach().requires_grad_()
            (slope,) = torch.autograd.grad(first.square().sum(), first, create_graph=True)
            return Prediction(slope.sum(1))

    steep = Steep(backbones.load("pixels"), ["input"], (8, 8))
    images = torch.randn(2, 3, 8, 8)
    assert steep.device == torch.device("cpu") and steep.to("meta").device == torch.device("meta")
    steep = Steep(backbones.load("pixels"), ["input"], (8, 8))
    found = steep.predict(images)
    torch.testing.assert_close(found.scores, 2 * images.mean((2, 3)).sum(1))
    assert not found.scores.requires_grad and steep.not_exported == "it needs gradients to predict"


def test_sizes():
    sizes = (range(1, 6), 3)
    assert in_words(sizes) == "[1 to 5, 3]"
    assert [fits(shape, sizes) for shape in ((1, 3), (5, 3), (0, 3), (6, 3), (2, 4), (2,), (2, 3, 1))] == [
        *[True] * 2,
        *[False] * 5,
    ]
