"""The backbone names that SimpleNet's users type, and the timm (or torchvision) model behind each.

The original takes torchvision's first ImageNet weights ("tv_in1k") for most CNNs; the same tensors are named here,
since published numbers hold for them only. Any other timm name is used as it is.
"""

import difflib
import importlib
import re

from backbones.zoo import timm
from errors import UsageError

TORCHVISION = "torchvision/"
TOGETHER = "+"  # joins the names of backbones that are read side by side
PIXELS = "pixels"  # no network: its one layer, "input", is the image itself

BACKBONES: dict[str, str] = {
    "alexnet": "torchvision/alexnet",
    "resnet18": "resnet18.tv_in1k",
    "resnet50": "resnet50.tv_in1k",
    "resnet101": "resnet101.tv_in1k",
    "resnext101": "resnext101_32x8d.tv_in1k",
    "resnet200": "resnet200d.ra2_in1k",
    "resnest50": "resnest50d_4s2x40d.in1k",
    "resnetv2_50_bit": "resnetv2_50x3_bit.goog_in21k_ft_in1k",
    "resnetv2_50_21ft1k": "resnetv2_50x3_bit.goog_in21k",
    "resnetv2_101_bit": "resnetv2_101x3_bit.goog_in21k_ft_in1k",
    "resnetv2_101_21ft1k": "resnetv2_101x3_bit.goog_in21k",
    "resnetv2_152_bit": "resnetv2_152x4_bit.goog_in21k_ft_in1k",
    "resnetv2_152_21ft1k": "resnetv2_152x4_bit.goog_in21k",
    "resnetv2_152_384": "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384",
    "vgg11": "vgg11.tv_in1k",
    "vgg19": "vgg19.tv_in1k",
    "vgg19_bn": "vgg19_bn.tv_in1k",
    "wideresnet50": "wide_resnet50_2.tv_in1k",
    "wideresnet101": "wide_resnet101_2.tv_in1k",
    "mnasnet_100": "mnasnet_100.rmsp_in1k",
    "densenet121": "densenet121.tv_in1k",
    "densenet201": "densenet201.tv_in1k",
    "inception_v4": "inception_v4.tf_in1k",
    "vit_small": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_base": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "vit_large": "vit_large_patch16_224.augreg_in21k_ft_in1k",
    "vit_r50": "vit_large_r50_s32_224.augreg_in21k_ft_in1k",
    "vit_deit_base": "deit_base_patch16_224.fb_in1k",
    "vit_deit_distilled": "deit_base_distilled_patch16_224.fb_in1k",
    "vit_swin_base": "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    "vit_swin_large": "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    "efficientnet_b1": "tf_efficientnet_b1.ns_jft_in1k",
    "efficientnet_b3": "tf_efficientnet_b3.ns_jft_in1k",
    "efficientnet_b5": "tf_efficientnet_b5.ns_jft_in1k",
    "efficientnet_b7": "tf_efficientnet_b7.ns_jft_in1k",
    "efficientnetv2_m": "tf_efficientnetv2_m.in21k_ft_in1k",
    "efficientnetv2_l": "tf_efficientnetv2_l.in21k_ft_in1k",
    "efficientnet_lite0": "tf_efficientnet_lite0.in1k",
    "efficientnet_lite2": "tf_efficientnet_lite2.in1k",
}

_HUB = re.compile(r"(hf[-_]hub:)?timm/")  # how the hub calls timm's models


def find_model(name: str) -> str:
    """What timm (or, behind "torchvision/", torchvision) calls a backbone.

    Raises:
        UsageError: it knows no such model, or no such weights of it.
    """
    plain = _HUB.sub("", name, count=1) if _HUB.match(name) else name
    model_name = BACKBONES.get(plain, plain)
    if model_name == PIXELS:
        return model_name
    if model_name.startswith(TORCHVISION):
        torchvision_models = importlib.import_module("torchvision.models")
        known = [TORCHVISION + one for one in torchvision_models.list_models(module=torchvision_models)]
        if model_name not in known:
            raise _unknown(name, model_name, known, f"known are {', '.join(known)}")
        return model_name
    if not timm.is_model(model_name):
        otherwise = f"known are {', '.join(BACKBONES)} and timm's models"
        raise _unknown(name, plain, [*BACKBONES, *timm.list_models()], otherwise)
    try:
        timm.get_pretrained_cfg(model_name)
    except RuntimeError as error:
        architecture, _, tag = model_name.partition(".")
        tags = [one.partition(".")[2] for one in timm.list_models(f"{architecture}.*", pretrained=True)]
        hint = f"it has {', '.join(tags)}" if tags else f"write {architecture}, which has none to choose from"
        raise UsageError(f"unknown backbone '{name}': timm has no weights '{tag}' of {architecture}: {hint}") from error
    return model_name


def _unknown(name: str, model_name: str, known: list[str], otherwise: str) -> UsageError:
    near = difflib.get_close_matches(model_name, dict.fromkeys(known), n=5, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else otherwise
    return UsageError(f"unknown backbone '{name}': {hint}")
