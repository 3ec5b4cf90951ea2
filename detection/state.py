"""What the state of a detector is made of: the tensors that are no backbone's, and those whose size the data decide."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import nn

# In the names of its tensors, behind a dot; before it stands which detector's, if it has several. What a network itself
# calls a backbone, as hybrid transformers do, is none of a detector's.
BACKBONE = re.compile(r"\.backbone\.(network|members\.\d+\.network)\.")
Sizes = Sequence[int | range]  # of a tensor's dimensions: one size, or all that are allowed

_Named = TypeVar("_Named")


def without_backbone(tensors: Mapping[str, _Named]) -> dict[str, _Named]:
    """What a detector has beside its backbone, by name."""
    return {name: own for name, own in tensors.items() if not BACKBONE.search(f".{name}")}


def backbone_alone(tensors: Mapping[str, _Named]) -> dict[str, _Named]:
    """What else it has."""
    return {name: own for name, own in tensors.items() if BACKBONE.search(f".{name}")}


def fits(shape: Sequence[int], sizes: Sizes) -> bool:
    """Whether a shape is one of those that are allowed."""
    return len(shape) == len(sizes) and all(
        size in own if isinstance(own, range) else size == own for size, own in zip(shape, sizes, strict=True)
    )


def in_words(sizes: Sizes) -> str:
    """Such as "[1 to 500, 16]"."""
    return f"[{', '.join(f'{own[0]} to {own[-1]}' if isinstance(own, range) else str(own) for own in sizes)}]"


def resize(module: nn.Module, name: str, shape: Sequence[int], sizes: Sizes) -> None:
    """Make room for a buffer of another size.

    Raises:
        RuntimeError: it is none of those that are allowed; nothing was taken.
    """
    if not fits(shape, sizes):
        raise RuntimeError(f"{name} is {list(shape)}, not {in_words(sizes)}")
    owner, _, own = name.rpartition(".")
    holder = module.get_submodule(owner)
    setattr(holder, own, getattr(holder, own).new_empty(shape))
