"""How sure a metric is of the images that it was found on, and whether two differ by more than chance.

DeLong's variance of an AUROC and his paired test are of images; Wilcoxon's test, Friedman's and mean ranks are of
several data sets. p-values are two-sided, and NaN where the data cannot tell.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, ndtr, ndtri

SURE, CHANCE = 0.95, 0.05  # of intervals; a p-value below CHANCE is more than that
FEWEST = 6  # data sets, of which Wilcoxon's test can say anything: of five its smallest p-value is 1/16


class Interval(NamedTuple):
    """From where to where a value may well lie; NaN where that is not known."""

    low: float
    high: float


UNKNOWN = Interval(math.nan, math.nan)


class Placements(NamedTuple):
    """What every image adds to an AUROC, which is the mean of either.

    Attributes:
        anomalous: of each anomalous image the share of the normal ones below it [P], ties half.
        normal: of each normal image the share of the anomalous ones above it [N], ties half.
    """

    anomalous: NDArray[np.float64]
    normal: NDArray[np.float64]

    def minus(self, other: "Placements") -> "Placements":
        """Those of the difference of two AUROCs of the same images."""
        return Placements(self.anomalous - other.anomalous, self.normal - other.normal)


class Estimate(NamedTuple):
    """A value and its variance; NaN where there are too few images for one."""

    value: float
    variance: float


def placements(labels: ArrayLike, scores: ArrayLike) -> Placements:
    """The placements of all images, by midranks in O(n log n) (Sun and Xu, IEEE Signal Processing Letters 2014).

    Args:
        labels: [N], non-zero for anomalous; both must occur.
        scores: finite [N], higher is more anomalous.

    Raises:
        ValueError: shapes that differ, one label alone, or scores that are not finite.
    """
    is_anomalous, values = np.asarray(labels).astype(bool), np.asarray(scores)
    if is_anomalous.ndim != 1 or is_anomalous.shape != values.shape:
        raise ValueError(f"labels {list(is_anomalous.shape)} and scores {list(values.shape)} must both be [N]")
    if is_anomalous.all() or not is_anomalous.any():
        raise ValueError("labels are all the same: expected normal and anomalous images")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    ranks, anomalous, normal = _midranks(values), values[is_anomalous], values[~is_anomalous]
    return Placements(
        (ranks[is_anomalous] - _midranks(anomalous)) / len(normal),
        1 - (ranks[~is_anomalous] - _midranks(normal)) / len(anomalous),
    )


def mean_placements(several: Sequence[Placements]) -> Placements:
    """Those of the mean of several AUROCs of the same images, as of the seeds of a detector."""
    return Placements(*(np.mean(own, axis=0) for own in zip(*several, strict=True)))


def estimate(own: Placements) -> Estimate:
    """An AUROC, or a difference of two, with its variance (DeLong et al., Biometrics 1988)."""
    variance = sum(part.var(ddof=1) / len(part) if len(part) > 1 else math.nan for part in own)
    return Estimate(float(own.anomalous.mean()), float(variance))


def mean_estimate(several: Sequence[Estimate]) -> Estimate:
    """The mean of values of different images, as of several classes."""
    return Estimate(
        sum(own.value for own in several) / len(several), sum(own.variance for own in several) / len(several) ** 2
    )


def auroc_interval(own: Placements) -> Interval:
    """The 95 % interval of an AUROC.

    It is symmetric in the logit, which keeps it within 0 and 1 and covers better than one that is symmetric in the
    AUROC where that is near 1. Where every anomalous image lies above every normal one, the variance is 0 and says
    nothing: k disjoint pairs, k the number of the rarer label, are then all in order, which is at most as likely as
    AUROC^k; the interval ends where that is 2.5 %.
    """
    found = estimate(own)
    if found.value in (0.0, 1.0):
        least = ((1 - SURE) / 2) ** (1 / min(map(len, own)))
        return Interval(least, 1.0) if found.value else Interval(0.0, 1 - least)
    return unit_interval(found)


def unit_interval(found: Estimate) -> Interval:
    """The 95 % interval of a value in (0, 1), symmetric in its logit; unknown where the variance says nothing."""
    if not found.variance > 0 or not 0 < found.value < 1:
        return UNKNOWN
    half = _quantile() * math.sqrt(found.variance) / (found.value * (1 - found.value))
    return Interval(*(float(expit(logit(found.value) + sign * half)) for sign in (-1, 1)))


def symmetric_interval(found: Estimate) -> Interval:
    """The 95 % interval of a difference."""
    half = _quantile() * math.sqrt(found.variance)
    return Interval(found.value - half, found.value + half)


def p_value(difference: Estimate) -> float:
    """Of a difference that would be 0 but for chance (DeLong's test).

    Without any variance it is 1 where nothing differs and 0 where all images say the same, as of a constant score.
    """
    if difference.variance > 0:
        return float(2 * ndtr(-abs(difference.value) / math.sqrt(difference.variance)))
    return math.nan if math.isnan(difference.variance) else float(difference.value == 0)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, raised so that any false alarm among them is no likelier than of one (Holm 1979).

    NaN stays NaN and is no test.
    """
    known = [i for i, own in enumerate(p_values) if not math.isnan(own)]
    adjusted, highest = list(p_values), 0.0
    for done, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(known) - done) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def wilcoxon(differences: ArrayLike) -> float:
    """Wilcoxon's signed-rank test of differences [C] on several data sets: the p-value of none.

    Differences of 0 are left out; NaN where all of them are, or fewer than FEWEST are left.
    """
    from scipy.stats import wilcoxon as test  # late: other commands need not wait for it

    kept = np.asarray(differences, dtype=float)
    kept = kept[kept != 0]
    return math.nan if len(kept) < FEWEST else float(test(kept).pvalue)


def ranks(values: ArrayLike, higher_is_better: bool = True) -> NDArray[np.float64]:
    """The rank of each of R methods on each of C data sets, 1 the best; equal ones share the mean of theirs.

    Args:
        values: [C, R].

    Returns:
        [C, R]; its mean over the data sets is what Friedman's test is of.
    """
    table = np.asarray(values, dtype=float)
    return np.stack([_midranks(-row if higher_is_better else row) for row in table])


def friedman(values: ArrayLike) -> float:
    """Friedman's test of values [C, R] of R methods on C data sets: the p-value of no method being another's better.

    NaN of fewer than three methods or two data sets, and where no method is ever another's better.
    """
    from scipy.stats import friedmanchisquare  # late

    table = np.asarray(values, dtype=float)
    if table.shape[0] < 2 or table.shape[1] < 3 or (table == table[:, :1]).all():
        return math.nan
    return float(friedmanchisquare(*table.T).pvalue)


def critical_difference(methods: int, data_sets: int) -> float:
    """How far mean ranks lie apart that differ by more than chance (Nemenyi's test, as in Demsar, JMLR 2006)."""
    from scipy.stats import studentized_range  # late

    quantile = float(studentized_range.ppf(SURE, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * data_sets))


def _midranks(values: NDArray[np.generic]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


def _quantile() -> float:
    return float(ndtri((1 + SURE) / 2))
