"""The order of images in a pass, and the seeds of what is random in reading them."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class Shuffled(Sampler[int]):
    """The indices 0..n-1 in a new order at every pass, by a generator of its own; another seeds random changes.

    Attributes:
        drawn: the order of the pass that began last.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self.drawn: list[int] = []
        self.generator = torch.Generator().manual_seed(seed)
        self.changes = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        self.drawn = torch.randperm(self.n, generator=self.generator).tolist()
        return iter(self.drawn)

    def state_dict(self) -> dict[str, Tensor]:
        """What the next pass depends on."""
        return {"generator": self.generator.get_state(), "changes": self.changes.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what state_dict returned."""
        self.generator.set_state(state["generator"])
        self.changes.set_state(state["changes"])


class Draws(Sampler[tuple[int, int]]):
    """Indices in their order, each with the seed of its random changes: whichever process reads it, they are the same.

    A sampler rather than a generator, for the loader wants its length.
    """

    def __init__(self, order: Shuffled) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        seeds = torch.randint(2**62, (len(self.order),), generator=self.order.changes).tolist()
        return zip(self.order, seeds, strict=True)
