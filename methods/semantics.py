"""What LogicRD adds to reverse distillation: global semantics, a pathway for fine detail, and the gate on it.

Of the paper only the abstract is known to us: it names global semantic enhancement across the teacher's levels, a
feature compensation pathway, a normal information inhibition gate on it, and an evaluation by the anomaly map and the
Mahalanobis distance of the global semantics. What these are made of here is our design; in the numbers of
methods/logicrd.py, for the teacher's maps F_l and the student's S_l:

    t_l = A_l norm(means of F_l over a grid) + p_l                       tokens of level l                    (5a)
    [z_1, ..., z_L] = encoder([t_1, ..., t_L]),  G_l = B_l z_l           global semantics of level l          (5b)
    v = means of all z_l over the quarters of the image                  global semantic vector               (5c)
    d_l = squeeze(F_l - means of F_l over the grid)                      detail that the semantics have lost  (6a)
    g_l = sigmoid(a cos(d_l, expect(S_l)) + b), cell by cell             gate on it                           (6b)
    S_l + g_l restore(d_l)                                               the compensated map                  (6c)

The gate learns on (6a) of maps of which a part comes from elsewhere (6d).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import LayerInfo
from backbones.resizing import resized

LARGEST = 8  # tokens of a level along each axis: attention over all levels has to be cheap
WIDTH = 64  # dimensions of a token
HEADS = 4
DEPTH = 2
QUARTERS = (2, 2)  # the global vector keeps where things are, to the quarter of the image
FRACTION = 4  # a detail has so many times fewer channels than the layer
NARROWEST = 8
CORRUPTED = 0.2  # share of the cells whose detail comes from elsewhere while the gate learns


class GlobalSemantics(nn.Module):
    """GSE, G and v (5): tokens of all levels under self-attention, each knowing what lies elsewhere and on others.

    Published: the levels of the hierarchy are fused into a global representation of each. Ours: means of every level's
    map over a grid, standardised, become tokens with embeddings of place and level; a transformer encoder without
    normalisation at its end keeps their magnitudes, of which counts of parts are made.

    Args:
        infos: the teacher's layers.
        grid: of every level's tokens.
    """

    def __init__(self, infos: Sequence[LayerInfo], grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.dimensions = len(infos) * WIDTH * math.prod(QUARTERS)
        self.norms = nn.ModuleList(nn.BatchNorm2d(info.channels, affine=False) for info in infos)
        self.to_tokens = nn.ModuleList(nn.Linear(info.channels, WIDTH) for info in infos)
        self.places = nn.Parameter(torch.randn(len(infos), grid[0] * grid[1], WIDTH) * 0.02)
        block = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 2 * WIDTH, dropout=0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(block, DEPTH, enable_nested_tensor=False)
        self.to_maps = nn.ModuleList(nn.Conv2d(WIDTH, info.channels, 1) for info in infos)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Semantics of maps F_l [B, C_l, H_l, W_l].

        Returns:
            G_l [B, C_l, *grid] (5b) of every level, and v (5c), float32 [B, dimensions].
        """
        tokens = [  # (5a): [B, cells, WIDTH] of every level
            to_tokens(norm(area_means(one, self.grid)).flatten(2).transpose(1, 2))
            for norm, to_tokens, one in zip(self.norms, self.to_tokens, maps, strict=True)
        ]
        fused = self.encoder((torch.stack(tokens, dim=1) + self.places).flatten(1, 2))  # z (5b): [B, L cells, WIDTH]
        levels = fused.unflatten(1, (len(maps), *self.grid)).permute(0, 1, 4, 2, 3)  # [B, L, WIDTH, *grid]
        vector = area_means(levels.flatten(1, 2).float(), QUARTERS).flatten(1)  # (5c)
        return [to_map(own) for to_map, own in zip(self.to_maps, levels.unbind(1), strict=True)], vector


