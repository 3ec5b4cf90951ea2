"""Images that were read, kept for who reads them next."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from datasets.sample import Sample
from datasets.seen import Seen
from datasets.transforms import ImageTransform


class Read(NamedTuple):
    """An image as it is read, uint8 [3, H, W], its mask, bool [H, W], and what is seen of it; of a row float32 [F]."""

    image: Tensor
    mask: Tensor
    seen: Seen


class Kept:
    """Images by their samples and how they were read, as long as there is room; later ones are read again.

    Args:
        room: bytes.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._images: dict[tuple[Sample, int, ImageTransform], Read] = {}

    def add(
        self, samples: Sequence[Sample], transform: ImageTransform, images: Tensor, masks: Tensor, seen: Sequence[Seen]
    ) -> None:
        """Keep copies of images [B, ...] and masks [B, ...] of so many samples: readers lend theirs."""
        self.room -= images.nbytes + masks.nbytes
        if self.room >= 0:
            copies = map(Read, images.clone(), masks.clone(), seen)
            self._images.update(zip(_keys(samples, transform), copies, strict=True))

    def all_of(self, samples: Sequence[Sample], transform: ImageTransform) -> list[Read] | None:
        """What was read of all samples; None where one is not kept."""
        found = [self._images.get(key) for key in _keys(samples, transform)]
        return None if None in found else found


def _keys(samples: Sequence[Sample], transform: ImageTransform) -> list[tuple[Sample, int, ImageTransform]]:
    """What tells images apart: samples that hold pixels are equal by their names alone."""
    return [(sample, id(sample.pixels), transform) for sample in samples]
