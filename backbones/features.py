"""Features of a batch of images: one tensor, or several that belong together, such as the maps of several layers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Features = Tensor | tuple[Tensor, ...]  # of B images: [B, ...], or several of these

Shape = tuple[int, ...] | list[tuple[int, ...]]  # of one tensor, or of several
Types = torch.dtype | list[torch.dtype]  # of one tensor, or of several


def each(function: Callable[[Tensor], Tensor], features: Features) -> Features:
    """A function of every tensor."""
    return function(features) if isinstance(features, Tensor) else tuple(map(function, features))


def parts(features: Features) -> tuple[Tensor, ...]:
    """The tensors, be it one."""
    return (features,) if isinstance(features, Tensor) else features


def in_type(features: Features, dtype: torch.dtype) -> Features:
    """The tensors in a type, but for pixels, uint8, which stay what they are."""
    return each(lambda own: own if own.dtype == torch.uint8 else own.to(dtype), features)


def types_of(features: Features) -> Types:
    """What the tensors are in."""
    return features.dtype if isinstance(features, Tensor) else [own.dtype for own in features]


def shape_of(count: int, features: Features) -> Shape:
    """The shape that features like these have of so many images."""
    shapes = [(count, *own.shape[1:]) for own in parts(features)]
    return shapes[0] if isinstance(features, Tensor) else shapes


def joined(batches: Sequence[Features]) -> Features:
    """Those of several batches as of one."""
    return torch.cat(batches) if isinstance(batches[0], Tensor) else tuple(map(torch.cat, zip(*batches, strict=True)))
