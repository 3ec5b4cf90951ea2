"""Pixels for detectors that look at images again after embedding them: kept in 8 bits, a quarter of what they are."""

import torch
from torch import Tensor

from datasets import normalised, pixels_of
from detection.light import Light


def kept_pixels(images: Tensor, light: Light | None) -> Tensor:
    """What is kept of normalised images [B, 3, H, W]: RGB, uint8, which files have.

    In matched light they are no whole numbers any more and stay as they are; so they do in an export, which keeps none.
    """
    return images if light is not None or torch.compiler.is_compiling() else pixels_of(images)


def images_of(kept: Tensor, dtype: torch.dtype) -> Tensor:
    """The images that kept_pixels was given, in the type of the weights that see them."""
    return (normalised(kept) if kept.dtype == torch.uint8 else kept).to(dtype)
