"""Tokens of images and of table rows for one Transformer: how values become tokens, are corrupted, and come back.

Every kind has the same face, over values that prepare gives, of n tokens each:

    prepare(features) -> values;  embed(values) -> [B, n, dim];  decode(hidden [B, n, dim]) -> values
    errors(values, decoded) -> squared errors [B, n];  corrupted(values) -> values;  draw_masks(B) -> bool [B, n]

and the masks [K, n] that errors are averaged over when a sample is scored. What is random is drawn from torch's global
generator.
"""

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from detection.variance import known_variance

HIDDEN = 0.5  # share of an image's tokens that are hidden at once
LEAST = 1e-3  # variance of a value that hardly moves, as a share of the mean
SIZES = 8  # of a row's masks at most, and masks of every size
EXAGGERATION = 5.0  # values as they are would teach that what lies far from all others is no forgery


class ImageTokens(nn.Module):
    """Cells of a feature map or patches of pixels, standardised by the normal ones of their class.

    Whitened ones would give the directions that nothing predicts as much weight as all others.

    Args:
        channels: values of a cell.
        grid: rows and columns of cells.
        dim: of tokens.
    """

    TAMPERED: ClassVar = 0.1  # w: real defects are seldom like pasted ones, and learning those costs the cells' errors

    def __init__(self, channels: int, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("masks", window_masks(math.prod(grid), [HIDDEN], round(1 / HIDDEN)), persistent=False)
        self.input = nn.Linear(channels, dim)
        self.output = nn.Linear(dim, channels)

    def learn_scale(self, features: Iterable[Tensor]) -> None:
        """Take mean and standard deviation of every value of normal features [B, H1, W1, C]."""
        count, total, squares, origin = 0, 0.0, 0.0, None
        for batch in features:
            cells = batch.float().flatten(0, 2)
            origin = cells.mean(0) if origin is None else origin  # near the mean: sums of squares lose no digits
            count, total = count + len(cells), total + (cells - origin).sum(0).double()
            squares = squares + (cells - origin).square().sum(0).double()
        shift = total / count
        self.mean.copy_(origin + shift)
        variance = known_variance(squares / count - shift.square(), origin + shift)
        self.std.copy_((variance + LEAST * variance.mean()).sqrt())

    def prepare(self, features: Tensor) -> Tensor:
        """Standardised cells [B, n, C] of features [B, H1, W1, C]."""
        return (features.float().flatten(1, 2) - self.mean) / self.std

    def embed(self, values: Tensor) -> Tensor:
        return self.input(values)

    def decode(self, hidden: Tensor) -> Tensor:
        return self.output(hidden)

    def errors(self, values: Tensor, decoded: Tensor) -> Tensor:
        return (values - decoded.float()).square().mean(dim=-1)

    def corrupted(self, values: Tensor) -> Tensor:
        """Copies in which a rectangle of cells comes from elsewhere in another image (Li et al., CutPaste, CVPR 2021).

        Sides are drawn up to half of the grid's.
        """
        count, (height, width) = len(values), self.grid
        device = values.device
        cells = values.unflatten(1, self.grid)
        others = cells[torch.randperm(count, device=device)]
        shift = [int(torch.randint(side, ())) for side in self.grid]
        others = others.roll(shift, dims=(1, 2))
        inside = _spans(count, height, device).unsqueeze(2) & _spans(count, width, device).unsqueeze(1)
        return torch.where(inside.unsqueeze(-1), others, cells).flatten(1, 2)

    def draw_masks(self, count: int) -> Tensor:
        """Tokens hidden by chance."""
        return torch.rand(count, math.prod(self.grid), device=self.mean.device) < HIDDEN


class TableTokens(nn.Module):
    """One token per column of a table.

    Args:
        widths: values of every column: 1 of a number, as many as there are categories of others.
        dim: of tokens.
    """

    TAMPERED: ClassVar = 1.0  # w

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        columns = len(widths)
        owner = torch.tensor([column for column, width in enumerate(widths) for _ in range(width)])
        members = owner == torch.arange(columns).unsqueeze(1)
        self.register_buffer("owner", owner, persistent=False)  # the column of every value
        self.register_buffer("members", members.float(), persistent=False)  # [n, F]
        sizes = min(columns, SIZES)
        shares = [(i + 1) / sizes for i in range(sizes)]
        self.register_buffer("masks", window_masks(columns, shares, sizes), persistent=False)
        self.input = nn.Parameter(torch.randn(len(owner), dim) * dim**-0.5)
        self.output = nn.Parameter(torch.randn(len(owner), dim) * dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(len(owner)))

    def learn_scale(self, features: Iterable[Tensor]) -> None:
        """Rows are standardised where the table is read."""

    def prepare(self, features: Tensor) -> Tensor:
        """Rows [B, F]."""
        return features.float()

    def embed(self, values: Tensor) -> Tensor:
        return self.members @ (values.unsqueeze(-1) * self.input)

    def decode(self, hidden: Tensor) -> Tensor:
        return (hidden[:, self.owner] * self.output).sum(dim=-1) + self.bias

    def errors(self, values: Tensor, decoded: Tensor) -> Tensor:
        return (values - decoded).square() @ (self.members / self.members.sum(1, keepdim=True)).T

    def corrupted(self, values: Tensor) -> Tensor:
        """Copies in which some columns, at least one, come from another row, up to EXAGGERATION times as far from 0."""
        count, columns = len(values), self.masks.shape[1]
        device = values.device
        swapped = torch.rand(count, columns, device=device) < torch.rand(count, 1, device=device)
        swapped[torch.arange(count, device=device), torch.randint(columns, (count,), device=device)] = True
        factors = EXAGGERATION ** torch.rand(count, columns, device=device)
        others = values[torch.randperm(count, device=device)] * factors[:, self.owner]
        return torch.where(swapped[:, self.owner], others, values)

    def draw_masks(self, count: int) -> Tensor:
        """Masks of every size."""
        device = self.bias.device
        return torch.rand(count, self.masks.shape[1], device=device) < torch.rand(count, 1, device=device)


def window_masks(n: int, shares: Sequence[float], windows: int) -> Tensor:
    """Fixed masks [K, n] of tokens: per share so many windows of that length, evenly around a random ring of all.

    Windows at least 1 / windows long leave no token out.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    masks = []
    for share in shares:
        ring = torch.randperm(n, generator=generator, device="cpu")
        length = math.ceil(share * n)
        for i in range(windows):
            start = i * n // windows
            mask = torch.zeros(n, dtype=torch.bool, device="cpu")
            mask[ring[torch.arange(start, start + length, device="cpu") % n]] = True
            masks.append(mask)
    return torch.stack(masks)


def _spans(count: int, side: int, device: torch.device) -> Tensor:
    """Of every sample a random span of at least one and at most half of the cells of a side: bool [count, side]."""
    length = torch.randint(1, max(1, side // 2) + 1, (count, 1), device=device)
    start = (torch.rand(count, 1, device=device) * (side - length + 1)).long()
    cells = torch.arange(side, device=device)
    return (cells >= start) & (cells < start + length)
