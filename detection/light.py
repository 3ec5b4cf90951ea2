"""Light: an image's brightness and contrast brought to those of the training images, before the network sees it.

Of an image's brightness, averaged over squares of pixels, the quantiles q_p (p in percent) are taken; r are the medians
over the training images of what is read off them. A value x of any channel becomes

    gain            g x,                     g = r_b / q_b,  q_b: half of the image's light is of squares below it   (1)
    gain_offset     r_50 + s (x - q_50),     s = (r_90 - r_10) / (q_90 - q_10)                                       (2)
    histogram       as (2), with an s between every two of q_5, q_10, ..., q_95, the outer ones going on             (3)

q_b is the median of the light rather than of the area, the brightest 5 % of which do not count: a dark background does
not decide it, nor does a small bright defect. g and s stay within LIMIT, so that an image of one colour keeps its noise
small.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import IMAGENET
from datasets import LUMA
from options import option

Matching = Literal["off", "gain", "gain_offset", "histogram"]
LIMIT = 4.0  # of gain and slopes, and their inverses
CELLS = 64  # of the shorter side: how many squares pixels are averaged over, about
PERCENT = tuple(range(1, 96))  # whose sums are the light
KNOTS = {"gain_offset": (10, 90), "histogram": tuple(range(5, 100, 5))}
TINY = 1e-6


def match_light() -> Any:
    """The option of this name, which all detectors have."""
    text = (
        "Bring each image's light to that of the training images, before the network. gain: their brightness, by a "
        "factor; gain_offset: their contrast too; histogram: their whole distribution of brightness."
    )
    return option("off", text, decides_features=True)


class Light(nn.Module):
    """Images as if they were taken in the light of the training images of their class.

    Args:
        matching: which equation.
        parts: classes with training images of their own.
    """

    def __init__(self, matching: Matching, parts: int = 1) -> None:
        super().__init__()
        self.knots = KNOTS.get(matching, ())
        levels = len(self.knots) + 1
        self.register_buffer("reference", torch.full((parts, levels), torch.nan))  # not a number until it is learned

    @classmethod
    def of(cls, options: Any, parts: int) -> "Light | None":
        """What a detector with these options has, of so many classes; None where nothing is matched."""
        matching = getattr(options, "match_light", "off")
        return None if matching == "off" else cls(matching, parts)

    @torch.no_grad()
    def learn(self, batches: Iterable[Tensor], part: int = 0) -> None:
        """Take the reference of a part from its training images, normalised batches [B, 3, H, W]; read once."""
        levels = torch.cat([self._levels(_brightness(unit_pixels(batch))).cpu() for batch in batches])
        self.reference[part] = levels.median(dim=0).values.to(self.reference)

    def forward(self, images: Tensor, part: int = 0) -> Tensor:
        """Images of a part, float32 [B, 3, H, W] normalised as ImageNet, in the light of its training images.

        Values that become brighter than white, or darker than black, stay so.
        """
        pixels = unit_pixels(images)
        levels, reference = self._levels(_brightness(pixels)), self.reference[part]  # [B, levels], [levels]
        middle, wanted = levels[:, -1, None, None, None], reference[-1]
        if not self.knots:
            matched = pixels * (wanted / middle.clamp(min=TINY)).clamp(1 / LIMIT, LIMIT)
        else:
            knots = levels[:, :-1]
            slopes = reference[:-1].diff() / knots.diff().clamp(min=TINY)  # [B, knots - 1]
            matched = wanted.expand_as(pixels)
            for i, slope in enumerate(slopes.clamp(1 / LIMIT, LIMIT).unbind(dim=1)):
                low = knots[:, i] if i else None  # the outermost pieces go on
                high = knots[:, i + 1] if i < slopes.shape[1] - 1 else None
                within = _between(pixels, low, high) - _between(middle, low, high)
                matched = matched + slope[:, None, None, None] * within
        mean, std = normalisation_like(images)
        return (matched - mean) / std

    def _levels(self, brightness: Tensor) -> Tensor:
        """Quantiles at the knots, then where the middle is, of sorted values [B, n]: [B, levels]."""
        last = brightness.shape[1] - 1
        if self.knots:
            return brightness[:, [round(last * percent / 100) for percent in (*self.knots, 50)]]
        quantiles = brightness[:, [round(last * percent / 100) for percent in PERCENT]]  # [B, 95]
        below = torch.ones(len(PERCENT), len(PERCENT), device=quantiles.device).tril()
        light = (quantiles.unsqueeze(1) * below).sum(dim=2)  # up to every quantile; on GPUs cumsum has no fixed order
        half = (light < light[:, -1:] / 2).sum(dim=1, keepdim=True)
        return quantiles.gather(1, half)


def normalisation_like(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation that images are normalised by, on their device: [3, 1, 1] each."""
    mean, std = (torch.tensor(own, device=images.device).view(3, 1, 1) for own in (IMAGENET.mean, IMAGENET.std))
    return mean, std


def unit_pixels(images: Tensor) -> Tensor:
    """Values from 0 to 1 of normalised images [B, 3, H, W]."""
    mean, std = normalisation_like(images)
    return images * std + mean


def grey(images: Tensor) -> Tensor:
    """Brightness, from 0 to 1, of images [B, 3, H, W] normalised as ImageNet: [B, H, W]."""
    return _luma(unit_pixels(images))


def _luma(pixels: Tensor) -> Tensor:
    return (pixels * torch.tensor(LUMA, device=pixels.device).view(3, 1, 1)).sum(dim=1)


def _brightness(pixels: Tensor) -> Tensor:
    """The sorted brightness of squares of pixels [B, 3, H, W], at least 0: [B, n]."""
    side = max(1, min(pixels.shape[-2:]) // CELLS)
    return F.avg_pool2d(_luma(pixels).unsqueeze(1), side).flatten(1).clamp(min=0).sort(dim=1).values


def _between(values: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """Values [B, ...] cut off below and above, each [B]."""
    if low is not None:
        values = torch.maximum(values, low[:, None, None, None])
    return values if high is None else torch.minimum(values, high[:, None, None, None])
