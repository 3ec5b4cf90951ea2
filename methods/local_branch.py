"""The local branch of CPR: what describes a place for retrieval, learned on top of one layer's map of the backbone."""

import torch
from torch import Tensor, nn

EPS = 1e-3  # of the BatchNorm behind the convolutions of a block, as in Inception


class LocalBranch(nn.Sequential):
    """Convolution, BatchNorm, ReLU; four branches side by side; convolution.

    Args:
        channels: of the map.
        stem: after the first convolution.
        width: of each branch.
        out: values that describe a place.
    """

    def __init__(self, channels: int, stem: int, width: int, out: int) -> None:
        super().__init__(
            nn.Conv2d(channels, stem, 1),
            nn.BatchNorm2d(stem),
            nn.ReLU(),
            Branches(stem, width),
            nn.Conv2d(4 * width, out, 1),
        )


class Branches(nn.Module):
    """Places as they are, twice, with what surrounds them, and the means of that (Szegedy et al., CVPR 2015)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        squeezed = max(1, 3 * width // 4)
        self.branches = nn.ModuleList(
            [
                _convolved(channels, width),
                nn.Sequential(_convolved(channels, squeezed), _convolved(squeezed, width, 3)),
                _convolved(channels, width),
                nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), _convolved(channels, width)),
            ]
        )

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 4 width, h, w]."""
        return torch.cat([branch(maps) for branch in self.branches], dim=1)


def _convolved(channels: int, width: int, side: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, side, padding=side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width, eps=EPS), nn.ReLU())
