"""Anomalous feature generation (SimpleNet, Eq. 6): Gaussian noise that is added to adapted normal features."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """epsilon of q- = q + epsilon, as its factors: epsilon[n, d] = row[n] * unit[n, d] * column[d].

    Attributes:
        unit: [N, D].
        column: standard deviation per dimension, [D] or one number.
        row: scale per patch, [N, 1] or one number.
    """

    unit: Tensor
    column: Tensor | float = 1.0
    row: Tensor | float = 1.0

    @property
    def values(self) -> Tensor:
        """The noise itself, [N, D]."""
        return self.row * self.unit * self.column


@dataclass(frozen=True)
class GaussianNoise:
    """The distribution of the noise.

    Attributes:
        std: standard deviation of the smallest scale (`--noise_std`).
        scales: number of scales; scale k has std * 1.1**k and every patch draws its k uniformly (`--mix_noise`).
        relative: above 0, every dimension's std is `relative` times the standard deviation of that dimension over the
            batch's adapted features, in place of `std` (`--auto_noise`).
    """

    std: float
    scales: int = 1
    relative: float = 0.0

    def sample(self, features: Tensor, adapted: Tensor | None, source: "NoiseSource") -> Noise:
        """Noise for a batch of features [N, D], of their shape, dtype and device.

        `adapted`, the adapted features without gradient, is read only where the noise is relative to them.
        """
        column: Tensor | float = self.std
        if self.relative > 0:
            assert adapted is not None
            column = self.relative * adapted.float().std(dim=0, correction=0)
        row: Tensor | float = 1.0
        if self.scales > 1:
            row = 1.1 ** source.integers(self.scales, len(features)).unsqueeze(1)
        return Noise(source.normal(features.shape, features.dtype), column, row)


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
