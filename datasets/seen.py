"""How much of images and their defects lies within what the network sees."""

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.transforms import ImageTransform


@dataclass(frozen=True)
class Seen:
    """Counts that add up over images.

    Attributes:
        images: how many.
        share: of their pixels that are seen, summed.
        defects: their masks.
        partly, wholly: those of which some pixels, and all, are not seen.
    """

    images: int = 0
    share: float = 0.0
    defects: int = 0
    partly: int = 0
    wholly: int = 0

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(*(own + theirs for own, theirs in zip(astuple(self), astuple(other), strict=True)))

    def sentence(self, title: str, transform: ImageTransform) -> str | None:
        """What is said of images of which not all is seen; None of others."""
        if self.share >= self.images:
            return None
        share = f"{title}: {self.share / self.images:.1%} of the test images is seen (--resize {transform.resize}"
        text = f"{share} --imagesize {transform.imagesize} --resize_mode {transform.resize_mode})"
        if not self.defects:
            return text
        cut = f"of {self.defects} defects {self.wholly} lie wholly outside and {self.partly} partly"
        return f"{text}; {cut}" + ("; --resize_mode square shows all" if self.wholly or self.partly else "")


def seen_of_image(transform: ImageTransform, width: int, height: int) -> Seen:
    """One image, by its size."""
    left, top, right, bottom = transform.window(width, height)
    return Seen(1, (right - left) * (bottom - top) / (width * height))


def seen_of_defect(transform: ImageTransform, mask: NDArray[np.bool_]) -> Seen:
    """One defect, by its mask [H, W] at full size."""
    height, width = mask.shape
    left, top, right, bottom = transform.window(width, height)
    if (left, top, right, bottom) == (0, 0, width, height):
        return Seen(defects=1)
    inside, every = np.count_nonzero(mask[top:bottom, left:right]), np.count_nonzero(mask)
    return Seen(defects=1, partly=int(0 < inside < every), wholly=int(inside == 0 < every))
