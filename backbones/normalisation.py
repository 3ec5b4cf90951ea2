"""Mean and standard deviation of the pixels that a network's weights were trained with."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from backbones.devices import kept_on_device
from backbones.names import PIXELS, TOGETHER, TORCHVISION, find_model
from backbones.zoo import timm
from errors import UsageError

Rule = Literal["imagenet", "model"]


@dataclass(frozen=True)
class Normalisation:
    """Per channel, red, green and blue, of pixels from 0 to 1."""

    mean: tuple[float, float, float] = timm.data.IMAGENET_DEFAULT_MEAN
    std: tuple[float, float, float] = timm.data.IMAGENET_DEFAULT_STD

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Normalisation":
        """What JSON holds of one; ValueError where it holds something else."""
        mean, std = (tuple(float(one) for one in values[name]) for name in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3 or not all(0 <= one <= 1 for one in mean) or not all(one > 0 for one in std):
            raise ValueError(f"normalisation is {values!r}")
        return cls(mean, std)

    def of_imagenets(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] that are normalised as ImageNet, normalised as this."""
        if self == IMAGENET:
            return images
        mean, std, imagenets_mean, imagenets_std = (
            _channels(images.device, own, images.dtype) for own in (self.mean, self.std, IMAGENET.mean, IMAGENET.std)
        )
        return images * (imagenets_std / std) + (imagenets_mean - mean) / std

    def __str__(self) -> str:
        mean, std = (", ".join(f"{one:.4g}" for one in own) for own in (self.mean, self.std))
        return f"mean ({mean}) and standard deviation ({std})"


@kept_on_device
def _channels(values: tuple[float, float, float], dtype: torch.dtype) -> Tensor:
    """A value of each channel, [3, 1, 1], on a device given before the other arguments."""
    return torch.tensor(values, dtype=dtype).view(3, 1, 1)


IMAGENET = Normalisation()


def normalisation_of(name: str, rule: Rule = "model") -> Normalisation:
    """What a backbone's images are normalised by.

    Args:
        name: of the backbone, as backbones.load takes it.
        rule: "imagenet", or "model": what timm's configuration of its pretrained weights says; ImageNet's where it says
            nothing, and of torchvision's.

    Raises:
        UsageError: an unknown backbone, or several side by side that were trained with different ones.
    """
    if TOGETHER in name:
        own = {one: normalisation_of(one, rule) for one in name.split(TOGETHER)}
        if len(set(own.values())) > 1:
            said = "; ".join(f"{one}'s have {values}" for one, values in own.items())
            raise UsageError(f"--normalisation model: the backbones' weights were trained with different ones: {said}")
        return own.popitem()[1]
    model_name = find_model(name)
    if rule == "imagenet" or model_name == PIXELS or model_name.startswith(TORCHVISION):
        return IMAGENET
    config = timm.get_pretrained_cfg(model_name)
    if config is None or not config.mean or not config.std or len(config.mean) != 3:
        return IMAGENET
    return Normalisation(tuple(config.mean), tuple(config.std))
