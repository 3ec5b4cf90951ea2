"""Anomalous feature generation (SimpleNet, Eq. 6): Gaussian noise that is added to adapted normal features."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianNoise:
    """The noise epsilon of q- = q + epsilon.

    Attributes:
        std: standard deviation of the smallest scale (`--noise_std`).
        scales: number of scales; scale k has std * 1.1**k and every patch draws its k uniformly (`--mix_noise`).
        relative: above 0, every dimension's std is `relative` times the standard deviation of that dimension over the
            batch's adapted features, in place of `std` (`--auto_noise`).
    """

    std: float
    scales: int = 1
    relative: float = 0.0

    def sample(self, adapted: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Noise for adapted features [N, D], of their shape, dtype and device; no gradient flows through it."""
        unit = torch.randn(adapted.shape, generator=generator, device=adapted.device, dtype=adapted.dtype)
        return self.scale(unit, adapted, generator)

    @torch.no_grad()
    def scale(self, unit: Tensor, adapted: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Unit Gaussian noise [N, D] brought to the standard deviations described above."""
        std = self.relative * adapted.std(dim=0, correction=0) if self.relative > 0 else self.std
        noise = unit * std
        if self.scales > 1:
            k = torch.randint(self.scales, (len(unit), 1), generator=generator, device=unit.device)
            noise = noise * 1.1**k
        return noise
