"""pixels.npz: of every test image how many of its pixels score how high, for metrics of some of the images."""

import io
import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from files import unreadable, write_bytes
from metrics import PixelCounts

PIXELS = "pixels.npz"


def write_pixels(path: Path, counts: PixelCounts) -> None:
    """Write the counts, as what each score adds: mostly nothing, which takes no room."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        normal=_added(counts.normal).astype(np.uint32),
        defective=_added(counts.defective).astype(np.uint32),
        overlap=_added(counts.overlap).astype(np.float32),
        regions=counts.regions.astype(np.uint32),
        **({} if counts.called is None else {"called": counts.called.astype(np.uint32)}),
    )
    write_bytes(path, buffer.getvalue())


def parse_pixels(path: Path, content: bytes, images: int) -> PixelCounts:
    """The counts that a file holds, of so many images.

    Raises:
        DataError: it holds something else.
    """
    try:
        with np.load(io.BytesIO(content)) as arrays:
            added = {name: arrays[name].astype(float if name == "overlap" else np.int64) for name in arrays}
        called = added.pop("called", None)  # earlier versions left it out
        regions = added.pop("regions")
        reached = {name: np.cumsum(own, axis=1) for name, own in added.items()}
        counts = PixelCounts(**reached, regions=regions, called=called)
        shape = (images, counts.normal.shape[1])
        is_right = regions.shape == shape[:1] and (called is None or called.shape == (images, 2))
        if not is_right or any(own.shape != shape for own in counts[:3]):
            raise ValueError(f"it is of other images than the {images} of predictions.csv")
        return counts
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, BadZipFile, zlib.error) as error:
        raise unreadable(path, "the counts of pixels", error) from error


def _added(reached: NDArray[np.number]) -> NDArray[np.number]:
    return np.diff(reached, axis=1, prepend=0)
