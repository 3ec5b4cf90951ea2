"""Masks of interest: which part of an image is looked at. White is, above half of a file's range; black is not.

There is one file for all images, or a folder with a file for each, of the image's size or at least its aspect.
"""

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datasets.decode import MAX_PIXELS, Reading, read_image
from datasets.folders import images, one_of_each
from datasets.sample import ClassSamples, Sample
from datasets.sizes import have_one_shape
from datasets.transforms import ImageTransform, RandomTransform
from errors import DataError, UsageError

FLAG = "--mask_of_interest"
NAMED = 3  # images that a message names
Interest = NDArray[np.bool_]  # [H, W], True where an image is looked at


@dataclass(frozen=True)
class InterestMasks:
    """Where masks of interest are.

    Attributes:
        path: of the file for all images, or of the folder.
        by_name: in a folder, by their paths below it without endings; None of a file for all.
    """

    path: Path
    by_name: Mapping[Path, Path] | None

    @classmethod
    def at(cls, path: Path) -> "InterestMasks":
        """Those of a file or a folder.

        Raises:
            UsageError: there is neither.
            DataError: a folder without images, or with two masks of one name.
        """
        if path.is_file():
            return cls(path, None)
        if not path.is_dir():
            raise UsageError(f"{FLAG} {path}: no such file or folder: expected a mask, or a folder with one per image")
        found = images(path, recursive=True)
        if not found:
            raise DataError(f"{FLAG} {path}: no masks in it: expected one per image, of its name, with any ending")
        named = one_of_each(found, lambda own: own.relative_to(path).with_suffix(""), "would be masks of one image")
        return cls(path, named)

    def of(self, name: Path) -> Path | None:
        """The mask of an image by its name, a relative path with an ending; None where there is none."""
        return self.path if self.by_name is None else self.by_name.get(name.with_suffix(""))

    def missing(self, images: Sequence[Path | str], name: Path) -> DataError:
        """That images have none, of which the first has a name."""
        more = f" and {len(images) - 1} more images" if len(images) > 1 else ""
        return DataError(
            f"no mask of interest of '{images[0]}'{more}: expected '{self.path / name}', with any ending of an image "
            f"({FLAG})"
        )


def with_interest(samples: ClassSamples, path: Path, root: Path) -> ClassSamples:
    """A class whose samples have a mask of interest, those in a folder by the images' paths below the root.

    Raises:
        UsageError, DataError: as InterestMasks.at, images without a mask, or a mask that read_interest refuses.
    """
    masks = InterestMasks.at(path)
    every = [*samples.train, *samples.validation, *samples.test]
    names = [Path(os.path.relpath(sample.image_path, root)) for sample in every]
    found = [masks.of(name) for name in names]
    if lacking := [i for i, own in enumerate(found) if own is None]:
        raise masks.missing([every[i].image_path for i in lacking], names[lacking[0]])
    for own in dict.fromkeys(found):
        read_interest(own)
    owners = iter(found)

    def taken(part: Sequence[Sample]) -> list[Sample]:
        return [replace(sample, interest_path=next(owners)) for sample in part]

    train, validation, test = map(taken, (samples.train, samples.validation, samples.test))
    return replace(samples, train=train, validation=validation, test=test)


def read_interest(path: Path) -> Interest:
    """A mask as it is in its file.

    Raises:
        DataError: a file that cannot be read, or one without any white.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"mask of interest '{path}' cannot be read: {error.strerror}") from error
    return _read(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2)  # one for all images is read once in a process
def _read(path: Path, *_: int) -> Interest:
    try:
        image = read_image(path, Reading(max_pixels=16 * MAX_PIXELS))
    except DataError as error:
        raise DataError(f"mask of interest: {error}") from error
    values = np.asarray(image.convert("L"))
    if values.max() <= 127:
        raise DataError(
            f"mask of interest '{path}' is black, with values up to {values.max()} of 255: expected white where images "
            "are to be looked at"
        )
    found = values > 127
    found.setflags(write=False)
    return found


def at_size(mask: Interest, size: tuple[int, int], path: Path | str, of: Path | str) -> Interest:
    """A mask at the width and height of its image.

    Raises:
        DataError: it has another aspect; `path` names it, `of` its image.
    """
    own = mask.shape[::-1]
    if own == size:
        return mask
    if not have_one_shape(size, own):
        raise other_shape(path, own, of, size)
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def meets(defective: NDArray[np.bool_], mask: Interest) -> bool:
    """Whether any of an image's defective pixels, or none that there are, is of interest; both of its shape."""
    seen = Image.fromarray(mask).resize(defective.shape[::-1], Image.Resampling.NEAREST)
    return not defective.any() or bool((defective & np.asarray(seen)).any())


def other_shape(path: Path | str, own: tuple[int, int], of: Path | str, size: tuple[int, int]) -> DataError:
    """That a mask of a size does not fit an image of a size."""
    return DataError(
        f"mask of interest '{path}' is {own[0]} x {own[1]} pixels, but '{of}' is {size[0]} x {size[1]}: expected the "
        "image's size, or its aspect"
    )


def pixels_of_interest(
    transform: ImageTransform, image: Image.Image, mask: Interest, path: Path | str, of: Path | str
) -> Tensor:
    """What the network is to see of an image with a mask, uint8 [4, H, W]; see ImageTransform.pixels.

    Raises:
        DataError: as at_size, or nothing of the mask lies within what the network sees.
    """
    own = at_size(mask, image.size, path, of)
    pixels = transform.pixels(image, own)
    if not pixels[3].any():  # random changes may have moved it away
        pixels = replace(transform, random=RandomTransform()).pixels(image, own)
    if not pixels[3].any():
        raise DataError(
            f"mask of interest '{path}' leaves nothing of '{of}' at the network's size: expected white that is a few "
            "pixels wide within what --resize and --imagesize leave of the image"
        )
    return pixels


def encoded(mask: Interest) -> bytes:
    """A mask as the bytes of a PNG file, white on black."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "png")
    return buffer.getvalue()


def digest_of(mask: Interest) -> str:
    """The SHA-256 of a mask's size and pixels."""
    return hashlib.sha256(f"{mask.shape}".encode() + np.packbits(mask).tobytes()).hexdigest()
