"""From an image file's pixels to the network's input, and the same geometry for masks."""

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datasets.decode import Reading
from options import option

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


RANDOM = "Random changes of training images"
# What --augment sets where a flag of its own does not: small changes that leave a normal part normal; no flips.
AUGMENT = {"rotate_degrees": 5.0, "translate": 0.02, "scale": 0.05, "brightness": 0.1, "contrast": 0.1}


def _change(name: str, text: str, most: float | None = None, below: float | None = None) -> Any:
    shown = f"0; with --augment {AUGMENT[name]:g}" if name in AUGMENT else "0"
    return option(0.0, text, at_least=0, at_most=most, below=below, shown=shown, group=RANDOM)


@dataclass(frozen=True)
class RandomTransform:
    """Random changes of training images, all off by default; brightness, contrast and saturation are ColorJitter's.

    Attributes:
        draw_once: by an image's own pixels, so that it is the same at every pass, and is embedded once.
    """

    rotate_degrees: float = _change("rotate_degrees", "Rotate training images by up to this angle.", 180)
    translate: float = _change("translate", "Shift them by up to this share of their size.", 1)
    scale: float = _change("scale", "Zoom them by up to this share.", below=1)
    brightness: float = _change("brightness", "Change their brightness by up to this factor.", 1000)
    contrast: float = _change("contrast", "Change their contrast by up to this factor.", 1000)
    saturation: float = _change("saturation", "Change their saturation by up to this factor.", 1000)
    gray: float = _change("gray", "Probability of turning them grey.", 1)
    hflip: float = _change("hflip", "Probability of flipping them left to right.", 1)
    vflip: float = _change("vflip", "Probability of flipping them upside down.", 1)
    draw_once: bool = option(
        False,
        "Draw these changes once for each image, by its pixels, instead of anew at every pass: features are kept, and "
        "training is as fast as without changes.",
        "--draw_once",
        "--no_draw_once",
        group=RANDOM,
    )

    @property
    def is_identity(self) -> bool:
        """Whether nothing is changed."""
        return replace(self, draw_once=False) == RandomTransform()

    @property
    def is_fixed(self) -> bool:
        """Whether an image is the same at every pass."""
        return self.draw_once or self.is_identity


