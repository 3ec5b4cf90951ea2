"""Mask files to defective pixels, whatever kind of file they are.

A value of 0 is background and any other is defective, with these rules:

- of a palette the indices decide, and index 0 is background whatever its colour; a palette of greys that rise from
  black is a grey mask;
- of colours the highest channel counts, of 8, 16 or 32 bits;
- where alpha varies, pixels of which nothing is seen (alpha 0) are background; where all colours are the same, alpha
  alone is the mask;
- lossy files (JPEG, AVIF, lossy WebP, TIFF with JPEG inside) are cut at half of their range;
- other files are cut where they are smoothed: where most of the pixels up to half of the range lie on a slope, between
  a lower and a higher neighbour. Every region is then cut at half of its own peak, and one whose peak is below a
  quarter of the mask's is noise. Labels of any values lie flat, and all of them count.
"""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.decode import SIDEWAYS, UnknownKindError, decoded_by_opencv, opened, orientation_of, turned_as_said
from errors import DataError

LOSSY = frozenset({"JPEG", "MPO", "AVIF"})
JPEG_IN_TIFF = frozenset({"jpeg", "tiff_jpeg"})
FAINT = 16  # of 255: lower values in a lossy file may be its noise
EVERYWHERE = "are defective everywhere"
INVERTED = "have black in their palette, but not as index 0, which is background whatever its colour"
PAGES = "have several pages, of which the first counts"
HIDDEN = "have colours only where they are transparent, which is background"
DIM = "are lossy and have regions below half of their range, which are left out as noise"
NOISY = "have faint values around their defects, as JPEG leaves them, all of which count"
AROUND, NEAR = np.ones((3, 3), np.uint8), np.ones((17, 17), np.uint8)  # NEAR: a block of JPEG on all sides
GREYS = ("1", "L", "I", "F")


class Mask(NamedTuple):
    """What a mask file says.

    Attributes:
        values: unsigned integers [H, W], 0 where nothing is defective, else as stored (fractions rounded up).
        doubt: what makes another meaning possible, to be said after "masks that"; None where nothing does.
    """

    values: NDArray[np.unsignedinteger]
    doubt: str | None


class _Stored(NamedTuple):
    """A file's values: colours [H, W, channels], alpha [H, W], and whether compression may have changed them."""

    colours: NDArray[np.generic]
    alpha: NDArray[np.generic] | None = None
    is_lossy: bool = False


def read_mask(path: Path) -> Mask:
    """A mask by the rules above, turned where its file carries an EXIF orientation.

    Raises:
        DataError: a file that cannot be read, negative values or integers of more than 16 bits, values that are not
            finite, or a lossy file whose values cannot be told from its noise.
    """
    mask = _as_stored(path)
    return mask._replace(values=turned_as_said(path, mask.values))


def _as_stored(path: Path) -> Mask:
    try:
        with opened(path) as image:
            pages = getattr(image, "n_frames", 1)
            if image.mode in ("P", "PA") and not _is_grey_ramp(image):
                values, doubt = _of_palette(image)
                return Mask(values, doubt if pages == 1 else PAGES)
            stored = _of_image(path, image)
    except UnknownKindError:
        stored, pages = _of_opencv(path), 1
    values = _checked(path, _shown(stored))
    values, doubt = _cut_lossy(path, values) if stored.is_lossy else _cut_smoothed(values)
    if values.dtype.kind == "f":
        values = np.ceil(np.minimum(values, 65535)).astype(np.uint16)
    if values.all():
        doubt = EVERYWHERE
    elif stored.alpha is not None and not values.any() and stored.colours.any() and np.ptp(stored.alpha):
        doubt = HIDDEN
    return Mask(values, doubt if pages == 1 else PAGES)


def mask_size(path: Path) -> tuple[int, int]:
    """Width and height, from the header where Pillow knows the kind of file.

    Raises:
        DataError: a file that cannot be read.
    """
    try:
        with opened(path) as image:
            return image.size[::-1] if orientation_of(image) in SIDEWAYS else image.size
    except UnknownKindError:
        height, width = _of_opencv(path).colours.shape[:2]
        return width, height


def _of_palette(image: Image.Image) -> Mask:
    pixels = np.asarray(image)
    values = pixels if pixels.ndim == 2 else pixels[..., 0]
    colours = _palette(image)
    used = np.unique(values)
    is_black = (colours == 0).all(axis=1)
    if is_black[used[used < len(colours)]].any() and not is_black[0]:
        return Mask(values, INVERTED)
    return Mask(values, EVERYWHERE if values.all() else None)


def _palette(image: Image.Image) -> NDArray[np.uint8]:
    """[entries, 3]"""
    return np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)


def _is_grey_ramp(image: Image.Image) -> bool:
    """Whether the used entries of a palette, and the first, are greys that rise with the index from black."""
    colours, used = _palette(image), np.union1d([0], np.asarray(image)).astype(int)
    if image.mode != "P" or used[-1] >= len(colours):
        return False
    greys = colours[used].astype(int)
    return bool((greys == greys[:, :1]).all() and greys[0, 0] == 0 and (np.diff(greys[:, 0]) > 0).all())


