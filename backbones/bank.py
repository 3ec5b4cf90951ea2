"""The feature bank: what a frozen backbone sees in unchanging images is embedded once and read at every pass."""

import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from backbones.devices import sent_ahead, takes_pinned
from backbones.features import Features, Masked, Shape, Types, each, parts
from backbones.host_memory import free_memory
from errors import DataError

Place = Literal["device", "host", "disk"]
PLACES: tuple[Place, ...] = ("device", "host", "disk")  # from the fastest to the roomiest

# A bank takes at most this share of what is free; the rest is for training, evaluation and everybody else.
FREE_SHARE = 0.5


class FeatureBank:
    """Features of n images, [n, ...] or several of these, on a device, in host memory, or in a memory-mapped file.

    The file has no name: it vanishes with the process, however that ends.

    Args:
        shape: n, and the shape of an image's features, such as H1, W1, D of patch embeddings; of several in a list.
        dtype: of the features; of several in a list where they differ.
        place: where they are kept.
        device: where batches are wanted.

    Raises:
        DataError: the disk has no room for the file.
    """

    def __init__(self, shape: Shape, dtype: Types, place: Place, device: torch.device) -> None:
        self.place = place
        self.device = device
        tensors = [allocate(own, kind, place, device) for own, kind in _tensors(shape, dtype)]
        self.features: Features = _shaped(shape, tensors)

    def __len__(self) -> int:
        return len(parts(self.features)[0])

    @property
    def nbytes(self) -> int:
        """What they take."""
        return sum(own.nbytes for own in parts(self.features))

    def fill(self, embeddings: Iterable[Features]) -> None:
        """Store the features of one batch after another, n in all."""
        start = 0
        for batch in embeddings:
            end = start + len(parts(batch)[0])
            for own, new in zip(parts(self.features), parts(batch), strict=True):
                own[start:end] = new
            start = end
        if start != len(self):
            raise ValueError(f"{start} embeddings were given, not {len(self)}")

    def batches(self, batch_size: int, order: Iterable[int] | None = None) -> Iterator[Features]:
        """Batches on the device, in the order of the indices given or as they were stored."""
        where = parts(self.features)[0].device
        chosen = None if order is None else torch.as_tensor(list(order)).to(where).split(batch_size)  # once a pass
        if self.place != "device" and takes_pinned(self.device):
            in_order = torch.arange(len(self)).split(batch_size) if chosen is None else chosen
            yield from sent_ahead((each(partial(_pinned, own), self.features) for own in in_order), self.device)
        elif chosen is None:
            for i in range(0, len(self), batch_size):
                yield each(lambda own, i=i: own[i : i + batch_size].to(self.device), self.features)
        else:
            for indices in chosen:
                yield each(lambda own, indices=indices: own[indices].to(self.device), self.features)


def _pinned(indices: Tensor, features: Tensor) -> Tensor:
    """Some of features [n, ...] in pinned memory, copied there once."""
    shape = (len(indices), *features.shape[1:])
    return torch.index_select(features, 0, indices, out=torch.empty(shape, dtype=features.dtype, pin_memory=True))


def _shaped(shape: Shape, tensors: list[Tensor]) -> Features:
    """The tensors of a bank as the features that it keeps."""
    if isinstance(shape, Masked):
        return Masked(_shaped(shape.features, tensors[:-1]), tensors[-1])
    return tuple(tensors) if isinstance(shape, list) else tensors[0]


def bank_bytes(shape: Shape, dtype: Types) -> int:
    """Bytes that a bank of this shape takes."""
    return sum(math.prod(own) * kind.itemsize for own, kind in _tensors(shape, dtype))


def _tensors(shape: Shape, dtype: Types) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor of a bank."""
    if isinstance(shape, Masked):
        return [*_tensors(shape.features, dtype.features), (shape.interest, dtype.interest)]
    shapes = shape if isinstance(shape, list) else [shape]
    return list(zip(shapes, dtype if isinstance(dtype, list) else [dtype] * len(shapes), strict=True))


def allocate(shape: tuple[int, ...], dtype: torch.dtype, place: Place, device: torch.device) -> Tensor:
    """An uninitialised tensor on a device, in host memory, or in a file that vanishes with the process.

    Raises:
        DataError: the disk has no room for the file.
    """
    if place == "disk":
        return _mapped(shape, dtype)
    return torch.empty(shape, dtype=dtype, device=device if place == "device" else "cpu")


def choose_place(size: int, device: torch.device) -> Place:
    """The first of device, host and disk whose free memory a bank of `size` bytes fits with room to spare."""
    if device.type != "cpu" and size <= FREE_SHARE * free_on(device):
        return "device"
    return "host" if size <= FREE_SHARE * free_memory() else "disk"


def free_on(device: torch.device) -> int:
    """Bytes that may still be taken of a device's memory."""
    return free_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]


def beside_bank(shape: tuple[int, ...], dtype: torch.dtype, on_disk: bool) -> Tensor:
    """An uninitialised tensor for what is kept of all images beside their embeddings: maps and masks.

    Args:
        shape, dtype: of the tensor.
        on_disk: keep it in a file even where host memory has room.

    Raises:
        DataError: the disk has no room for the file.
    """
    cpu = torch.device("cpu")
    return allocate(shape, dtype, "disk" if on_disk else choose_place(bank_bytes(shape, dtype), cpu), cpu)


def _mapped(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size = bank_bytes(shape, dtype)
    try:
        with tempfile.TemporaryFile(prefix="feature-bank-") as file:
            # Taken at once: a mapped file that found its disk full later would kill the process.
            os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
            raw = np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,))
    except OSError as error:
        folder = tempfile.gettempdir()
        raise DataError(
            f"no room for a temporary file of {size / 2**30:.1f} GiB in '{folder}' ({error.strerror}): "
            "set TMPDIR to a folder on a larger disk, or use --feature_bank off"
        ) from error
    return torch.from_numpy(raw).view(dtype).view(shape)
