"""Features of a batch of images: one tensor, or several that belong together, such as the maps of several layers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Masked(NamedTuple):
    """Features of images of which parts are of no interest; or the shapes of both, or their types.

    Attributes:
        features: as without: [B, ...], or several of these.
        interest: which of the images' pixels are of interest, bool [B, H, W].
    """

    features: Any
    interest: Any


Features = Tensor | tuple[Tensor, ...] | Masked  # of B images: [B, ...], or several of these

Shape = tuple[int, ...] | list[tuple[int, ...]] | Masked  # of one tensor, or of several
Types = torch.dtype | list[torch.dtype] | Masked  # of one tensor, or of several


def each(function: Callable[[Tensor], Tensor], features: Features) -> Features:
    """A function of every tensor."""
    if isinstance(features, Masked):
        return Masked(each(function, features.features), function(features.interest))
    return function(features) if isinstance(features, Tensor) else tuple(map(function, features))


def parts(features: Features) -> tuple[Tensor, ...]:
    """The tensors, be it one."""
    if isinstance(features, Masked):
        return *parts(features.features), features.interest
    return (features,) if isinstance(features, Tensor) else features


def in_type(features: Features, dtype: torch.dtype) -> Features:
    """The tensors in a type, but for pixels, uint8, and masks, bool, which stay what they are."""
    return each(lambda own: own if own.dtype in (torch.uint8, torch.bool) else own.to(dtype), features)


def types_of(features: Features) -> Types:
    """What the tensors are in."""
    if isinstance(features, Masked):
        return Masked(types_of(features.features), features.interest.dtype)
    return features.dtype if isinstance(features, Tensor) else [own.dtype for own in features]


def shape_of(count: int, features: Features) -> Shape:
    """The shape that features like these have of so many images."""
    if isinstance(features, Masked):
        return Masked(shape_of(count, features.features), shape_of(count, features.interest))
    shapes = [(count, *own.shape[1:]) for own in parts(features)]
    return shapes[0] if isinstance(features, Tensor) else shapes


def joined(batches: Sequence[Features]) -> Features:
    """Those of several batches as of one."""
    if isinstance(batches[0], Masked):
        return Masked(*(joined(own) for own in zip(*batches, strict=True)))
    return torch.cat(batches) if isinstance(batches[0], Tensor) else tuple(map(torch.cat, zip(*batches, strict=True)))
