"""What the state of a detector is made of: the tensors that are no backbone's, and those whose size the data decide."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

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


def resize(module: nn.Module, sizes: Mapping[str, Sizes], tensors: Mapping[str, Tensor]) -> None:
    """Make room for buffers of other sizes, as far as there are tensors for them.

    Raises:
        RuntimeError: one is of none of the sizes that are allowed.
    """
    for name, allowed in sizes.items():
        if name not in tensors:
            continue
        shape = tensors[name].shape
        if not fits(shape, allowed):
            raise RuntimeError(f"{name} is {list(shape)}, not {in_words(allowed)}")
        owner, _, own = name.rpartition(".")
        holder = module.get_submodule(owner)
        setattr(holder, own, getattr(holder, own).new_empty(shape))


def require_batch(images: Tensor, shape: Sequence[int]) -> None:
    """See that there are images of a shape, or rows, in float32.

    Raises:
        ValueError: there are not.
    """
    if images.dtype != torch.float32 or not len(images) or images.shape[1:] != shape:
        expected = ", ".join(map(str, shape))
        found = f"{images.dtype} {list(images.shape)}".removeprefix("torch.")
        raise ValueError(f"expected float32 [B, {expected}] with B of 1 or more, not {found}")
