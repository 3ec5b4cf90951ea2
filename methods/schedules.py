"""The order in which a network learns from batches of several classes and data sets."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor


class Scheduled:
    """Batches of all parts with the number of their part, in the order of a schedule."""

    def __init__(self, parts: Sequence[Iterable[Tensor]], schedule: str) -> None:
        self.parts = parts
        self.order = SCHEDULES[schedule]

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        batches = [iter(own) for own in self.parts]
        for part in self.order([len(own) for own in self.parts]):
            with torch.random.fork_rng(devices=[]):  # readers may seed the generator that training draws from
                batch = next(batches[part])
            yield part, batch


def alternate(counts: Sequence[int]) -> list[int]:
    """The parts of so many batches each in turn, while they have any: [3, 1] gives 0, 1, 0, 0."""
    turns = sorted((turn, part) for part, count in enumerate(counts) for turn in range(count))
    return [part for _, part in turns]


def interleave(counts: Sequence[int]) -> list[int]:
    """The parts of so many batches each in proportion, every one spread evenly: [4, 2] gives 0, 1, 0, 0, 1, 0."""
    places = sorted(((turn + 0.5) / count, part) for part, count in enumerate(counts) for turn in range(count))
    return [part for _, part in places]


SCHEDULES = {"alternate": alternate, "interleave": interleave}
