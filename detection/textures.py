"""Textures that made anomalies are filled with: cuts of the images of a folder, or of photographs of scikit-image."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets import images_in, read_image
from errors import UsageError
from options import option

# Those that come with scikit-image and that the dataset `assembly` is not drawn from.
PHOTOGRAPHS = (
    "camera",
    "cell",
    "clock",
    "hubble_deep_field",
    "immunohistochemistry",
    "microaneurysms",
    "page",
    "retina",
    "rocket",
    "text",
)
SMALLEST = 0.25  # of a photograph's shorter side, the side of a cut


def texture_dir() -> Any:
    """The option of this name, which detectors that learn from made anomalies have."""
    text = (
        "Folder of images, also in folders below it, whose textures fill made defects, such as DTD; unset: photographs "
        "of scikit-image that the dataset assembly is not drawn from."
    )
    return option(None, text, metavar="FOLDER", shown="scikit-image's")


class Textures:
    """Where textures are cut from.

    Args:
        folder: of images; None for PHOTOGRAPHS.

    Raises:
        UsageError: there is no such folder, or no image in it.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._readers: Sequence[Callable[[], NDArray[np.uint8]]] = [partial(_photograph, name) for name in PHOTOGRAPHS]
        if folder is not None:
            paths = images_in(Path(folder), recursive=True)
            if not paths:
                missing = "no such folder" if not Path(folder).is_dir() else "no image in this folder or below it"
                raise UsageError(f"--texture_dir {folder}: {missing}; give one with images of textures")
            self._readers = [partial(_read, path) for path in paths]

    def cut(self, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
        """A random square of a random image, flipped at random and resized to height and width: uint8 RGB [H, W, 3].

        Raises:
            DataError: an image that cannot be read.
        """
        pixels = self._readers[int(rng.integers(len(self._readers)))]()
        height, width = pixels.shape[:2]
        side = max(1, round(min(height, width) * rng.uniform(SMALLEST, 1)))
        top, left = (int(rng.integers(had - side + 1)) for had in (height, width))
        square = pixels[top : top + side, left : left + side]
        square = square[:: -1 if rng.random() < 0.5 else 1, :: -1 if rng.random() < 0.5 else 1]
        method = cv2.INTER_AREA if side > min(size) else cv2.INTER_LINEAR
        return cv2.resize(np.ascontiguousarray(square), size[::-1], interpolation=method)


@cache
def _photograph(name: str) -> NDArray[np.uint8]:
    import skimage.data  # late: only training needs it

    pixels = getattr(skimage.data, name)()
    return np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels[..., :3]


def _read(path: Path) -> NDArray[np.uint8]:
    return np.array(read_image(path))
