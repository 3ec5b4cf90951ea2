"""What follows from weights alone, made once: single images would pay for it again and again."""

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from backbones.devices import is_on_processor
from detection.precision import product_type

Value = TypeVar("Value")


class Derived(Generic[Value]):
    """A value that a function makes of weights, kept for as long as their numbers are the same.

    The numbers themselves are compared, with a copy: tensors count changes, but not those of fused optimisers.
    """

    def __init__(self) -> None:
        self._kept: tuple[tuple[Hashable, ...], list[Tensor], Value] | None = None

    def of(self, weights: Sequence[Tensor], make: Callable[[], Value]) -> Value:
        """What `make` gives, which depends on these weights and on autocast's type alone.

        It is made anew where gradients are asked for or a graph is traced, and on a GPU, which would be waited for.
        """
        if torch.is_grad_enabled() or not all(is_on_processor(one) for one in weights):
            return make()
        state = (product_type(weights[0].device), *((one.dtype, one.shape) for one in weights))
        bits = [_bits(one) for one in weights]
        if self._kept is None or self._kept[0] != state or not all(map(torch.equal, self._kept[1], bits)):
            self._kept = state, [one.clone() for one in bits], make()
        return self._kept[2]


def _bits(values: Tensor) -> Tensor:
    """Numbers as they are stored, eight bytes at a time where they can be: compared so, bfloat16 takes a sixth."""
    flat = values.detach().flatten()
    eights = all(place * flat.itemsize % 8 == 0 for place in (flat.numel(), flat.storage_offset()))
    return flat.view(torch.int64) if eights else flat
