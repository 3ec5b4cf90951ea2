"""Anomaly maps at the size of the image, and as files."""

import io
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets import ImageTransform
from errors import DataError


def full_size(
    anomaly_map: NDArray[np.float32], transform: ImageTransform, size: tuple[int, int]
) -> NDArray[np.float32]:
    """A map [side, side] at the width and height of its image; NaN where the network did not look.

    That is beyond the crop, and where the map is NaN, for nothing there is of interest.

    Raises:
        DataError: what the network saw is less than a pixel wide or high.
    """
    width, height = size
    left, top, right, bottom = transform.window(width, height)
    if left >= right or top >= bottom:
        raise DataError(
            f"has no map of its own size: of its {width} x {height} pixels the network saw less than one; leave out "
            "--full_size and --regions"
        )
    if anomaly_map.shape == (height, width) == (bottom - top, right - left):
        return anomaly_map
    full = np.full((height, width), np.nan, np.float32)
    full[top:bottom, left:right] = _resized(anomaly_map, (right - left, bottom - top))
    return full


def _resized(anomaly_map: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map at another width and height; NaN where the nearest pixel is, which takes no part in others."""
    outside = np.isnan(anomaly_map)
    if not outside.any():
        return cv2.resize(anomaly_map, size)
    known = cv2.resize(np.where(outside, 0, anomaly_map), size)
    share = cv2.resize(np.float32(~outside), size)
    is_outside = cv2.resize(outside.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    return np.where(is_outside | (share <= 0), np.float32(np.nan), known / np.maximum(share, np.float32(1e-6)))


def raw(anomaly_map: NDArray[np.float32], raw_format: Literal["npy", "tiff"]) -> bytes:
    """A map [H, W] as the bytes of a file."""
    buffer = io.BytesIO()
    if raw_format == "npy":
        np.save(buffer, anomaly_map)
    else:
        Image.fromarray(anomaly_map).save(buffer, "tiff")
    return buffer.getvalue()
