"""EfficientAD's autoencoder, which sees the whole scene: it gives a teacher's maps from a narrow code of the image.

Of Batzner, Heckler and Koenig (WACV 2024). At 256 pixels five convolutions halve the image to 8 x 8, a sixth makes a
code of 64 values of that, and seven pairs of an upsampling and a convolution lead from it to the maps. At other sizes
the maps on the way are in proportion; of smaller images the sixth convolution is smaller, so that the code stays one
cell.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.resizing import resized

ENCODER = (3, 32, 32, 64, 64, 64)
CODE = 64
KERNEL = 8  # of the convolution that makes the code, at most
DROPOUT = 0.2


class SceneAutoencoder(nn.Module):
    """From images to a teacher's maps of them.

    Args:
        outputs: channels of the maps.
        image_size: height and width of the images.
        grid: rows and columns of the maps.
    """

    def __init__(self, outputs: int, image_size: tuple[int, int], grid: tuple[int, int]) -> None:
        super().__init__()
        self.halving = nn.ModuleList(
            nn.Conv2d(inputs, own, 4, stride=2, padding=1) for inputs, own in itertools.pairwise(ENCODER)
        )
        kernel = tuple(max(1, min(KERNEL, side // 2 ** len(self.halving))) for side in image_size)
        self.code = nn.Conv2d(ENCODER[-1], CODE, kernel)
        self.sizes = [
            tuple(max(1, side) for side in own)
            for own in zip(
                *((n // 64 - 1, n // 32, n // 16 - 1, n // 8, n // 4 - 1, n // 2 - 1) for n in image_size), strict=True
            )
        ]
        self.grid = grid
        self.growing = nn.ModuleList(nn.Conv2d(CODE, CODE, 4, padding=2) for _ in self.sizes)
        self.dropout = nn.Dropout(DROPOUT)
        self.last = nn.ModuleList([nn.Conv2d(CODE, CODE, 3, padding=1), nn.Conv2d(CODE, outputs, 3, padding=1)])
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] to maps [B, outputs, *grid]."""
        x = images.contiguous(memory_format=torch.channels_last)
        for own in self.halving:
            x = F.relu(own(x))
        x = self.code(x)
        for size, own in zip(self.sizes, self.growing, strict=True):
            x = self.dropout(F.relu(own(resized(x, size))))
        before, last = self.last
        return last(F.relu(before(resized(x, self.grid))))