def _of_image(path: Path, image: Image.Image) -> _Stored:
    is_lossy = _is_lossy(path, image)
    if image.mode == "P":
        image = image.convert("L")
    if image.mode.startswith(GREYS) and "A" not in image.mode.upper():
        values = np.asarray(image)
        return _Stored(values.astype(values.dtype.newbyteorder("="))[..., None], None, is_lossy)
    if image.mode not in ("LA", "RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if not is_lossy:
        deep = decoded_by_opencv(path)  # Pillow reads colours of 16 bits as of 8
        if deep is not None and deep.dtype != np.uint8:
            return _split(deep)
    return _split(np.asarray(image), is_lossy)


def _is_lossy(path: Path, image: Image.Image) -> bool:
    if image.format == "WEBP":
        with path.open("rb") as file:
            return b"VP8L" not in file.read(64)
    return image.format in LOSSY or image.info.get("compression") in JPEG_IN_TIFF


def _of_opencv(path: Path) -> _Stored:
    pixels = decoded_by_opencv(path)
    if pixels is None:
        raise DataError(f"'{path}' is not an image that Pillow or OpenCV can read")
    return _split(pixels)


def _split(pixels: NDArray[np.generic], is_lossy: bool = False) -> _Stored:
    """Colours and alpha of [H, W] or [H, W, channels], where the second or the fourth channel is alpha."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] in (2, 4):
        return _Stored(pixels[..., :-1], pixels[..., -1], is_lossy)
    return _Stored(pixels, None, is_lossy)


def _shown(stored: _Stored) -> NDArray[np.generic]:
    """The value of every pixel [H, W]: its highest channel, or its alpha."""
    colours, alpha = stored.colours, stored.alpha
    values = colours[..., 0] if colours.shape[2] == 1 else colours.max(axis=2)
    if alpha is None or not np.ptp(alpha):
        return values
    return alpha if (colours == colours[0, 0]).all() else np.where(alpha > 0, values, 0)


def _checked(path: Path, values: NDArray[np.generic]) -> NDArray[np.generic]:
    if values.dtype == bool:
        return values.view(np.uint8)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or values.min() < 0:
            raise DataError(f"mask '{path}' holds values that are negative or not finite: expected 0 for background")
        return values
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"'{path}' holds 32-bit values: 8- or 16-bit images are expected, convert it to one")
    return values.astype(np.uint8 if values.dtype.itemsize == 1 else np.uint16, copy=False)


def _cut_lossy(path: Path, values: NDArray[np.generic]) -> Mask:
    """Values of 8 bits with 0 up to half of their range."""
    highest = int(values.max())
    if not np.ptp(values):
        return Mask(values if 2 * highest > 255 else np.zeros_like(values), None)  # black may be stored as 1 or 2
    if highest < FAINT:
        raise DataError(
            f"mask '{path}' is a lossy file of values up to {highest}, which cannot be told from the noise of its "
            "compression: save masks as PNG"
        )
    kept = values > highest / 2
    regions, labels = cv2.connectedComponents((values > highest / 3).view(np.uint8), connectivity=8)
    is_kept = len(np.unique(labels[kept])) == regions - 1  # noise stays below a third but in the poorest qualities
    return Mask(np.where(kept, values, 0), None if is_kept else DIM)


def _cut_smoothed(values: NDArray[np.generic]) -> Mask:
    """Values as they are or, where they are smoothed, with 0 up to half of every region's peak."""
    highest = values.max()
    low = (values > 0) & (values <= values.dtype.type(highest / 2))
    if not 0 < np.count_nonzero(low) <= np.count_nonzero(values == 0):  # so much is no edge
        return Mask(values, None)
    least, most = cv2.erode(values, AROUND), cv2.dilate(values, AROUND)
    is_slope = (least < values) & (values < most)
    is_near = cv2.dilate((values > highest / 2).view(np.uint8), NEAR) > 0
    faint = low & (values <= highest / 16)
    if _are_most(low & (least == most) & ~is_near, low):
        return Mask(values, None)
    if not (_are_most(is_slope & low, low) or _are_most(is_slope & low & ~faint, low & ~faint)):
        return Mask(values, NOISY if _are_most(is_near & faint, low) else None)
    regions, labels = cv2.connectedComponents((values > 0).view(np.uint8), connectivity=8)
    peaks = np.zeros(regions, values.dtype)
    np.maximum.at(peaks, labels, values)
    limits = np.where(peaks < highest / 4, np.inf, peaks / 2)
    return Mask(np.where(values > limits[labels], values, 0).astype(values.dtype), None)


def _are_most(pixels: NDArray[np.bool_], of: NDArray[np.bool_]) -> bool:
    """Whether some of these pixels are more than half of them."""
    return bool(2 * np.count_nonzero(pixels) > np.count_nonzero(of))