class CompensationPathway(nn.Module):
    """FCP and NII of one level: what the semantics have lost of it (6a), added to the student's (6c) through a gate.

    Published: a pathway compensates the student for detail, and a gate on it inhibits what is anomalous. Ours: detail
    is squeezed through few channels; the gate opens, cell by cell, as far as detail resembles what the student's own
    map lets expect (6b), and learns on details of which a part come from elsewhere (6d).

    Args:
        channels: of the level.
        grid: of the tokens.
        gated: whether the gate is there.
    """

    def __init__(self, channels: int, grid: tuple[int, int], gated: bool) -> None:
        super().__init__()
        narrow = max(channels // FRACTION, NARROWEST)
        self.grid = grid
        self.squeeze = nn.Sequential(nn.Conv2d(channels, narrow, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU())
        self.restore = nn.Conv2d(narrow, channels, 1)
        self.expect = nn.Conv2d(channels, narrow, 1) if gated else None
        if gated:
            self.steepness = nn.Parameter(torch.tensor(4.0))
            self.bias = nn.Parameter(torch.tensor(0.0))

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The student's map [B, C, H, W] with the detail of the teacher's (6c)."""
        coarse = resized(area_means(teacher, self.grid), teacher.shape[-2:])
        detail = self.squeeze(teacher - coarse)  # (6a): [B, n, H, W]
        restored = self.restore(detail)  # [B, C, H, W]
        return student + (restored if self.expect is None else self.gate(detail, student) * restored)

    def gate(self, detail: Tensor, student: Tensor) -> Tensor:
        """How far detail [B, n, H, W] may pass to the student's map [B, C, H, W] (6b): [B, 1, H, W], from 0 to 1."""
        likeness = F.cosine_similarity(detail.float(), self.expect(student).float(), dim=1).unsqueeze(1)  # [B, 1, H, W]
        return torch.sigmoid(self.steepness * likeness + self.bias).to(student.dtype)


def token_grid(infos: Sequence[LayerInfo]) -> tuple[int, int]:
    """Half the coarsest layer's grid, as the bottleneck's, and no finer than LARGEST."""
    height, width = (min(LARGEST, -(-n // 2)) for n in infos[-1].grid)
    return height, width


def corrupted(maps: Sequence[Tensor], grid: tuple[int, int], generator: torch.Generator) -> list[Tensor]:
    """Maps (6d), a share CORRUPTED of whose grid's cells comes from other images and places, the same on every level.

    Detail of these is what a gate must learn to keep from a student that is to give the true maps: it stands for
    detail that does not belong where it is.
    """
    count, device = len(maps[0]), maps[0].device
    chosen = torch.rand(count, 1, *grid, generator=generator, device=device) < CORRUPTED  # [B, 1, *grid]
    donors = torch.randperm(count, generator=generator, device=device)
    shifts = torch.rand(2, generator=generator, device=device).double()
    move = _rolled if device.type == "cpu" else _gathered
    mixed = []
    for one in maps:
        foreign = F.interpolate(chosen.float(), one.shape[-2:]) > 0
        mixed.append(torch.where(foreign, move(one, donors, shifts), one))
    return mixed


def _rolled(maps: Tensor, donors: Tensor, shifts: Tensor) -> Tensor:
    """Maps [B, C, H, W] of other images, moved by shares of height and width."""
    return maps[donors].roll([int(shift * n) for shift, n in zip(shifts.tolist(), maps.shape[2:], strict=True)], (2, 3))


def _gathered(maps: Tensor, donors: Tensor, shifts: Tensor) -> Tensor:
    """As _rolled, without the host, for which a GPU would have to wait."""
    rows, columns = (
        (torch.arange(n, device=maps.device) - (shift * n).long()) % n
        for shift, n in zip(shifts, maps.shape[2:], strict=True)
    )
    return maps.movedim(1, 3)[donors[:, None, None], rows[:, None], columns].movedim(3, 1)


def area_means(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Means of maps [B, C, H, W] over a grid of areas, which overlap where they have to: [B, C, *grid]."""
    return F.adaptive_avg_pool2d(maps, grid)
