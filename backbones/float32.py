"""Float32 that keeps its digits, for what promises it: distances, statistics, resizing and anomaly maps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32(device: torch.device | str) -> Iterator[None]:
    """Products and convolutions of float32 tensors as such: not in autocast's type, nor in the 10 bits of CUDA's TF32.

    A backward pass is of the context that it runs in, not of that in which its forward pass ran.
    """
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed
