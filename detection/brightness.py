"""Whether images are as bright as those that a threshold comes from: of others its false alarms are not known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv, stdtrit

LEAST = 1.0  # grey levels that images of 8 bits differ by
CHANCE = 0.001  # below it, what is seen of images as a whole is said
SHARES = 10_000  # that a probability is a mean over: it is wrong by at most half of their reciprocal


@dataclass(frozen=True)
class Outside:
    """How many of some images are too dark, and too bright, for a threshold.

    Attributes:
        lowest, highest: brightness of the images that it holds for.
        low, high: their usual brightness, see like.
        known: of how many images that is known.
        darker, brighter: how many lie beyond lowest, and beyond highest.
        dark, bright: how many lie beyond low, and beyond high.
        images: of how many.
    """

    lowest: float
    low: float
    high: float
    highest: float
    known: int
    darker: int = 0
    dark: int = 0
    bright: int = 0
    brighter: int = 0
    images: int = 0

    @property
    def bounds(self) -> dict[str, float]:
        """Of brightness, by name."""
        return {name: getattr(self, name) for name in ("lowest", "low", "high", "highest")}

    def with_images(self, brightness: Sequence[float] | NDArray[np.floating]) -> "Outside":
        """The same with further images."""
        values = np.asarray(brightness)
        return replace(
            self,
            darker=self.darker + int((values < self.lowest).sum()),
            dark=self.dark + int((values < self.low).sum()),
            bright=self.bright + int((values > self.high).sum()),
            brighter=self.brighter + int((values > self.highest).sum()),
            images=self.images + len(values),
        )

    @property
    def is_other_light(self) -> bool:
        """Whether more of the images lie beyond one usual end than chance allows: not single ones, but the light."""
        return any(chance(own, self.images, self.known) < CHANCE for own in (self.dark, self.bright))

    def side_of(self, brightness: float) -> Literal["darker", "brighter"] | None:
        """Whether a single image is darker or brighter than all that the threshold holds for."""
        return "darker" if brightness < self.lowest else "brighter" if brightness > self.highest else None

    def sentence(self, images: str) -> str:
        """What users are told of them, who call them `images`; empty where none is outside."""
        sides = (
            self._side("darker", "below", self.lowest, self.darker, self.low, self.dark),
            self._side("brighter", "above", self.highest, self.brighter, self.high, self.bright),
        )
        found = [side for side in sides if side[-1]]
        if not found:
            return ""
        words, bounds = " or ".join(side[0] for side in found), " or ".join(side[1] for side in found)
        return (
            f"{words.capitalize()} than the images that the model's threshold comes from (mean grey value {bounds}): "
            f"{' and '.join(str(side[-1]) for side in found)} of {self.images} {images}. It promises nothing for them, "
            "and good ones may all be called anomalous: train with --match_light gain, or with normal images in this "
            "light too (extend takes them into a memory bank)."
        )

    def _side(
        self, word: str, where: str, bound: float, beyond: int, usual: float, unusual: int
    ) -> tuple[str, str, int]:
        """Of one side what is said, beyond what, and of how many: single images, or all on the whole."""
        if chance(unusual - beyond, self.images - beyond, self.known) >= CHANCE:
            return word, f"{where} {bound:.1f}", beyond
        share = 100 * _rank(self.known) / (self.known + 1)
        return f"{word} on the whole", f"{where} {usual:.1f}, where at most {share:.0f} % of those lie", unusual


def like(brightness: NDArray[np.floating], sure: float) -> tuple[float, float, float, float] | None:
    """Lowest, low, high and highest brightness of images like these; None of fewer than two: their spread is not known.

    Lowest to highest holds them all, and at least the interval that as many new ones lie in, all of them, were
    brightness normally distributed: mean +- t s sqrt(1 + 1/n), t the quantile of Student's distribution for
    (1 - sure) / n (Bonferroni). Low to high is usual: beyond either one lie less than 5 % of these.

    Args:
        brightness: of n images.
        sure: how probable it is that none of the new ones lies outside.
    """
    n = len(brightness)
    if n < 2:
        return None
    t = stdtrit(n - 1, 1 - (1 - sure) / (2 * n))
    mean, margin = brightness.mean(), max(LEAST, t * brightness.std(ddof=1) * math.sqrt(1 + 1 / n))
    ordered, rank = np.sort(brightness), _rank(n)
    low, high = min(ordered[rank - 1], mean - LEAST), max(ordered[-rank], mean + LEAST)
    return float(min(ordered[0], mean - margin)), float(low), float(high), float(max(ordered[-1], mean + margin))


def chance(beyond: int, images: int, known: int) -> float:
    """How probable it is that so many or more of some images lie beyond the low brightness of others like them.

    Low is an order statistic of those others, so the share of new ones below it is Beta(rank, known + 1 - rank),
    however brightness is distributed, and their number beta-binomial; of high it is the same.

    Args:
        beyond, images: how many of how many.
        known: how many others there are.
    """
    if not beyond:
        return 1.0
    rank = _rank(known)
    shares = betaincinv(rank, known + 1 - rank, (np.arange(SHARES) + 0.5) / SHARES)
    return float(betainc(beyond, images - beyond + 1, shares).mean())


def _rank(known: int) -> int:
    """Which of the darkest is low, and which of the brightest high: the 5 % and the 95 % quantile."""
    return math.ceil(known / 20)
