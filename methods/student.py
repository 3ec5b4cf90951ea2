"""The student of reverse distillation: a one-class bottleneck, and a decoder that mirrors the teacher's layers.

What (1) of methods/rd.py is made of, for the teacher's maps F_1 to F_L, from fine to coarse:

    E = bottleneck(F) = stage([path_1(F_1), ..., path_L(F_L)])           paths to the coarsest grid           (1a)
    S_L = stage_L(E), S_l = stage_l(S_l+1)                               each of the shape of F_l             (1b)
    stage = block(... block(x)), block(x) = shortcut(r) + main(r), r = ReLU(x)                                (1c)

Channels and grids are those of any backbone's layers. Blocks have the shape of WideResNet's bottleneck blocks
(Zagoruyko and Komodakis, 2016), but take their ReLU at the entrance, so that a stage's last output has both signs, as
the maps of many teachers have.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import LayerInfo
from backbones.resizing import resized
from errors import UsageError

NARROWEST = 64  # channels inside a block: half of a thin teacher's would hold too little


class Student(nn.Module):
    """S (1): from the teacher's maps through the bottleneck to the student's maps of the same shapes (section 3).

    Args:
        infos: the teacher's layers, from fine to coarse.
        blocks: residual blocks of the bottleneck and of every stage of the decoder.

    Raises:
        UsageError: layers in another order, or grids too small for the bottleneck.
    """

    def __init__(self, infos: Sequence[LayerInfo], blocks: int) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(infos, blocks)
        self.decoder = Decoder(infos, blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C_l, H_l, W_l] to maps of the same shapes."""
        return self.decoder(self.bottleneck(maps))


class Bottleneck(nn.Module):
    """E (1a), the one-class bottleneck embedding: multi-scale feature fusion, then a residual stage (section 3.3).

    Fusion brings every map to the coarsest grid by convolutions of stride 2 and puts them side by side; the stage
    halves the grid once more, to twice the coarsest map's channels.
    """

    def __init__(self, infos: Sequence[LayerInfo], blocks: int) -> None:
        super().__init__()
        last = infos[-1]
        if math.prod(-(-n // 2) for n in last.grid) < 2:
            raise UsageError(
                f"layer {last.name} has {last.grid[0]} x {last.grid[1]} cells, too few for the bottleneck behind it: "
                "raise --imagesize, or leave the layer out"
            )
        self.grid = last.grid
        self.paths = nn.ModuleList(_path_down(infos[i:]) for i in range(len(infos)))
        self.stage = _stage(Block(len(infos) * last.channels, 2 * last.channels, down=2), 2 * last.channels, blocks)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The embedding [B, 2 C_L, H_L / 2, W_L / 2] of maps from fine to coarse."""
        fused = [  # [B, C_L, H_L, W_L]; backbones round a half in different ways
            resized(path(one), self.grid) for path, one in zip(self.paths, maps, strict=True)
        ]
        return self.stage(torch.cat(fused, dim=1))


class Decoder(nn.Module):
    """S_l (1b): stages from the embedding up to the finest map, each with the channels and the grid of a layer."""

    def __init__(self, infos: Sequence[LayerInfo], blocks: int) -> None:
        super().__init__()
        self.grids = [info.grid for info in infos]
        outputs = [info.channels for info in infos]
        inputs = [*outputs[1:], 2 * outputs[-1]]
        steps = [*(2 ** halvings(fine, coarse) for fine, coarse in itertools.pairwise(infos)), 2]
        self.stages = nn.ModuleList(
            _stage(Block(n, own, up=up), own, blocks) for n, own, up in zip(inputs, outputs, steps, strict=True)
        )

    def forward(self, embedding: Tensor, compensate: Callable[[int, Tensor], Tensor] | None = None) -> list[Tensor]:
        """The maps, from fine to coarse.

        Args:
            embedding: of the bottleneck.
            compensate: changes a level's map before the finer ones are made of it; called with the level's index.
        """
        maps: list[Tensor] = []
        for level in reversed(range(len(self.stages))):
            embedding = resized(self.stages[level](embedding), self.grids[level])  # [B, C_l, H_l, W_l]
            if compensate is not None:
                embedding = compensate(level, embedding)
            maps.append(embedding)
        return maps[::-1]


class Block(nn.Module):
    """A residual block (1c), whose main path has 1 x 1, 3 x 3 and 1 x 1 convolutions.

    Args:
        inputs, outputs: channels.
        up, down: the grid becomes so many times finer, by a transposed convolution, or coarser.
    """

    def __init__(self, inputs: int, outputs: int, up: int = 1, down: int = 1) -> None:
        super().__init__()
        inside = max(outputs // 2, NARROWEST)
        self.main = nn.Sequential(
            *_normed(nn.Conv2d(inputs, inside, 1, bias=False)),
            nn.ReLU(),
            *_normed(_resampling(inside, inside, 3, up, down)),
            nn.ReLU(),
            *_normed(nn.Conv2d(inside, outputs, 1, bias=False)),
        )
        same = inputs == outputs and up == down == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_normed(_resampling(inputs, outputs, 1, up, down)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H up / down, W up / down]."""
        x = F.relu(x)
        return self.shortcut(x) + self.main(x)


def halvings(fine: LayerInfo, coarse: LayerInfo) -> int:
    """How many times the grid is halved from one layer to a later one.

    Raises:
        UsageError: the later one is finer.
    """
    if coarse.grid[0] > fine.grid[0]:
        raise UsageError(f"layers must go from fine to coarse: {coarse.name} is finer than {fine.name} before it")
    return round(math.log2(fine.grid[0] / coarse.grid[0]))


def _stage(first: Block, channels: int, blocks: int) -> nn.Sequential:
    """A stage (1c): a block that resamples to so many channels, and others behind it, so many in all."""
    return nn.Sequential(first, *(Block(channels, channels) for _ in range(blocks - 1)))


def _path_down(infos: Sequence[LayerInfo]) -> nn.Sequential:
    """A path of (1a): from the first layer's map to the last one's grid and channels, through the layers between."""
    layers: list[nn.Module] = []
    for fine, coarse in itertools.pairwise(infos):
        channels, times = fine.channels, halvings(fine, coarse)
        for stride in [2] * times or [1]:
            layers += [*_normed(nn.Conv2d(channels, coarse.channels, 3, stride, 1, bias=False)), nn.ReLU()]
            channels = coarse.channels
    return nn.Sequential(*layers)


def _normed(convolution: nn.Module) -> tuple[nn.Module, nn.Module]:
    return convolution, nn.BatchNorm2d(convolution.out_channels)


def _resampling(inputs: int, outputs: int, kernel: int, up: int, down: int) -> nn.Module:
    if up > 1:
        return nn.ConvTranspose2d(inputs, outputs, up, up, bias=False)
    return nn.Conv2d(inputs, outputs, kernel, down, kernel // 2, bias=False)
