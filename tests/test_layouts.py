"""How layers are read as maps: which axes are rows and columns, what is no map, and what of an image is seen."""

import itertools

import pytest
import timm
import torch
from torch import nn

import backbones
from backbones.layouts import Layout, NoMapError, find_layout
from errors import DataError, UsageError
from experiment.detector_config import BackboneConfig, DetectorConfig
from experiment.plan.resolve import load_backbone

SIZES = ((64, 64), (128, 192))


def info(name, layer, size=(224, 224)):
    (found,) = backbones.load(name, "random").layer_info([layer], size)
    return found


@pytest.mark.parametrize(
    ("name", "layer", "channels", "grid"),
    [
        ("samvit_base_patch16", "blocks.3", 768, (14, 14)),  # rows, columns, channels
        ("convnext_tiny", "stages.1.blocks.0.mlp", 192, (28, 28)),
        ("convnext_tiny", "stages.1", 192, (28, 28)),  # the same network has both kinds
        ("vit_swin_base", "patch_embed.proj", 128, (56, 56)),
        ("vit_swin_base", "patch_embed", 128, (56, 56)),
        ("volo_d1_224", "network.0", 192, (28, 28)),
        ("mambaout_femto", "stages.1", 96, (28, 28)),
        ("hieradet_small", "blocks.3", 384, (14, 14)),
        ("torchvision/swin_t", "features.3", 192, (28, 28)),
        ("vit_small", "patch_embed", 384, (14, 14)),  # tokens, none before those of patches
        ("vit_small", "blocks.2.attn", 384, (14, 14)),  # one before
        ("xcit_nano_12_p8_224", "blocks.3", 128, (28, 28)),
        ("hiera_tiny_224", "blocks.2", 192, (28, 28)),
        ("convit_tiny", "blocks.3", 192, (14, 14)),  # takes squares alone
    ],
)
def test_maps_of_every_layout(name, layer, channels, grid):
    found = info(name, layer)
    assert (found.channels, found.grid) == (channels, grid)


@pytest.mark.parametrize(
    ("name", "layer", "size", "grid"),
    [
        ("samvit_base_patch16", "blocks.3", (96, 64), (6, 4)),
        ("hiera_tiny_224", "blocks.0", (96, 160), (24, 40)),
        ("volo_d1_224", "network.0", (64, 96), (8, 12)),
        ("beit_base_patch16_224", "blocks.1", (64, 96), (4, 6)),
        ("vit_swin_base", "layers.0", (64, 96), (16, 24)),
    ],
)
def test_networks_made_for_a_size_take_others(name, layer, size, grid):
    assert info(name, layer, size).grid == grid


def test_values_of_a_map_with_channels_last_are_the_networks():
    extractor = backbones.load("samvit_base_patch16", "random")
    images = torch.randn(1, 3, 32, 48)
    (found,) = extractor(images, ["blocks.0"])
    whole = extractor.network(images)["blocks.0"]
    assert found.shape == (1, 768, 2, 3)
    torch.testing.assert_close(found[0, :, 1, 2], whole[0, 1, 2])


def test_a_file_of_another_size(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("volo_d1_224").state_dict(), path)
    with pytest.raises(DataError, match="'pos_embed'; if they are of images of 224 x 224, choose --imagesize 224"):
        backbones.load("volo_d1_224", str(path))(torch.zeros(1, 3, 64, 96), ["network.2"])


def test_pretrained_weights_of_another_size(monkeypatch):
    extractor = backbones.load("volo_d1_224")
    create = extractor._create_model

    def mismatch(pretrained=False, image_size=None):
        if pretrained:
            raise RuntimeError("Error(s) in loading state_dict for VOLO:\n\tsize mismatch for pos_embed")
        return create(image_size=image_size)

    monkeypatch.setattr(extractor, "_create_model", mismatch)
    with pytest.raises(UsageError, match="of images of another size than 64 x 96"):
        extractor(torch.zeros(1, 3, 64, 96), ["network.2"])


@pytest.mark.parametrize(
    ("name", "layer", "words"),
    [
        ("hrnet_w18", "stage3", "layer 'stage3' of backbone 'hrnet_w18' gives a list of several outputs"),
        ("crossvit_9_240", "blocks.0", "gives a list of several outputs"),
        ("pit_ti_224", "transformers.0", "gives a tuple of several outputs"),
        ("vit_swin_base", "layers.0.blocks.0.attn", "no spatial map"),  # windows stand in the place of images
        ("vit_small", "blocks.0.attn.q_norm", "not clearly a map"),
        ("levit_128s", "stages.0", "takes no images of another size"),
        ("resnet18", "global_pool.pool", "at every size of the image"),
        ("resnet18", "fc", "no spatial map"),
    ],
)
def test_what_is_no_map_is_refused_by_name(name, layer, words):
    with pytest.raises(UsageError, match=words) as refused:
        info(name, layer, (240, 240) if "240" in name else (224, 224))
    assert "\n" not in str(refused.value)


