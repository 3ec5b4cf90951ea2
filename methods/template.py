"""Template matching: how far an image is from what normal images are at every pixel (variation model).

Nothing is trained: normal images I_n are brought to one place and give a template and how far they spread around it; a
test image X is brought there too, and what deviates from them is anomalous. The equations, as numbered here, of grey
pixels from 0 to 1:

    mu(p) = median_n I_n(p),  sd(p) = 1.4826 median_n |I_n(p) - mu(p)|                  template, or mean and std   (1)
    w = argmax_w corr(mu, X(W(.; w)))                                                   registration.py             (2)
    z(p) = min_u |X(W(p; w)) - mu(p + u)| / max(sd(p + u), s)                           deviation, s least spread   (3)
    z(p) = min_{n, u} |X(W(p; w)) - I_n(p + u)|                                         nearest of N references     (4)
    z(p) = 1 - max_u (cov(X, mu_u) + s^2) / sqrt((var X + s^2) (var mu_u + s^2))        correlation, of windows     (5)
    anomaly map = Gaussian(z(W^-1(p; w))), image score = mean of its T largest values                               (6)

u is an offset of at most R rows and columns. Without s, (5) is zero-mean normalised cross-correlation; with it, windows
that are flat in both are alike. Every normal image is brought to one of them, and then again to their template.
References are far from each other (detection/coreset.py), so that every appearance has one.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.alignment import resampled
from backbones.devices import kept_on_device
from detection import Normal, Passes, Prediction
from detection.coreset import coreset, projected
from detection.interest import calm
from detection.pixels import OF_DEVIATION, PixelDetector, PixelOptions
from detection.state import Sizes
from errors import UsageError
from methods.registration import counting, moved_back, register, warped
from options import option

AT_ONCE = 2**22  # values that are sorted at once


@dataclass(frozen=True)
class Options(PixelOptions):
    """Template matching: how far an aligned image is from normal ones at every pixel; nothing is trained."""

    align: Literal["none", "translation", "euclidean", "affine"] = option(
        "translation", "How images are moved to where the template is; each also tries those before it."
    )
    centre: Literal["median", "mean"] = option(
        "median", "Of the normal images; with the median absolute deviation, or the standard deviation."
    )
    score: Literal["deviation", "nearest", "correlation"] = option(
        "deviation",
        "What a pixel is scored by. deviation: from the template, over the spread; nearest: from the nearest of some "
        "normal images; correlation: of the window around it with the template's.",
    )
    search: int = option(
        0, "Rows and columns that a pixel's like is sought within, of the template.", at_least=0, at_most=20
    )
    least_spread: float = option(
        0.02, "The spread of pixels that hardly move among normal images; black is 0, white 1.", above=0, at_most=1
    )
    references: int = option(20, "Normal images that are kept with --score nearest.", at_least=1, at_most=10_000)
    window: int = option(9, "Side of the windows of --score correlation; odd.", at_least=3, at_most=999)


class Template(PixelDetector):
    """A template and its spread, or normal images.

    Args:
        backbone, layers, image_size, precision, seed, options: see PixelDetector. OpenCV aligns on the CPU.

    Raises:
        UsageError: an even window.
    """

    Options = Options

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.options.window % 2 == 0:
            raise UsageError(f"--window {self.options.window} must be odd: a pixel is in the middle of it")
        self.register_buffer("template", torch.zeros(self.image_size))
        self.register_buffer("spread", torch.zeros(self.image_size))
        keeps = self.options.score == "nearest"
        self.register_buffer("references", torch.zeros(1, *self.image_size) if keeps else None)

    @property
    def sized_by_data(self) -> Mapping[str, Sizes]:
        """The references, of which there may be fewer images than are asked for."""
        if self.references is None:
            return {}
        return {"references": (range(1, self.options.references + 1), *self.image_size)}

    @property
    def not_exported(self) -> str:
        """Alignment is OpenCV's."""
        return "" if self.options.align == "none" else "it aligns images by OpenCV; with --align none it could be"

    @property
    def not_masked(self) -> str:
        """As in Detector: the edge of a mask would decide where images are moved."""
        return super().not_masked or (
            "" if self.options.align == "none" else "--align moves images by all that is in them: give --align none"
        )

    def passes_of(self, has_held_out: bool) -> Passes:
        """One."""
        return Passes(steps=0, settling=1)

    def settle(self, *classes: Normal) -> Mapping[str, float]:
        """Make template and spread (1), and keep references."""
        (own,) = classes
        images = self.drawn_evenly(own.train)
        placed = images
        if self.options.align != "none":
            placed, _ = self.aligned(images, images[0])
            placed, _ = self.aligned(images, central(placed, self.options.centre)[0])
        for buffer, value in zip((self.template, self.spread), central(placed, self.options.centre), strict=True):
            buffer.copy_(value)
        if self.references is not None:
            rows = placed.flatten(1)
            picks = coreset(projected(rows, self.seed), min(len(rows), self.options.references))
            self.references = placed[picks.rows]
        return {"spread": self.spread.mean().item()}

    def forward(self, embeddings: Tensor, interest: Tensor | None = None) -> Prediction:
        """Image scores [B] and anomaly maps [B, H, W] (6)."""
        if self.options.align == "none":
            return self.predicted(self.smoothed(calm(self.deviations(embeddings), interest)), interest)
        aligned, places = self.aligned(embeddings, self.template)
        found = self.deviations(aligned).cpu().numpy()
        back = [moved_back(own * counting(seen), warp) for own, (warp, seen) in zip(found, places, strict=True)]
        return self.predicted(self.smoothed(torch.from_numpy(np.stack(back)).to(embeddings.device)))

    def aligned(self, images: Tensor, template: Tensor) -> tuple[Tensor, list[tuple[Any, Any]]]:
        """Images [B, H, W] where a template [H, W] is; of each the warp, and which pixels were in view."""
        target = template.cpu().numpy()
        moved, places = [], []
        for image in images.cpu().numpy():
            warp = register(image, target, self.options.align)
            found = warped(image, warp)
            moved.append(found.image)
            places.append((warp, found.seen))
        return torch.from_numpy(np.stack(moved)).to(images.device), places

    def deviations(self, images: Tensor) -> Tensor:
        """z of images [B, H, W] where the template is: (3), (4) or (5)."""
        own = self.options
        if own.score == "nearest":
            return nearest(images, self.references, own.search)
        if own.score == "correlation":
            return 1 - correlation(images, self.template, own.window, own.least_spread, own.search)
        return deviation(images, self.template, self.spread, own.least_spread, own.search)


