"""Images of no class, on which EfficientAD's student is punished: a folder's, or photographs of scikit-image."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets import images_in, read_image
from detection.textures import PHOTOGRAPHS, Textures
from errors import UsageError

OFF = "off"
GREY = 0.3  # of them, how many lose their colours


class ForeignImages:
    """Where they come from.

    Args:
        folder: of images, also in folders below it; None for random squares of photographs, of which there are few.

    Raises:
        UsageError: there is no such folder, or no image in it.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.photographs = Textures() if folder is None else None
        self.paths = [] if folder is None else images_in(Path(folder), recursive=True)
        if folder is not None and not self.paths:
            missing = "no image in this folder or below it" if Path(folder).is_dir() else "no such folder"
            raise UsageError(
                f"--penalty_images {folder}: {missing}; give one with images that are not of your classes, such as "
                f"ImageNet's, or {OFF}"
            )

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
        """A random one, RGB, uint8 [H, W, 3]: of a file its middle quarter, as in the paper; grey at times.

        Raises:
            DataError: an image that cannot be read.
        """
        if self.photographs is not None:
            pixels = self.photographs.cut(size, rng)
        else:
            image = read_image(self.paths[int(rng.integers(len(self.paths)))])
            pixels = _middle(image, size)
        if rng.random() < GREY:
            pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return pixels


def said_of(folder: str | None) -> str:
    """What a user is told of where they come from."""
    if folder == OFF:
        return "The penalty on images that are of no class is off (--penalty_images off)"
    if folder is not None:
        return f"The penalty is on the images in '{folder}'"
    return (
        f"The penalty is on random squares of photographs of scikit-image ({', '.join(PHOTOGRAPHS)}): --penalty_images "
        "FOLDER takes other images, off none"
    )


def _middle(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle of an image that is resized to twice a size."""
    height, width = size
    large = image.resize((2 * width, 2 * height), Image.Resampling.BILINEAR)
    top, left = height // 2, width // 2
    return np.array(large)[top : top + height, left : left + width]
