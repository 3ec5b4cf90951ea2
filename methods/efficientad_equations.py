"""EfficientAD's equations on tensors, the terms of its loss and its maps; numbered as in methods/efficientad.py."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detection.anomaly_map import upsampled
from detection.variance import known_deviation, require_finite

HARD = 0.999  # of the values of D, those that do not count
LEAST_SPREAD = 1e-3  # of q_b, what it is above q_a: maps that hardly move must not rule the score


class Terms(NamedTuple):
    """The terms of L (3), scalars; that of P is not a number where there is none."""

    hard: Tensor
    penalty: Tensor
    autoencoder: Tensor
    agreement: Tensor

    @property
    def loss(self) -> Tensor:
        """L."""
        return self.hard + self.penalty.nan_to_num() + self.autoencoder + self.agreement


def terms(plain: Tensor, first: Tensor, foreign: Tensor | None, other: Tensor, given: Tensor, second: Tensor) -> Terms:
    """The terms of L (3): of T^(I), S(I), S(P) or None, T^(I'), A(I') and S'(I'), [B, C, h, w] each."""
    penalty = plain.new_tensor(torch.nan) if foreign is None else foreign.square().mean()
    return Terms(hard_mean((plain - first).square()), penalty, F.mse_loss(given, other), F.mse_loss(second, given))


@torch.no_grad()
def channel_statistics(maps: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """mu and sigma (1) of every channel over all places of batches of maps [B, C, h, w], at least one: [C] each.

    Raises:
        DataError: maps that are not finite.
    """
    count, total, squares = 0, 0.0, 0.0
    origin: Tensor | None = None
    for batch in maps:
        rows = batch.float().transpose(0, 1).flatten(1)  # [C, N]
        origin = rows.mean(dim=1, keepdim=True) if origin is None else origin  # sums of squares lose no digits
        rows = (rows - origin).double()
        count, total, squares = count + rows.shape[1], total + rows.sum(dim=1), squares + rows.square().sum(dim=1)
    shift = total / count
    variance = squares / count - shift.square()
    require_finite(variance)
    mean = origin[:, 0].double() + shift
    return mean, known_deviation(variance, mean)


def hard_mean(differences: Tensor) -> Tensor:
    """L_hard (2) of D [B, C, h, w], the mean over images; quantiles are interpolated."""
    values = differences.flatten(1)
    place = HARD * (values.shape[1] - 1)
    highest = values.detach().topk(values.shape[1] - int(place), dim=1).values  # all from the value below the quantile
    below, above = highest[:, -1:], highest[:, -2:][:, :1]
    chosen = values >= torch.lerp(below, above, place - int(place))
    return ((values * chosen).sum(dim=1) / chosen.sum(dim=1)).mean()


def mean_square(values: Tensor) -> Tensor:
    """Over the channels of [B, C, h, w]: [B, h, w]."""
    return values.square().mean(dim=1)


def quantiles(values: Tensor, shares: Collection[float]) -> Tensor:
    """Quantiles, interpolated, of every row of values [R, N], however many: [R, shares]."""
    ordered = values.sort(dim=1).values
    found = []
    for share in shares:
        place = share * (values.shape[1] - 1)
        above = min(int(place) + 1, values.shape[1] - 1)
        found.append(torch.lerp(ordered[:, int(place)], ordered[:, above], place - int(place)))
    return torch.stack(found, dim=1)


def combined(student: Tensor, autoencoder: Tensor, quantiles: Tensor) -> Tensor:
    """The mean of the two M^ (5), of maps [B, h, w] and their quantiles [2, 2]: [B, h, w]."""
    low, high = quantiles.unbind(dim=1)
    spread = (high - low).clamp(min=1e-6).maximum(LEAST_SPREAD * high)
    found = (0.1 * (own - low[i]) / spread[i] for i, own in enumerate((student, autoencoder)))
    return sum(found) / 2


def drawn(maps: Tensor, border: int, size: tuple[int, int]) -> Tensor:
    """Maps [B, h, w] with a border of zeros so many cells wide, at the size of images (6): [B, H, W]."""
    return upsampled(F.pad(maps, [border] * 4), size)