def central(images: Tensor, centre: str) -> tuple[Tensor, Tensor]:
    """The middle of images [N, H, W] and their spread around it (1), [H, W] each."""
    if centre == "mean":
        std, mean = torch.std_mean(images.double(), dim=0, correction=0)
        return mean.to(images), std.to(images)
    middle = _median(images)
    return middle, OF_DEVIATION * _median((images - middle).abs())


def _median(images: Tensor) -> Tensor:
    """Of every pixel, [H, W]; of an even number, the mean of the two in the middle."""
    rows = max(1, AT_ONCE // (len(images) * images.shape[2]))
    return torch.cat([part.quantile(0.5, dim=0) for part in images.split(rows, dim=1)])


def deviation(images: Tensor, template: Tensor, spread: Tensor, least: float, search: int = 0) -> Tensor:
    """(3) of images [B, H, W], template and spread [H, W]: [B, H, W]."""
    pairs = offsets(torch.stack([template, spread.clamp(min=least)]), search)
    return lowest((images - middle).abs() / width for middle, width in pairs)


def nearest(images: Tensor, references: Tensor, search: int = 0) -> Tensor:
    """(4) of images [B, H, W] and references [N, H, W]: [B, H, W]."""
    return lowest((images - one).abs() for own in references.split(1) for (one,) in offsets(own, search))


def correlation(images: Tensor, template: Tensor, window: int, least: float, search: int = 0) -> Tensor:
    """What (5) takes from 1: by windows of images [B, H, W] and a template [H, W], [B, H, W].

    Windows end where the image ends.
    """
    mean, variance = moments(images, window)
    found = []
    for (own,) in offsets(template.unsqueeze(0), search):
        own_mean, own_variance = moments(own, window)
        covariance = averaged(images * own, window) - mean * own_mean
        found.append(-(covariance + least**2) / ((variance + least**2) * (own_variance + least**2)).sqrt())
    return -lowest(found)


def moments(values: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of the windows around pixels of [..., H, W]."""
    mean = averaged(values, window)
    return mean, (averaged(values.square(), window) - mean.square()).clamp(min=0)


def averaged(values: Tensor, window: int) -> Tensor:
    """Means of the windows around pixels of [..., H, W]."""
    return resampled(values, *(_averages(values.device, n, window) for n in values.shape[-2:]))


@kept_on_device
def _averages(n: int, window: int) -> Tensor:
    """[n, n], on a device given before the rest: the mean of the pixels in a window around each along an axis."""
    place = torch.arange(n)
    within = ((place.unsqueeze(1) - place).abs() <= window // 2).float()
    return within / within.sum(dim=1, keepdim=True)


def offsets(planes: Tensor, search: int) -> Iterator[Tensor]:
    """Planes [N, H, W] moved by every offset u, their edges going on."""
    height, width = planes.shape[-2:]
    padded = F.pad(planes.unsqueeze(0), [search] * 4, mode="replicate")[0] if search else planes
    for y in range(2 * search + 1):
        for x in range(2 * search + 1):
            yield padded[:, y : y + height, x : x + width]


def lowest(values: Iterable[Tensor]) -> Tensor:
    """Of some tensors, value by value."""
    values = iter(values)
    found = next(values)
    for own in values:
        found = torch.minimum(found, own)
    return found
