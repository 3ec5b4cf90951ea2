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
    """A map [side, side] at the width and height of its image; NaN where the network did not look, beyond the crop.

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
    full[top:bottom, left:right] = cv2.resize(anomaly_map, (right - left, bottom - top))
    return full


def raw(anomaly_map: NDArray[np.float32], raw_format: Literal["npy", "tiff"]) -> bytes:
    """A map [H, W] as the bytes of a file."""
    buffer = io.BytesIO()
    if raw_format == "npy":
        np.save(buffer, anomaly_map)
    else:
        Image.fromarray(anomaly_map).save(buffer, "tiff")
    return buffer.getvalue()
