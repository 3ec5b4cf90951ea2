"""Frequency: what is left of an image without the regular pattern that its spectrum shows.

A regular texture is a few peaks of the spectrum, a defect a little of everything. No training images are needed: four
modes learn nothing, the other two the mean spectrum of normal images. The equations, as numbered here, of a grey image
I of H x W pixels, with F the spectrum of its periodic component without the mean (Moisan 2011: what unequal opposite
borders would add is taken out), and G a Gaussian:

    F = fft2(I - mean) - fft2(v) / (2 cos(2 pi y / H) + 2 cos(2 pi x / W) - 4)          v: steps between borders    (1)
    r = Re ifft2(F / max(|F| + c median |F|, eps))                                      phase only                  (2)
    r = Re ifft2(F outside K), K = {L > median L + 1.4826 k median |L - median L|}      notch, L = log(1 + |F|)     (3)
    r = Re ifft2(exp(log |F| - box(log |F|)) F / |F|)                                   spectral residual           (4)
    r = as (3), L = mean over normal images of log(1 + |F|)                             reference                   (5)
    r = Re ifft2(F / (exp(L) - 1)), L as in (5)                                         whiten                      (6)

    anomaly map = H W G * r^2 of (2), (4) and (6), where it is 1 on average             energy                      (7)
                  ((G * r - mean) / std)^2 of (2)                                       phot                        (8)
                  G * |r| of (3) and (5)                                                in units of pixels          (9)
    image score = mean of its T largest values                                                                     (10)

(2) and (8) are the phase-only transform of Aiger and Talbot (CVPR 2010), (4) that of Hou and Zhang (CVPR 2007), of an
image of at most 64 pixels. What is nearer to the border than 2 standard deviations of G does not count.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.devices import kept_on_device
from detection import Normal, Passes, Prediction
from detection.pixels import OF_DEVIATION, PixelDetector, PixelOptions, smaller
from errors import UsageError
from options import option, redefined

ROUNDING = 1e-6  # of float32 pixels: frequencies that are not larger have no phase
DEPTH = 1 / (255 * math.sqrt(12))  # the noise of pixels of 8 bits: no normal image is known to have less
SALIENT = 64  # pixels, of the side of what (4) sees
LEARNED = ("reference", "whiten")


@dataclass(frozen=True)
class Options(PixelOptions):
    """Frequency: what is left of an image without the regular pattern that its spectrum shows; of texture."""

    sigma: float = redefined(PixelOptions, "sigma", 3.0)
    mode: Literal["phase", "phot", "notch", "residual", "reference", "whiten"] = option(
        "phase",
        "What is left. phase: all frequencies made equally strong, its energy; phot: the same, its squared deviation; "
        "notch: all but the image's strongest frequencies; residual: the spectral residual; reference: all but the "
        "strongest frequencies of normal images; whiten: frequencies over their mean strength in normal images.",
    )
    k: float = option(
        4.0, "Strongest are frequencies so many deviations above the median; of notch and reference.", at_least=0
    )
    damp: float = option(
        0.0, "Above 0, weak frequencies stay weak: 0.1 to 1 for noisy images; of phase and phot.", at_least=0
    )


class Frequency(PixelDetector):
    """A spectrum, and what is left without its pattern.

    Args:
        backbone, layers, image_size, precision, seed, options: see PixelDetector. Spectra are computed in float64.

    Raises:
        UsageError: a border that leaves nothing of the image.
    """

    Options = Options

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        scale = max(1, self.image_size[0] / SALIENT) if self.options.mode == "residual" else 1
        self.border = math.ceil(2 * self.options.sigma * scale)
        if 2 * self.border >= min(self.image_size):
            raise UsageError(
                f"--sigma {self.options.sigma:g} leaves nothing of images of {self.image_size[0]} pixels, whose outer "
                f"{self.border} do not count: lower it"
            )
        learns = self.options.mode in LEARNED
        self.register_buffer("strength", torch.zeros(self.image_size, dtype=torch.float64) if learns else None)

    @property
    def not_masked(self) -> str:
        """As in Detector: the edge of a mask is in all frequencies."""
        return "a spectrum is of a whole image, and the edge of a mask would be in all of it: crop the images"

    def passes_of(self, has_held_out: bool) -> Passes:
        """One where the mean spectrum of normal images is learned; else none."""
        return Passes(steps=0, settling=int(self.options.mode in LEARNED))

    def settle(self, *classes: Normal) -> Mapping[str, float]:
        """Learn L (5), where it is needed."""
        if self.strength is None:
            return {}
        (own,) = classes
        count, total = 0, torch.zeros_like(self.strength)
        for batch in own.train:
            total += torch.log1p(spectrum(batch.double()).abs()).sum(dim=0)
            count += len(batch)
        self.strength.copy_(total / count)
        return {"strength": self.strength.mean().item()}

    def forward(self, embeddings: Tensor) -> Prediction:
        """Image scores [B] and anomaly maps [B, H, W] (10)."""
        maps = self.maps(embeddings.double())
        seen = slice(self.border, -self.border)
        return self.predicted(F.pad(maps[:, seen, seen], [self.border] * 4))

    def maps(self, images: Tensor) -> Tensor:
        """Maps (7), (8) or (9) of images, float64 [B, H, W], with their borders: float32."""
        own = self.options
        if own.mode == "residual":
            return self.smoothed(energy(spectral_residual(spectrum(smaller(images, SALIENT).double()))))
        found = spectrum(images)
        if own.mode == "phase":
            return self.smoothed(energy(phase_only(found, own.damp)))
        if own.mode == "phot":
            return squared_deviation(self.smoothed(phase_only(found, own.damp)))
        if own.mode == "whiten":
            least = DEPTH * math.prod(self.image_size) ** 0.5
            return self.smoothed(energy(inverse(found / self.strength.expm1().clamp(min=least))))
        strength = found.abs().log1p() if self.strength is None else self.strength.unsqueeze(0)
        return self.smoothed(inverse(found * ~peaks(strength, own.k)).abs())


def spectrum(images: Tensor) -> Tensor:
    """F (1) of images, float64 [B, H, W]: complex128."""
    images = images - images.mean(dim=(1, 2), keepdim=True)
    height, width = images.shape[1:]
    down = images[:, -1:] - images[:, :1]
    across = images[:, :, -1:] - images[:, :, :1]
    steps = F.pad(down, [0, 0, 0, height - 1]) - F.pad(down, [0, 0, height - 1, 0])
    steps = steps + F.pad(across, [0, width - 1]) - F.pad(across, [width - 1, 0])
    return torch.fft.fft2(images) - torch.fft.fft2(steps) / _laplacian(images.device, height, width)


@kept_on_device
def _laplacian(height: int, width: int) -> Tensor:
    """What the sum of a pixel's differences to its neighbours multiplies frequencies by, [H, W]; 1 in place of 0.

    On a device that is given before the rest.
    """
    rows, columns = (2 * (torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)).cos() for n in (height, width))
    found = rows.unsqueeze(1) + columns - 4
    found[0, 0] = 1
    return found


def inverse(found: Tensor) -> Tensor:
    """Images [B, H, W] of spectra."""
    return torch.fft.ifft2(found).real


def phase_only(found: Tensor, damp: float = 0.0) -> Tensor:
    """r (2) of spectra [B, H, W]: float64, the sum of its squares 1."""
    size = found.abs()
    divisor = size + damp * _median(size) if damp else size
    return inverse(found / divisor.clamp(min=_eps(found)))


def peaks(strength: Tensor, k: float) -> Tensor:
    """K (3) of the logarithms of spectra [B, H, W], frequency 0 among it: bool."""
    middle = _median(strength)
    spread = OF_DEVIATION * _median((strength - middle).abs())
    return (strength > middle + k * spread) | _first(strength.device, *strength.shape[1:])


@kept_on_device
def _first(height: int, width: int) -> Tensor:
    """Whether a frequency is 0, bool [H, W], on a device given before the rest."""
    return torch.arange(height * width).view(height, width) == 0


def spectral_residual(found: Tensor) -> Tensor:
    """r (4) of spectra [B, H, W]: float64."""
    size = found.abs().clamp(min=_eps(found))
    log = size.log()
    box = log
    for axis in (1, 2):
        box = (box.roll(1, axis) + box + box.roll(-1, axis)) / 3
    return inverse((log - box).exp() * found / size)


def energy(left: Tensor) -> Tensor:
    """H W r^2 of what is left [B, H, W] (7)."""
    return left.square() * math.prod(left.shape[1:])


def squared_deviation(values: Tensor) -> Tensor:
    """(8) of smoothed values [B, H, W]; 0 where they are all the same."""
    std, mean = torch.std_mean(values, dim=(1, 2), correction=0, keepdim=True)
    return ((values - mean) / std.clamp(min=ROUNDING)).square()


def _median(values: Tensor) -> Tensor:
    """Of each of [B, H, W], [B, 1, 1]; by sorting, which exports can."""
    ordered = values.flatten(1).sort(dim=1).values
    n = ordered.shape[1]
    return ordered[:, (n - 1) // 2 : n // 2 + 1].mean(dim=1).view(-1, 1, 1)


def _eps(found: Tensor) -> float:
    return ROUNDING * math.prod(found.shape[1:]) ** 0.5