@dataclass(frozen=True)
class ImageTransform:
    """Resize (bilinear), change at random, crop the centre; then normalise as ImageNet.

    Attributes:
        resize: pixels of the shorter side; not used by mode "square".
        imagesize: side of the square crop, at most resize.
        random: changes between resizing and cropping, as in the original.
        resize_mode: "aspect" scales the shorter side to `resize`; "square" scales both sides to `imagesize`, so that
            nothing is cropped away.
        reading: how the image comes out of its file.
    """

    resize: int
    imagesize: int
    random: RandomTransform = RandomTransform()
    resize_mode: Literal["aspect", "square"] = "aspect"
    reading: Reading = field(default_factory=Reading)

    def image(self, image: Image.Image) -> Tensor:
        """An RGB image as float32 [3, imagesize, imagesize], normalised."""
        return normalised(self.pixels(image))

    def pixels(self, image: Image.Image, interest: NDArray[np.bool_] | None = None) -> Tensor:
        """An RGB image as uint8 [3, imagesize, imagesize]: a quarter of what is sent from process to process.

        With a mask of interest, [H, W] of the image's size, [4, imagesize, imagesize]: the fourth channel is 255 where
        a pixel is made of nothing but pixels of interest, else 0.
        """
        size = self._resized(*image.size)
        if size != image.size:  # Pillow would copy it
            image = image.resize(size, Image.Resampling.BILINEAR)
        inside = None if interest is None else self._wholly_inside(interest, size)
        if not self.random.is_identity:
            with _drawn_by(image) if self.random.draw_once else nullcontext():
                image, inside = (self._random(image), None) if inside is None else self._random_pair(image, inside)
        pixels = torch.from_numpy(np.array(self._cropped(image))).permute(2, 0, 1)
        if inside is None:
            return pixels
        return torch.cat([pixels, torch.from_numpy(np.array(self._cropped(inside))).unsqueeze(0)])

    def interest(self, mask: NDArray[np.bool_]) -> Tensor:
        """A mask of interest [h, w] as pixels has it of an image of its size: bool [imagesize, imagesize]."""
        inside = self._wholly_inside(mask, self._resized(*mask.shape[::-1]))
        return torch.from_numpy(np.array(self._cropped(inside))) > 0

    @staticmethod
    def _wholly_inside(mask: NDArray[np.bool_], size: tuple[int, int]) -> Image.Image:
        """255 where a pixel of a resized image is made of pixels of interest alone, else 0."""
        whole = Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
        return Image.fromarray(np.uint8(np.asarray(whole) > 1 - 1e-5) * 255)

    def _random_pair(self, image: Image.Image, inside: Image.Image) -> tuple[Image.Image, Image.Image]:
        """An image and its mask of interest, moved alike."""
        from torchvision import tv_tensors  # late: as _random

        image, mask = self._random(image, tv_tensors.Mask(torch.from_numpy(np.array(inside)).unsqueeze(0)))
        return image, Image.fromarray(mask[0].numpy())

    def nearest(self, values: Image.Image) -> NDArray[np.integer]:
        """Numbers for every pixel of an image, as [imagesize, imagesize]: nearest neighbour, so that none is new."""
        values = values.resize(self._resized(*values.size), Image.Resampling.NEAREST)
        return np.asarray(self._cropped(values))

    def area_scale(self, width: int, height: int) -> float:
        """Pixels after resizing per pixel of an image of that size."""
        return math.prod(self._resized(width, height)) / (width * height)

    def window(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what the network sees of an image of that size, in its pixels."""
        if self.resize_mode == "square":
            return 0, 0, width, height
        scale = min(width, height) / self.resize
        starts = self._crop_starts(self._resized(width, height))
        left, top = (round(start * scale) for start in starts)
        right, bottom = (round((start + self.imagesize) * scale) for start in starts)
        return left, top, min(right, width), min(bottom, height)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing, rounded as torchvision does."""
        if self.resize_mode == "square":
            return self.imagesize, self.imagesize
        shorter = min(width, height)
        return int(self.resize * width / shorter), int(self.resize * height / shorter)

    def _crop_starts(self, size: tuple[int, int]) -> tuple[int, int]:
        """Left and top of the centre crop of a resized image, rounded as torchvision does."""
        return round((size[0] - self.imagesize) / 2), round((size[1] - self.imagesize) / 2)

    def _cropped(self, image: Image.Image) -> Image.Image:
        if image.size == (self.imagesize, self.imagesize):
            return image
        left, top = self._crop_starts(image.size)
        return image.crop((left, top, left + self.imagesize, top + self.imagesize))

    @cached_property
    def _random(self) -> Callable[[Image.Image], Image.Image]:
        from torchvision.transforms import InterpolationMode  # late: a second that only random changes need
        from torchvision.transforms import v2 as T

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


@contextmanager
def _drawn_by(image: Image.Image) -> Iterator[None]:
    """What is drawn here is of an image's pixels alone; what is drawn later is as if nothing had been drawn here."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(zlib.crc32(image.tobytes()))
        yield


def unpacked(read: Tensor) -> tuple[Tensor, Tensor | None]:
    """Of what pixels gave, [B, 3 or 4, H, W], images normalised and where they are of interest, bool [B, H, W].

    None is everywhere; rows of tables, float32, are as they are.
    """
    if read.dtype != torch.uint8:
        return read, None
    return normalised(read[:, :3]), read[:, 3] > 0 if read.shape[1] == 4 else None


def normalised(pixels: Tensor) -> Tensor:
    """RGB pixels uint8 [..., 3, H, W] as float32, normalised as ImageNet: the same numbers on every device."""
    most, mean, std = _constants(pixels.device)
    return pixels.float().div_(most).sub_(mean).div_(std)


def pixels_of(images: Tensor) -> Tensor:
    """What normalised makes these images of, float [..., 3, H, W]: RGB pixels uint8, rounded, of 0 to 255."""
    most, mean, std = _constants(images.device)
    return images.float().mul(std).add_(mean).mul_(most).round_().clamp_(0, 255).to(torch.uint8)


def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """255, mean and std; on a GPU, a division by a number of the host would be a product with its inverse.

    They are made there: nothing waits for a copy, nor does a tensor outlive the mode that it was made in.
    """
    mean, std = (
        torch.stack([torch.full((1, 1), value, device=device) for value in own])
        for own in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return torch.full((), 255.0, device=device), mean, std