def test_layouts_by_shapes():
    assert find_layout((2, 16, 16, 16), (2, 16, 32, 48), SIZES) == Layout((1, 2, 3), (16, 16))  # all alike at first
    assert find_layout((2, 16, 16, 16), (2, 32, 48, 16), SIZES) == Layout((3, 1, 2), (16, 16))
    assert find_layout((2, 16, 8, 16), (2, 32, 8, 48), SIZES) == Layout((2, 1, 3), (16, 16))
    assert find_layout((2, 18, 16), (2, 98, 16), SIZES) == Layout((2, 1), (4, 4), 2)
    assert find_layout((2, 16, 18), (2, 16, 98), SIZES) == Layout((1, 2), (4, 4), 2)
    assert find_layout((2, 8, 1, 1), (2, 8, 2, 3), SIZES).grid == (1, 1)
    for first, second in [
        ((2, 4, 17, 17), (2, 4, 97, 97)),  # attention of tokens
        ((2, 8, 4, 4), (2, 8, 12, 8)),  # columns before rows
        ((8, 49, 16), (48, 49, 16)),
        ((2, 100, 16), (2, 101, 16)),
        ((2, 8, 4, 4, 4), (2, 8, 8, 12, 4)),
        ("dict", "dict"),
    ]:
        with pytest.raises(NoMapError):
            find_layout(first, second, SIZES)


@pytest.mark.parametrize("fold", [lambda m: m, lambda m: m.permute(0, 2, 3, 1), lambda m: m.permute(0, 2, 1, 3)])
def test_folding_a_map(fold):
    maps = torch.randn(2, 5, 4, 6)
    first, second = fold(maps), fold(torch.empty(2, 5, 8, 18))
    layout = find_layout(tuple(first.shape), tuple(second.shape), ((16, 24), (32, 72)))
    assert torch.equal(layout.fold(first), maps)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torchvision/nothing", "unknown backbone 'torchvision/nothing'"),
        ("torchvision/resnet19", "did you mean torchvision/resnet18"),
        ("torchvision/fasterrcnn_resnet50_fpn", "unknown backbone"),  # no network of whole images; it would download
        ("resnet18.nope", "no weights 'nope' of resnet18: it has .*a1_in1k"),
        ("wideresnet50.tv_in1k", "unknown backbone"),
        ("hf-hub:somebody/model", "unknown backbone 'hf-hub:somebody/model'"),
        ("timm/resnet17", "did you mean"),
        ("", "unknown backbone"),
    ],
)
def test_names_that_are_none(name, words):
    with pytest.raises(UsageError, match=words):
        backbones.load(name)


@pytest.mark.parametrize("name", ["timm/resnet18.a1_in1k", "hf_hub:timm/resnet18", "hf-hub:timm/resnet18.a1_in1k"])
def test_names_as_the_hub_has_them(name):
    assert backbones.load(name).model_name.startswith("resnet18")


class Loops(nn.Module):
    """A network that symbolic tracing cannot follow."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images):
        return self.layer(torch.stack(list(images)))


def test_a_network_that_cannot_be_cut_ends_in_one_line(strangers, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Loops())
    extractor = backbones.load("resnet18", "random")
    with pytest.raises(UsageError, match=r"'resnet18' cannot be cut at layer .*: choose another") as refused:
        extractor.build(["layer"], (64, 64))
    assert "\n" not in str(refused.value)


class Broken(nn.Module):
    """A network of somebody else's, which fails in its own way."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        raise AttributeError("'NoneType' object has no attribute 'view'")


def test_whatever_a_network_raises_is_one_line(strangers, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Broken())
    with pytest.raises(UsageError, match="'resnet18' cannot take images of 64 x 64: 'NoneType' object"):
        info("resnet18", "layer", (64, 64))


def choose(name, layer, side):
    backbone = BackboneConfig(name, name, (layer,), None)
    return load_backbone(backbone, DetectorConfig("net", (backbone,), "random", {}), 0, (side, side))


@pytest.mark.parametrize(
    ("name", "layer", "side", "words"),
    [
        ("vit_small_patch14_dinov2", "blocks.2", 256, "last 4 rows and 4 columns of 256 x 256: .* 252 or 266$"),
        ("vit_small_patch14_dinov2", "blocks.2", 288, "last 8 rows and 8 columns of 288 x 288: .* 280 or 294$"),
        ("vit_small", "patch_embed", 250, "240 or 256"),
        ("vit_swin_base", "layers.1", 250, "248 or 252"),
        ("convnext_atto", "stages.0", 250, "248 or 252"),
        ("pit_ti_224", "transformers.0.blocks.0", 250, "248 or 256"),  # patches that overlap
    ],
)
def test_sizes_that_leave_a_border_unseen(name, layer, side, words):
    with pytest.raises(UsageError, match=words):
        choose(name, layer, side)


@pytest.mark.parametrize(
    ("name", "layer", "side"),
    [
        ("vit_small_patch14_dinov2", "blocks.2", 252),
        *itertools.product(["resnet18"], ["layer3"], [250, 288, 225]),
        ("efficientnet_lite0", "blocks.4", 250),
        ("alexnet", "features.5", 250),
        ("inception_v4", "features.5", 250),
        ("densenet121", "features.denseblock2", 250),
    ],
)
def test_sizes_that_are_seen_wholly(name, layer, side):
    choose(name, layer, side)


def test_the_last_rows_and_columns_are_seen():
    """What check_size lets pass, and what it refuses, by changing one border of an image."""
    images = torch.zeros(1, 3, 38, 38)
    changed = images.clone()
    changed[..., -1, -1] = 9
    for name, layer, refused in [("vit_tiny_patch16_224", "blocks.0", True), ("resnet18", "layer2", False)]:
        extractor = backbones.load(name, "random")
        before, after = (extractor(one, [layer])[0] for one in (images, changed))
        assert torch.equal(before, after) == refused
        if refused:
            with pytest.raises(UsageError):
                extractor.check_size([layer], (38, 38))
        else:
            extractor.check_size([layer], (38, 38))
