"""Whether images are as bright as those that a threshold comes from: of others its false alarms are not known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

LEAST = 1.0  # grey levels that images of 8 bits differ by


@dataclass(frozen=True)
class Outside:
    """How many of some images are too dark, and too bright, for a threshold.

    Attributes:
        lowest, highest: brightness of the images that it holds for.
        darker, brighter: how many lie beyond.
        images: of how many.
    """

    lowest: float
    highest: float
    darker: int = 0
    brighter: int = 0
    images: int = 0

    def with_images(self, brightness: Sequence[float] | NDArray[np.floating]) -> "Outside":
        """The same with further images."""
        values = np.asarray(brightness)
        return replace(
            self,
            darker=self.darker + int((values < self.lowest).sum()),
            brighter=self.brighter + int((values > self.highest).sum()),
            images=self.images + len(values),
        )

    def sentence(self, images: str) -> str:
        """What users are told of them, who call them `images`; empty where none is outside."""
        sides = (("darker", "below", self.lowest, self.darker), ("brighter", "above", self.highest, self.brighter))
        found = [side for side in sides if side[-1]]
        if not found:
            return ""
        words, bounds = " or ".join(side[0] for side in found), " or ".join(f"{s[1]} {s[2]:.1f}" for s in found)
        return (
            f"{words.capitalize()} than the images that the model's threshold comes from (mean grey value {bounds}): "
            f"{' and '.join(str(side[-1]) for side in found)} of {self.images} {images}. It promises nothing for them: "
            "train with --match_light gain, or with normal images in this light too (extend takes them into a memory "
            "bank)."
        )


def like(brightness: NDArray[np.floating], sure: float) -> tuple[float, float] | None:
    """The lowest and the highest brightness of images like these; None of fewer than two, whose spread is not known.

    It holds them all, and at least the interval that as many new ones lie in, all of them, were brightness normally
    distributed: mean +- t s sqrt(1 + 1/n), t the quantile of Student's distribution for (1 - sure) / n (Bonferroni).

    Args:
        brightness: of n images.
        sure: how probable it is that none of the new ones lies outside.
    """
    n = len(brightness)
    if n < 2:
        return None
    t = stdtrit(n - 1, 1 - (1 - sure) / (2 * n))
    mean, margin = brightness.mean(), max(LEAST, t * brightness.std(ddof=1) * math.sqrt(1 + 1 / n))
    return float(min(brightness.min(), mean - margin)), float(max(brightness.max(), mean + margin))
