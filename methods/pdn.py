"""Patch description networks: a few convolutions, every output of which sees exactly 33 x 33 pixels.

Of EfficientAD (Batzner, Heckler and Koenig, WACV 2024). All convolutions have a bias and, but for the last, a ReLU:

    s   4 x 4 to 128, pool, 4 x 4 to 256, pool, 3 x 3 to 256, 4 x 4 to C
    m   4 x 4 to 256, pool, 4 x 4 to 512, pool, 1 x 1 to 512, 3 x 3 to 512, 4 x 4 to C, 1 x 1 to C

Pools are averages of 2 x 2. Padded, there is an output for every fourth pixel of each axis; a teacher is distilled so.
Not padded, the outputs whose 33 x 33 pixels are not all inside are left out: zeros beside the image would tell where
it ends.

Tensors are named as in the files of teachers that are published: by their place in a sequence, or convN.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.weights import read_state
from errors import DataError, UsageError

Size = Literal["s", "m"]
OUTPUTS = 384  # C at full width
FIRST = {"s": 128, "m": 256}  # channels of the first convolution at full width
SEEN = 33  # pixels of a side that an output sees


class PDN(nn.Sequential):
    """A patch description network.

    Args:
        size: which.
        width: of its channels, as a share of those above.
        outputs: C.
        padded: whether zeros are put around images and maps.
    """

    def __init__(self, size: Size, width: float, outputs: int, padded: bool) -> None:
        p = int(padded)
        narrow, wide = scaled(FIRST[size], width), scaled(2 * FIRST[size], width)
        last = [nn.Conv2d(wide, outputs, 4)]
        inner = [nn.Conv2d(wide, wide, 3, padding=p), nn.ReLU(inplace=True)]
        if size == "m":
            inner = [nn.Conv2d(wide, wide, 1), nn.ReLU(inplace=True), *inner]
            last += [nn.ReLU(inplace=True), nn.Conv2d(outputs, outputs, 1)]
        super().__init__(
            nn.Conv2d(3, narrow, 4, padding=3 * p),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2, padding=p),
            nn.Conv2d(narrow, wide, 4, padding=3 * p),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2, padding=p),
            *inner,
            *last,
        )
        self.to(memory_format=torch.channels_last)  # pools take a tenth of the time

    def forward(self, images: Tensor, outputs: slice = slice(None)) -> Tensor:
        """Images [B, 3, H, W] to maps [B, C, *grid_of]; of some outputs alone, for what the others would cost."""
        *before, last = self
        images = images.contiguous(memory_format=torch.channels_last)
        for own in before:
            images = own(images)
        return F.conv2d(images, last.weight[outputs], last.bias[outputs])


def scaled(channels: int, width: float) -> int:
    """So many channels at a width."""
    return max(1, round(channels * width))


def grid_of(image_size: tuple[int, int], padded: bool) -> tuple[int, int]:
    """Rows and columns of outputs for images of (height, width).

    Raises:
        UsageError: there are none.
    """
    if padded:
        rows, columns = (((side + 3) // 2 + 4) // 2 - 2 for side in image_size)
    else:
        rows, columns = (((side - 3) // 2 - 3) // 2 - 5 for side in image_size)
    if min(rows, columns) < 1:
        raise UsageError(
            f"images of {image_size[0]} x {image_size[1]} are too small for patches of {SEEN} x {SEEN} pixels: raise "
            f"--imagesize to {SEEN} or more, or give --padding"
        )
    return rows, columns


def read_teacher(path: Path, size: Size, width: float) -> dict[str, Tensor]:
    """The tensors of a teacher by PDN's names: of a state dict as published, or as distill writes it.

    Raises:
        UsageError: no such file, or a teacher of another size or width.
        DataError: it cannot be read, or is no teacher.
    """
    if not path.is_file():
        raise UsageError(f"--teacher {path}: no such file")
    with torch.device("cpu"):
        state = read_state(path, "teacher")
    wanted = _shapes(size, width)
    for own in FIRST:
        full = _shapes(own, 1.0)
        found = _by_place(state, list(full))
        shapes = {name: tuple(found[name].shape) for name in full if name in found}
        if shapes == wanted:
            return {name: found[name] for name in full}
        if len(found) == len(full) and {name: one[2:] for name, one in shapes.items()} == {
            name: one[2:] for name, one in full.items()
        }:
            raise UsageError(
                f"--teacher {path}: of --size {own}, with {_channels(shapes)} channels, and --size {size} --width "
                f"{width:g} has {_channels(wanted)}: give the --size and --width that it was made with"
            )
    raise DataError(f"--teacher {path}: no patch description network: expected the tensors {', '.join(wanted)}")


def _shapes(size: Size, width: float) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {
            name: tuple(own.shape) for name, own in PDN(size, width, scaled(OUTPUTS, width), True).state_dict().items()
        }


def _channels(shapes: Mapping[str, Sequence[int]]) -> str:
    """Such as "128, 256, 256 and 384", of the convolutions."""
    *others, last = (str(own[0]) for name, own in shapes.items() if name.endswith("bias"))
    return f"{', '.join(others)} and {last}"


def _by_place(state: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Tensors by their places in a sequence, where their convolutions may be numbered instead."""
    numbered = {f"conv{i // 2 + 1}.{name.partition('.')[2]}": name for i, name in enumerate(names)}
    return {numbered.get(name, name): own for name, own in state.items()}
