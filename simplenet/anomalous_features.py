"""Anomalous features q- = q + epsilon (3): noise that is added to adapted normal ones; see detector.py.

Epsilon of a patch is, by options that the paper lacks,

    epsilon = r sigma n,                 n ~ N(0, 1) in every dimension                                    (3a)
    epsilon = r sigma (q_j - q_k) / sqrt(2), q_j and q_k of other patches, for a share of the patches      (3b)

with r = 1.1^k of a k that every patch draws, and sigma one number or one per dimension.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """epsilon (3) of N patches: differences (3b) for the first M of them, Gaussian (3a) for the others.

    Attributes:
        unit: Gaussian numbers n, [N - M, D].
        column: sigma of (3a), per dimension [D] or one number.
        row: r, per patch [N, 1] or one number.
        difference: sigma / sqrt(2) of (3b).
    """

    unit: Tensor
    column: Tensor | float = 1.0
    row: Tensor | float = 1.0
    difference: float = 0.0

    def values(self, adapted: Tensor) -> Tensor:
        """epsilon [N, D] for adapted features q [N, D]."""
        return self.mapped(adapted, lambda unit: unit * self.column)

    def mapped(self, hidden: Tensor, first: Callable[[Tensor], Tensor]) -> Tensor:
        """W1 epsilon (8), the noise after an affine layer: [N, H].

        Args:
            hidden: h, what the layer makes of the adapted features, [N, H].
            first: maps `unit` as W1 maps unit * column; the differences need no product of their own, being those of h.
        """
        gaussian = first(self.unit)  # [N - M, H]
        if count := len(hidden) - len(gaussian):
            own = hidden[:count]  # [M, H]
            gaussian = torch.cat([self.difference * (own.roll(1, 0) - own.roll(2, 0)), gaussian])  # [N, H]
        return self.row * gaussian


@dataclass(frozen=True)
class FeatureNoise:
    """The distribution of the noise.

    Gaussian noise points anywhere. The difference of two normal features, q_j - q_k, has the features' own covariance
    and moves a feature as features differ (the mutation of differential evolution, Storn and Price 1997); over
    sqrt(2), its covariance is theirs.

    Attributes:
        std: standard deviation of the smallest scale, and factor of the differences (`--noise_std`).
        scales: number of scales; scale k has 1.1**k and every patch draws its k uniformly (`--mix_noise`).
        relative: above 0, every dimension's std is `relative` times the standard deviation of that dimension over the
            batch's adapted features, in place of `std` (`--auto_noise`).
        difference: share of the patches whose noise is the difference of two other patches' features
            (`--difference_noise`); the patches must come in random order.
    """

    std: float
    scales: int = 1
    relative: float = 0.0
    difference: float = 0.0

    def sample(self, features: Tensor, adapted: Tensor | None, source: "NoiseSource") -> Noise:
        """Noise for a batch of features [N, D], of their shape, dtype and device.

        `adapted`, the adapted features without gradient, is read only where the noise is relative to them.
        """
        column: Tensor | float = self.std
        if self.relative > 0:
            assert adapted is not None
            column = self.relative * adapted.float().std(dim=0, correction=0)  # [D]
        row: Tensor | float = 1.0
        if self.scales > 1:
            row = (1.1 ** source.integers(self.scales, len(features)).unsqueeze(1)).to(features.dtype)  # [N, 1]
        gaussian = len(features) - round(self.difference * len(features))
        unit = source.normal((gaussian, features.shape[1]), features.dtype)
        return Noise(unit, column, row, (self.relative or self.std) / 2**0.5)


class NoiseSource:
    """Seeded random numbers on a device.

    On a CPU four generators fill a quarter each, on as many threads as there are: a single one costs as much as the
    matrix products of a training step. The numbers do not depend on the number of threads.
    """

    def __init__(self, device: torch.device | str, seed: int) -> None:
        self.device = torch.device(device)
        streams = 4 if self.device.type == "cpu" else 1
        seeds = np.random.SeedSequence(seed).generate_state(streams, np.uint64) >> 1
        self.generators = [torch.Generator(self.device).manual_seed(int(s)) for s in seeds]

    def normal(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Unit Gaussian numbers."""
        numbers = torch.empty(*shape, dtype=dtype, device=self.device)
        parts = numbers.view(-1).tensor_split(len(self.generators))
        if len(parts) == 1:
            return numbers.normal_(generator=self.generators[0])
        with ThreadPoolExecutor(min(len(parts), torch.get_num_threads())) as pool:
            list(pool.map(lambda part, generator: part.normal_(generator=generator), parts, self.generators))
        return numbers

    def integers(self, high: int, count: int) -> Tensor:
        """Uniform integers of 0..high-1, int64 [count]."""
        return torch.randint(high, (count,), generator=self.generators[0], device=self.device)

    def permutation(self, count: int) -> Tensor:
        """The numbers 0..count-1 in random order, int64."""
        return torch.randperm(count, generator=self.generators[0], device=self.device)
