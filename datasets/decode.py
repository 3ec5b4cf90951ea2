"""Image files to pixels: images as RGB of 8 bits."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from errors import DataError
from options import option

Image.MAX_IMAGE_PIXELS = None  # of every process that reads: Reading.max_pixels takes its place, and says what to do
MAX_PIXELS = 180_000_000
DEPTHS = (8, 10, 12, 14, 16)  # that cameras have
DEEP_COLOURS = re.compile(r";16[BLN]")  # in what Pillow calls the layout of a file that it reads by its high bytes
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
POINTERS = {
    b"version https://git-lfs": "Git LFS: git lfs pull",
    b"/annex/objects/": "git-annex: git annex get",
}


@dataclass(frozen=True)
class Reading:
    """How image files become pixels. What does not stand in the way of reading is part of a model.

    Attributes:
        oriented: whether images are turned as their EXIF orientation says.
        background: the colour that images with transparency are laid on; None shows what is hidden.
    """

    bit_depth: int | None = option(
        None,
        "Bits of the values in 16-bit files, which are scaled to 8; cameras often have 10 or 12. auto: the smallest of "
        "8, 10, 12, 14 and 16 that holds the training images of a class.",
        at_least=8,
        at_most=16,
        empty_word="auto",
    )
    max_pixels: int = option(
        MAX_PIXELS,
        "Of the largest image that is read; reading takes about 4 bytes a pixel.",
        at_least=1,
        changes_results=False,
    )
    oriented: bool = True
    background: Literal["black"] | None = "black"


class Header(NamedTuple):
    """What is known of an image before its pixels are read.

    Attributes:
        width, height: in pixels, once it is turned.
        orientation: as EXIF counts, 1 where nothing is to turn.
        is_deep: whether it has more than 8 bits a value.
        has_alpha: whether it has transparency.
    """

    width: int
    height: int
    orientation: int = 1
    is_deep: bool = False
    has_alpha: bool = False


def read_image(path: Path, reading: Reading = Reading()) -> Image.Image:
    """An image as RGB; values of 16-bit files are scaled from their depth to 8 bits.

    Raises:
        DataError: a file that cannot be read, too many pixels, or values beyond the depth.
    """
    orientation = 1
    try:
        with opened(path) as image:
            _check_depth(path, image)
            check_pixels(path, image.size, reading.max_pixels)
            orientation = orientation_of(image) if reading.oriented else 1
            if not _is_deep(image) or (not _is_grey(image) and reading.bit_depth in (None, 16)):
                return turned(_opaque(image, reading.background), orientation)
            values = _deep_values(path, image)
    except UnknownKindError:
        values = _of_unknown_kind(path, reading.max_pixels)
    return turned(Image.fromarray(_to_8_bits(path, values, reading)).convert("RGB"), orientation)


def read_header(path: Path, reading: Reading = Reading()) -> Header:
    """What an image's header says where Pillow knows the kind of file, else its pixels.

    Raises:
        DataError: a file that cannot be read, or too many pixels.
    """
    try:
        with opened(path) as image:
            _check_depth(path, image)
            check_pixels(path, image.size, reading.max_pixels)
            orientation = orientation_of(image) if reading.oriented else 1
            width, height = image.size[::-1] if orientation in SIDEWAYS else image.size
            return Header(width, height, orientation, _is_deep(image), _has_alpha(image))
    except UnknownKindError:
        values = _of_unknown_kind(path, reading.max_pixels)
        height, width = values.shape[:2]
        return Header(width, height, 1, values.dtype != np.uint8, values.shape[2:] == (4,))


def declared_size(path: Path) -> tuple[int, int] | None:
    """Width and height that a file's header says, of which no pixel is decoded; None where none says them.

    Raises:
        DataError: a file that cannot be read.
    """
    try:
        with opened(path) as image:
            return image.size
    except UnknownKindError:
        return _tiff_size(path)


def largest_value(path: Path) -> int:
    """The largest value of a 16-bit image; of one file it is found once.

    Raises:
        DataError: a file that cannot be read.
    """
    status = path.stat()
    return _largest_value(path, status.st_size, status.st_mtime_ns)


@cache  # numbers; a grid asks for every choice
def _largest_value(path: Path, *_: int) -> int:
    try:
        with opened(path) as image:
            values = _deep_values(path, image)
    except UnknownKindError:
        values = _colours_by_opencv(path)
    return int(values[..., :3].max() if values.ndim == 3 else values.max())


def bit_depth_of(value: int) -> int:
    """The smallest depth of DEPTHS that holds a value of 0 to 65535."""
    return next(depth for depth in DEPTHS if value < 2**depth)


class UnknownKindError(DataError):
    """A file that Pillow does not know the kind of."""


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The image in a file; what Pillow may raise there becomes a DataError."""
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError as error:
        raise UnknownKindError(f"'{path}' is not an image that Pillow can read") from error
    except FileNotFoundError as error:
        raise DataError(_why_absent(path) or f"'{path}' cannot be read: {error}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"'{path}' cannot be read: {error}") from error


def _check_depth(path: Path, image: Image.Image) -> None:
    if image.mode == "F":
        raise _too_deep(path, "floating-point")


def _why_absent(path: Path) -> str | None:
    """What to tell a user of a file that is a link to nothing, or that DVC alone knows; None of any other."""
    fetch = "fetch its content (git annex get, dvc pull) or remove it"
    if path.is_symlink():
        return f"'{path}' is a link to '{path.readlink()}', which does not exist: {fetch}"
    pointer = path.with_name(f"{path.name}.dvc")
    return f"'{path}' is not there, only '{pointer}' of DVC: {fetch}" if pointer.is_file() else None


def check_pixels(path: Path, size: tuple[int, int], limit: int) -> None:
    """Refuse an image with more pixels than are read."""
    width, height = size
    if width * height > limit:
        raise DataError(
            f"'{path}' is {width} x {height}, {width * height / 1e6:.1f} megapixels, and at most {limit / 1e6:.1f} are "
            f"read: --max_pixels {width * height} allows it, which takes about {4 * width * height / 2**30:.1f} GiB (4 "
            "bytes a pixel) for each image read at once (--num_workers)"
        )


def orientation_of(image: Image.Image) -> int:
    """How an image that was opened is still to be turned, as EXIF counts; 1 where its file does not say."""
    if image.format == "TIFF" or not image.info.keys() & {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}:
        return 1  # TIFFs are turned by Pillow
    try:
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # that of PNGs reads all pixels
    except Exception:  # damaged notes may raise anything, and say nothing
        return 1
    return orientation if orientation in TURNS else 1


def turned_as_said(path: Path, values: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    """A mask's values [H, W] as stored, turned as the EXIF orientation of its file says."""
    try:
        with opened(path) as image:
            orientation = orientation_of(image)
    except UnknownKindError:
        return values
    return values if orientation == 1 else np.asarray(turned(Image.fromarray(values), orientation))


def turned(image: Image.Image, orientation: int) -> Image.Image:
    return image if orientation == 1 else image.transpose(TURNS[orientation])


def _is_grey(image: Image.Image) -> bool:
    """Whether an image of 16 bits has one channel, and then Pillow keeps all bits."""
    return image.mode.startswith("I")


def _is_deep(image: Image.Image) -> bool:
    return _is_grey(image) or any(DEEP_COLOURS.search(str(tile[3])) for tile in image.tile)


def _has_alpha(image: Image.Image) -> bool:
    """Whether an image has transparency that Pillow can lay on a colour; of 16-bit grey it cannot."""
    if image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A"):
        return True
    return image.mode in ("LA", "PA", "RGBA") or ("transparency" in image.info and not _is_grey(image))


def _opaque(image: Image.Image, background: str | None) -> Image.Image:
    """An image as RGB, on a colour where it is transparent."""
    if background is None or not _has_alpha(image):
        return image.convert("RGB")
    layer = image.convert("RGBA")
    below = Image.new("RGB", image.size, background)
    below.paste(layer.convert("RGB"), mask=layer.getchannel("A"))
    return below


def _deep_values(path: Path, image: Image.Image) -> NDArray[np.integer]:
    """All bits of a 16-bit image: [H, W], [H, W, 3] or, with transparency, [H, W, 4]."""
    return _integers(path, image) if _is_grey(image) else _colours_by_opencv(path, with_alpha=True)


def _integers(path: Path, image: Image.Image) -> NDArray[np.integer]:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise _too_deep(path, "32-bit")
    return values


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


def _of_unknown_kind(path: Path, limit: int) -> NDArray[np.uint8 | np.uint16]:
    """The pixels of a file that Pillow does not know the kind of; a TIFF's size is known before they are decoded."""
    if (size := _tiff_size(path)) is not None:
        check_pixels(path, size, limit)
    values = _colours_by_opencv(path, with_alpha=True)
    check_pixels(path, values.shape[1::-1], limit)
    return values


def _tiff_size(path: Path) -> tuple[int, int] | None:
    """Width and height by a TIFF's tags; None of any other file."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            tags = TiffImagePlugin.ImageFileDirectory_v2(start + (file.read(8) if start[2:3] == b"+" else b""))
            file.seek(tags.next)
            tags.load(file)
            return int(tags[TiffImagePlugin.IMAGEWIDTH]), int(tags[TiffImagePlugin.IMAGELENGTH])
    except Exception:  # what is no TIFF, or a damaged one, may raise anything
        return None


def _colours_by_opencv(path: Path, with_alpha: bool = False) -> NDArray[np.uint8 | np.uint16]:
    """[H, W] or, as RGB, [H, W, 3] of a file that Pillow does not know, such as a TIFF of 16-bit colours; [H, W, 4]
    where it has transparency that is asked for."""
    pixels = decoded_by_opencv(path)
    if pixels is None:
        raise DataError(_why_unknown(path))
    if pixels.dtype not in (np.uint8, np.uint16):
        raise _too_deep(path, str(pixels.dtype))
    if pixels.ndim == 2:
        return pixels
    return np.ascontiguousarray(pixels[..., [2, 1, 0, 3] if with_alpha and pixels.shape[2] == 4 else [2, 1, 0]])


def _why_unknown(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(200)
    for mark, whose in POINTERS.items():
        if mark in start:
            return f"'{path}' is no image but a pointer of {whose} fetches it"
    return f"'{path}' is not an image that Pillow or OpenCV can read"


def _too_deep(path: Path, depth: str) -> DataError:
    return DataError(f"'{path}' holds {depth} values: 8- or 16-bit images are expected, convert it to one")


def _to_8_bits(path: Path, values: NDArray[np.integer], reading: Reading) -> NDArray[np.uint8]:
    """[H, W] or [H, W, 3] of 0 to 255, rounded, from values of a depth; 8-bit values stay.

    Raises:
        DataError: values beyond the depth.
    """
    depth = 8 if values.dtype == np.uint8 else reading.bit_depth or 16
    full = 2**depth - 1
    values, alpha = (values[..., :3], values[..., 3:]) if values.shape[2:] == (4,) else (values, None)
    if (largest := int(values.max())) > full:
        raise DataError(
            f"'{path}' holds values up to {largest}, and images of {depth} bits (--bit_depth) hold {full} at most: "
            f"--bit_depth {bit_depth_of(largest)} reads it, in training as well"
        )
    values = values.astype(np.uint32)
    if alpha is not None and reading.background is not None:
        most = full if alpha.max() <= full else 65535  # some write alpha in all bits
        values = (values * alpha.astype(np.uint64) + most // 2) // most
    return ((values * 255 + full // 2) // full).astype(np.uint8)
