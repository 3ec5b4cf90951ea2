"""--align_maps: each layer's cells are drawn where they look, found once, kept with the model, and inside exports."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL_DATA, SMALL_NET
from torch import nn

import backbones
import main
from backbones import Alignment, LayerInfo, alignment, embed_patches, extractor
from backbones.alignment import PIXELS, interpolation
from backbones.centres import Centres, middle
from backbones.trace import trace
from detection.anomaly_map import anomaly_maps
from methods import load
from methods.cfa import CFA
from methods.multimodal import Multimodal
from methods.rd import ReverseDistillation
from simplenet import SimpleNet
from simplenet.recipes import STABLE


class Tiny(nn.Module):
    """Every step has a centre known by hand: its own offset times the stride before it, on top of that before it."""

    def __init__(self):
        super().__init__()
        self.padded = nn.Conv2d(3, 4, 3, stride=2, padding=1)  # 0 + 0, stride 2
        self.pool = nn.MaxPool2d(2)  # 0 + 2 / 2, stride 4
        self.even = nn.Conv2d(4, 4, 4, stride=2, padding=1)  # 1 + 4 / 2, stride 8
        self.one_sided = nn.Conv2d(4, 4, 3, stride=2)  # 3 + 8, stride 16
        self.dilated = nn.Conv2d(4, 4, 3, dilation=2)  # 11 + 2 * 16
        self.mean = nn.AvgPool2d(2)  # the other branch: 3 + 8 / 2, stride 16
        self.branches, self.last, self.larger, self.flat = (nn.Identity() for _ in range(4))

    def forward(self, images):
        fine = self.even(self.pool(self.padded(images)).relu())
        coarse = self.one_sided(F.pad(fine, (0, 1, 0, 1)))
        self.dilated(coarse)
        self.branches(coarse + self.mean(fine))  # between 11 and 7
        last = self.last(coarse.permute(0, 2, 3, 1)[:, 1::2])  # rows alone: 11 + 16, stride 32
        self.larger(F.interpolate(coarse, scale_factor=2.0))  # 11 - 4, stride 8
        return self.flat(last.flatten(1))


@pytest.mark.parametrize(
    ("layer", "rows", "columns"),
    [
        ("padded", (0, 2), (0, 2)),
        ("pool", (1, 4), (1, 4)),
        ("even", (3, 8), (3, 8)),
        ("one_sided", (11, 16), (11, 16)),
        ("dilated", (43, 16), (43, 16)),
        ("branches", (9, 16), (9, 16)),
        ("larger", (7, 8), (7, 8)),
    ],
)
def test_centres_known_by_hand(layer, rows, columns):
    with torch.device("meta"):
        found = trace(Tiny(), [layer], (128, 160))
    assert found.error is None
    assert found.centres[layer] == {2: rows, 3: columns}


def test_centres_of_other_layouts_and_of_none():
    with torch.device("meta"):
        found = trace(Tiny(), ["last", "flat"], (128, 160))
    assert found.centres["last"] == {1: (27, 32), 2: (11, 16)}
    assert found.centres["flat"] == {}
    assert middle(16, 224) == (6.5, 14)


@pytest.mark.parametrize(
    ("name", "layer", "offset", "stride"),
    [
        ("resnet18", "layer2", 0, 8),
        ("resnet18", "layer3", 0, 16),
        ("vgg11", "features.8", 1.5, 4),
        ("efficientnet_lite0", "blocks.2", 7, 8),  # padded on the right and below alone
        ("vit_small", "blocks.2", 7.5, 16),
        ("vit_swin_base", "layers.2", 7.5, 16),
        ("convnext_atto", "stages.2", 7.5, 16),
        ("xcit_nano_12_p8_224", "blocks.3", 0, 8),  # tokens of a convolution's map
    ],
)
def test_centres_of_networks(name, layer, offset, stride):
    (info,) = backbones.load(name, "random").layer_info([layer], (224, 224))
    assert info.centres == (Centres(offset, stride),) * 2


def drawn_offsets(align):
    """How far from spots in images the map of layer2's changes is drawn, mean over the spots; rows and columns."""
    side, network = 160, backbones.load("resnet18", "random")
    (info,) = network.layer_info(["layer2"], (side, side))
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, 3, side, side, generator=generator) / 4
    spots = torch.randint(56, side - 56, (48, 2), generator=generator)
    images = base.repeat(len(spots), 1, 1, 1)
    for image, (row, column) in zip(images, spots.tolist(), strict=True):
        image[:, row - 1 : row + 2, column - 1 : column + 2] += 3
    with torch.no_grad():
        changes = (network(images, ["layer2"])[0] - network(base, ["layer2"])[0]).square().sum(dim=1)
    maps = anomaly_maps(changes, (side, side), centres=info.centres if align else None).double()
    total = maps.sum(dim=(1, 2))
    places = torch.stack([maps.sum(dim=3 - axis) @ torch.arange(side).double() / total for axis in (1, 2)], dim=1)
    return (places - spots).mean(dim=0)


def test_spots_are_drawn_where_they_are():
    assert drawn_offsets(align=True).abs().max() < 1
    assert drawn_offsets(align=False).min() > 2.5


