"""From an image file's pixels to the network's input, and the same geometry for masks."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as T

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class RandomTransform:
    """Random changes of training images, all off by default.

    Attributes:
        rotate_degrees: rotation drawn from -r to r degrees.
        translate: shift drawn up to this share of width and height.
        scale: zoom drawn from 1-s to 1+s.
        brightness, contrast, saturation: torchvision.ColorJitter's factors.
        gray, hflip, vflip: probabilities of greyscale, and of horizontal and vertical flips.
    """

    rotate_degrees: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    gray: float = 0.0
    hflip: float = 0.0
    vflip: float = 0.0

    @property
    def is_identity(self) -> bool:
        return self == RandomTransform()


@dataclass(frozen=True)
class ImageTransform:
    """Resize (bilinear), change at random, crop the centre, normalise as ImageNet.

    Attributes:
        resize: pixels of the shorter side; not used by mode "square".
        imagesize: side of the square crop, at most resize.
        random: changes between resizing and cropping, as in the original.
        resize_mode: "aspect" scales the shorter side to `resize`; "square" scales both sides to `imagesize`, so that
            nothing is cropped away.
    """

    resize: int
    imagesize: int
    random: RandomTransform = RandomTransform()
    resize_mode: Literal["aspect", "square"] = "aspect"

    def image(self, image: Image.Image) -> Tensor:
        """An RGB image as float32 [3, imagesize, imagesize], normalised."""
        image = T.functional.resize(image, self._size, InterpolationMode.BILINEAR)
        if not self.random.is_identity:
            image = self._random(image)
        image = T.functional.center_crop(image, [self.imagesize])
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
        return T.functional.normalize(pixels, list(IMAGENET_MEAN), list(IMAGENET_STD))

    def mask(self, mask: Image.Image) -> Tensor:
        """A mask as bool [imagesize, imagesize]: nearest neighbour, so that it stays binary; non-zero is defective."""
        mask = T.functional.resize(mask, self._size, InterpolationMode.NEAREST)
        mask = T.functional.center_crop(mask, [self.imagesize])
        return torch.from_numpy(np.asarray(mask) > 0)

    def area_scale(self, width: int, height: int) -> float:
        """Pixels after resizing per pixel of an image of that size."""
        if self.resize_mode == "square":
            return self.imagesize**2 / (width * height)
        shorter, longer = sorted((width, height))
        return self.resize * int(self.resize * longer / shorter) / (width * height)  # as torchvision rounds

    def window(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what the network sees of an image of that size, in its pixels."""
        if self.resize_mode == "square":
            return 0, 0, width, height
        scale = min(width, height) / self.resize
        sides = [int(self.resize * side / min(width, height)) for side in (width, height)]  # as torchvision rounds
        starts = [round((side - self.imagesize) / 2) for side in sides]
        left, top = (round(start * scale) for start in starts)
        right, bottom = (round((start + self.imagesize) * scale) for start in starts)
        return left, top, min(right, width), min(bottom, height)

    @property
    def _size(self) -> list[int]:
        return [self.resize] if self.resize_mode == "aspect" else [self.imagesize, self.imagesize]

    @cached_property
    def _random(self) -> T.Transform:
        r = self.random
        return T.Compose(
            [
                T.ColorJitter(r.brightness, r.contrast, r.saturation),
                T.RandomHorizontalFlip(r.hflip),
                T.RandomVerticalFlip(r.vflip),
                T.RandomGrayscale(r.gray),
                T.RandomAffine(
                    r.rotate_degrees,
                    (r.translate, r.translate),
                    (1 - r.scale, 1 + r.scale),
                    interpolation=InterpolationMode.BILINEAR,
                ),
            ]
        )


def to_pixels(image: Tensor) -> NDArray[np.uint8]:
    """What ImageTransform.image gave, as RGB to look at: [3, H, W] -> [H, W, 3]."""
    pixels = image.cpu() * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
