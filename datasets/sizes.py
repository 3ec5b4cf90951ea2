"""The sizes of a class's image files, by which others are known to show the same at another scale."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from datasets.decode import Header

Range = tuple[int, int]  # the smallest and the largest


@dataclass(frozen=True)
class ImageSizes:
    """From the smallest to the largest width and height of some images, in pixels, as they are in their files."""

    width: Range
    height: Range

    @classmethod
    def of(cls, headers: Iterable[Header]) -> "ImageSizes | None":
        """Those of images by their headers; None of none."""
        sizes = [header[:2] for header in headers]
        return cls(*((min(own), max(own)) for own in zip(*sizes, strict=True))) if sizes else None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ImageSizes":
        """What JSON holds of them; ValueError where it holds something else."""
        made = cls(**{name: tuple(own) for name, own in values.items()})
        for own in (made.width, made.height):
            if len(own) != 2 or not all(type(one) is int for one in own) or not 1 <= own[0] <= own[1]:
                raise ValueError(f"image_sizes is {values!r}")
        return made

    def hold(self, header: Header) -> bool:
        """Whether an image's size is one of them."""
        sides = zip((self.width, self.height), header[:2], strict=True)
        return all(least <= side <= most for (least, most), side in sides)

    def __str__(self) -> str:
        width, height = (str(low) if low == high else f"{low} to {high}" for low, high in (self.width, self.height))
        return f"{width} x {height}"


def have_one_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes are equal, or one is that of an image resized from the other's, to whole pixels."""
    (width, height), (other_width, other_height) = size, other
    if (other_width - width) * (other_height - height) <= 0:  # both sides grow, or both shrink
        return size == other
    return abs(other_width * height - other_height * width) < max(width, height)