def test_learned_weights_look_where_they_are_measured(monkeypatch):
    """Those of EfficientNet-Lite0 have learned to undo their one-sided padding; jobs that share them measure once."""
    lite0, layers, size = backbones.load("efficientnet_lite0"), ["blocks.1", "blocks.2"], (96, 96)
    traced = [info.centres for info in lite0.layer_info(layers, size)]
    found = lite0.centres(layers, size)
    for (rows, columns), even in zip(found, (1.5, 3.5), strict=True):
        assert abs(rows.offset - even) <= 1.5 and abs(columns.offset - even) <= 1.5
        assert rows.offset * 4 % 1 == 0
    assert traced[1][0].offset == 7
    network = lite0.build(layers, size)
    assert alignment.middles(network, lambda images: lite0(images, layers), size, traced, "cpu") == found
    monkeypatch.setattr(extractor, "middles", None)
    assert lite0.centres(layers, size) is found
    monkeypatch.undo()
    first = backbones.load("efficientnet_lite0")
    with torch.inference_mode():
        assert first.centres(layers, size) == found
    assert not any(weight.is_inference() for weight in first.build(layers, size).parameters())


def test_interpolation_by_even_shares_is_pytorchs():
    for cells, count in ((5, 40), (7, 30), (1, 8)):
        unit = torch.eye(cells, dtype=torch.float64).unsqueeze(0)
        expected = F.interpolate(unit, size=count, mode="linear")[0].T
        torch.testing.assert_close(interpolation(middle(cells, count), cells, PIXELS, count), expected)


def infos():
    return [
        LayerInfo("fine", 4, 4, (8, 8), (Centres(0, 4),) * 2),
        LayerInfo("coarse", 4, 8, (4, 4), (Centres(0, 8),) * 2),
    ]


def test_deeper_layers_are_read_where_the_first_looks():
    coarse = torch.arange(4.0).view(1, 1, 4, 1).expand(1, 1, 4, 4)
    found = Alignment(infos()).on_first(coarse, 1, (8, 8))
    assert found[0, 0, :, 3].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    assert Alignment(infos(), 0.5).of(1)[0] == (4, 8)  # patches of 2 x 2 cells lie between them


@pytest.mark.parametrize("kind", [SimpleNet, CFA, ReverseDistillation, Multimodal])
def test_off_is_as_before(kind):
    """No weights more, and the numbers of the plain functions."""
    layers = ["layer1", "layer2"]
    detector = kind(backbones.load("resnet18", "random"), layers, (32, 32))
    on = kind(backbones.load("resnet18", "random"), layers, (32, 32), align_maps=True)
    assert not [name for name in detector.state_dict() if "alignment" in name]
    assert set(on.state_dict()) - set(detector.state_dict()) == {"_alignment._extra_state"}
    scores = torch.rand(2, 8, 8)
    assert torch.equal(detector.drawn(scores), anomaly_maps(scores, (32, 32)))
    assert not torch.equal(on.drawn(scores), detector.drawn(scores))
    if kind is SimpleNet:
        images = torch.randn(2, 3, 32, 32)
        plain = embed_patches(detector.backbone(images, layers), 1024, 1024)
        assert torch.equal(detector.embed(images).flatten(1, 2), plain)


def test_only_the_stable_recipe_sets_it():
    def given(command, *words):
        return main.main.get_command(None, command).make_context(command, list(words)).params["align_maps"]

    assert [given(command) for command in ("net", "cfa", "rd", "logicrd", "multimodal")] == [False] * 5
    assert given("net", "--recipe", "stable") and not given("net", "--recipe", "stable", "--no_align_maps")
    assert STABLE["align_maps"] is True


LITE = [{"test_resnet": "efficientnet_lite0", "layer1": "blocks.1", "layer2": "blocks.2"}.get(w, w) for w in SMALL_NET]
LITE[LITE.index("random")] = "pretrained"


@pytest.fixture(scope="module")
def trained(mvtec, tmp_path_factory):
    """Two runs that differ in nothing else: the models, by what --align_maps was."""
    folder = tmp_path_factory.mktemp("results")
    words = ["--results_path", str(folder), "--precision", "fp32", "--grid", "align_maps=false,true", *LITE]
    main.main([*words, "dataset", *SMALL_DATA, "-d", "bolt", "mvtec", str(mvtec)], standalone_mode=False)
    return {on: next(folder.rglob(f"align_maps={str(on).lower()}/models/0/mvtec_bolt")) for on in (False, True)}


def test_it_is_measured_once_and_kept(trained, mvtec, monkeypatch):
    def again(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(extractor, "middles", again)
    rows = (trained[True] / "predictions.csv").read_text().splitlines()[1:]
    model = load(trained[True])
    scores = model.predict([mvtec / row.split(",")[0] for row in rows]).scores
    np.testing.assert_allclose(scores, [float(row.split(",")[3]) for row in rows], atol=1e-4)
    assert model.detector.alignment.of(1)[0].offset != 7


def test_it_is_inside_exports(trained, tmp_path, capsys):
    """The export is compared with PyTorch before it is written."""
    out = tmp_path / "model.pt2"  # what ONNX files are translated from
    words = ["export", str(trained[True]), "--format", "torch_export", "--out", str(out)]
    main.main(words, standalone_mode=False)
    assert out.is_file() and "largest difference to PyTorch" in capsys.readouterr().out


def test_models_older_than_it_are_without(trained):
    path = trained[False] / "model.json"
    kept = path.read_text()
    content = json.loads(kept)
    del content["options"]["align_maps"]
    try:
        path.write_text(json.dumps(content))
        model = load(trained[False])
    finally:
        path.write_text(kept)
    assert model.detector.alignment is None
    assert model.description.options == json.loads(kept)["options"]
