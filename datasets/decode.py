"""Image files to pixels: images as RGB of 8 bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from errors import DataError


def read_image(path: Path) -> Image.Image:
    """An image as RGB; 16-bit values are scaled to 8 bits over their full range.

    Raises:
        DataError: a file that cannot be read, or values of more than 16 bits.
    """
    pixels = _pixels(path)
    return pixels if isinstance(pixels, Image.Image) else Image.fromarray(_to_8_bits(pixels)).convert("RGB")


def image_size(path: Path) -> tuple[int, int]:
    """Width and height, from the header where Pillow knows the kind of file.

    Raises:
        DataError: a file whose header says that it cannot be read.
    """
    try:
        with opened(path) as image:
            _check_depth(path, image)
            return image.size
    except UnknownKindError:
        height, width = _colours_by_opencv(path).shape[:2]
        return width, height


class UnknownKindError(DataError):
    """A file that Pillow does not know the kind of."""


def _pixels(path: Path) -> Image.Image | NDArray[np.integer]:
    """8-bit pixels as RGB, or the deeper integers as stored: [H, W] or [H, W, 3]."""
    try:
        with opened(path) as image:
            _check_depth(path, image)
            if not image.mode.startswith("I"):
                return image.convert("RGB")
            values = np.asarray(image)
    except UnknownKindError:
        return _colours_by_opencv(path)
    if values.min() < 0 or values.max() > 65535:
        raise _too_deep(path, "32-bit")
    return values


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The image in a file; what Pillow may raise there becomes a DataError."""
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError as error:
        raise UnknownKindError(f"'{path}' is not an image that Pillow can read") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"'{path}' cannot be read: {error}") from error


def _check_depth(path: Path, image: Image.Image) -> None:
    if image.mode == "F":
        raise _too_deep(path, "floating-point")


def decoded_by_opencv(path: Path) -> NDArray[np.generic] | None:
    """A file's values as stored, [H, W] or [H, W, channels] with blue before red; None where OpenCV cannot read it."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)


def _colours_by_opencv(path: Path) -> NDArray[np.uint8 | np.uint16]:
    """[H, W] or, as RGB, [H, W, 3] of a file that Pillow does not know, such as a TIFF of 16-bit colours."""
    pixels = decoded_by_opencv(path)
    if pixels is None:
        raise DataError(f"'{path}' is not an image that Pillow or OpenCV can read")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise _too_deep(path, str(pixels.dtype))
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., 2::-1])


def _too_deep(path: Path, depth: str) -> DataError:
    return DataError(f"'{path}' holds {depth} values: 8- or 16-bit images are expected, convert it to one")


def _to_8_bits(values: NDArray[np.integer]) -> NDArray[np.uint8]:
    """0..65535 to 0..255, rounded; 8-bit values stay."""
    if values.dtype == np.uint8:
        return values
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
