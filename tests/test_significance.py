"""How sure metrics are: DeLong, the bootstrap, and tests over several data sets, against published and plain ones."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

import metrics
from errors import DataError
from experiment.record.pixels import parse_pixels, write_pixels
from metrics import DECISION_METRICS, LOCO_METRICS, METRICS, Kind, bootstrap, count_pixels
from metrics.significance import (
    Estimate,
    auroc_interval,
    critical_difference,
    estimate,
    friedman,
    holm,
    mean_estimate,
    mean_placements,
    p_value,
    placements,
    ranks,
    symmetric_interval,
    unit_interval,
    wilcoxon,
)

# Albumin, total protein, K-G score and outcome of 43 patients: the data of DeLong, DeLong and Clarke-Pearson (1988).
PATIENTS = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


def test_the_published_example():
    """Areas, standard errors, limits and p-values as SAS prints them for DeLong's data (LOGISTIC, ROC comparison)."""
    albumin, protein, score, outcome = np.array(PATIENTS.split(), float).reshape(-1, 4).T
    own = [placements(outcome, values) for values in (albumin, 10 - score, protein)]
    printed = [(0.7366, 0.0927, 0.5549, 0.9182), (0.7258, 0.1028, 0.5243, 0.9273), (0.6478, 0.1000, 0.4518, 0.8439)]
    for one, expected in zip(own, printed, strict=True):
        found = estimate(one)
        low, high = symmetric_interval(found)
        assert (found.value, found.variance**0.5, low, high) == pytest.approx(expected, abs=6e-5)
    for one, expected in ((own[0], (0.0108, 0.0953, 0.9102)), (own[2], (-0.0780, 0.1046, 0.4561))):
        found = estimate(one.minus(own[1]))
        assert (found.value, found.variance**0.5, p_value(found)) == pytest.approx(expected, abs=6e-5)


scored = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=4, max_size=30).filter(
    lambda rows: 1 < sum(label for label, _ in rows) < len(rows) - 1
)


@settings(max_examples=60, deadline=None)
@given(scored)
def test_delong_is_the_plain_sum_over_all_pairs(rows):
    labels, scores = (np.array(own) for own in zip(*rows, strict=True))
    pairs = scores[labels][:, None] - scores[~labels][None]
    above = (pairs > 0) + 0.5 * (pairs == 0)
    own = placements(labels, scores)
    assert own.anomalous == pytest.approx(above.mean(1)) and own.normal == pytest.approx(above.mean(0))
    found = estimate(own)
    assert found.value == pytest.approx(metrics.auroc(labels, scores))
    plain = np.var(above.mean(1), ddof=1) / labels.sum() + np.var(above.mean(0), ddof=1) / (~labels).sum()
    assert found.variance == pytest.approx(plain, abs=1e-12)


def two_detectors(count=40, seed=3):
    """Labels, and two detectors' scores that agree in part."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2 == 1
    hard = rng.normal(size=count)
    return labels, [gap * labels + hard + rng.normal(size=count) for gap in (1.6, 1.0)]


def areas(labels, scores):
    """The AUROCs [B] of scores [B, N], over all pairs."""
    gaps = scores[:, labels][:, :, None] - scores[:, ~labels][:, None]
    return ((gaps > 0) + 0.5 * (gaps == 0)).mean((1, 2))


def test_delong_agrees_with_the_bootstrap_and_with_permutations():
    labels, scores = two_detectors()
    own = [placements(labels, one) for one in scores]
    drawn = bootstrap.draw(labels, 0, 4000)
    assert areas(labels, scores[0][None])[0] == metrics.auroc(labels, scores[0])
    aurocs = np.array([areas(labels[drawn[0]], one[drawn]) for one in scores])
    difference = estimate(own[0].minus(own[1]))
    for values, found in zip((*aurocs, aurocs[0] - aurocs[1]), (*map(estimate, own), difference), strict=True):
        assert values.std() == pytest.approx(found.variance**0.5, rel=0.06)
    ranked = [one.argsort().argsort() for one in scores]  # what is swapped must be of one scale
    swap = np.random.default_rng(0).random((4000, len(labels))) < 0.5
    turned = areas(labels, np.where(swap, *ranked)) - areas(labels, np.where(swap, *ranked[::-1]))
    assert np.mean(np.abs(turned) >= abs(difference.value) - 1e-9) == pytest.approx(p_value(difference), abs=0.05)


def test_seeds_and_classes_are_averaged():
    labels, scores = two_detectors()
    own = [placements(labels, one) for one in scores]
    mean = estimate(mean_placements(own))
    aurocs, covariance = [], []
    for part in zip(*own, strict=True):
        covariance.append(np.cov(part) / len(part[0]))
        aurocs.append(np.mean(part))
    assert mean.value == pytest.approx(aurocs[0])
    assert mean.variance == pytest.approx(sum(covariance).mean())
    assert mean_estimate([Estimate(0.5, 0.04), Estimate(0.7, 0.02)]) == pytest.approx((0.6, 0.015))


def test_intervals_at_the_ends():
    """Nothing is misranked: ten disjoint pairs that are all in order have a chance of 2.5 % at the lower end."""
    labels = np.repeat([False, True], [10, 30])
    low, high = auroc_interval(placements(labels, labels + np.linspace(0, 0.5, 40)))
    assert (low**10, high) == pytest.approx((0.025, 1))
    assert auroc_interval(placements(labels, -1.0 * labels)) == pytest.approx((0, 1 - low))
    low, high = auroc_interval(placements(labels, np.where(labels, 1, 0) + 1.2 * (np.arange(40) == 0)))
    assert 0.5 < low < estimate(placements(labels, labels + 1.2 * (np.arange(40) == 0))).value < high < 1
    assert all(map(math.isnan, auroc_interval(placements([0, 1, 1], [1, 0, 2]))))  # of one normal image
    assert p_value(Estimate(0.0, 0.0)) == 1 and p_value(Estimate(0.5, 0.0)) == 0


@pytest.mark.parametrize("labels", [[1, 1], [0, 0], [[1, 0]], [1, 0, 1]])
def test_what_has_no_placements(labels):
    with pytest.raises(ValueError, match="labels"):
        placements(labels, [1.0, 2.0])
    with pytest.raises(ValueError, match="finite"):
        placements([0, 1], [math.nan, 2.0])


def test_holm():
    assert holm([0.01, 0.04, math.nan, 0.03, 0.005]) == pytest.approx([0.03, 0.06, math.nan, 0.06, 0.02], nan_ok=True)
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize(
    "differences", [[0.3, 0.1, 0.4, -0.2, 0.5, 0.6], [1, 2, 3, 4, 5, -6, 0.5], [0, 1, 2, 3, 4, 5, 6]]
)
def test_wilcoxon_is_the_plain_count_of_signs(differences):
    kept = np.array([one for one in differences if one])
    rank = np.abs(kept).argsort().argsort() + 1.0
    signs = np.array(list(product([-1, 1], repeat=len(kept))))
    gap = np.abs(signs @ rank) >= abs((np.sign(kept) * rank).sum())
    assert wilcoxon(differences) == pytest.approx(gap.mean())


def test_too_few_classes_tell_nothing():
    assert math.isnan(wilcoxon([1, 2, 3, 4, 5, 0]))
    assert math.isnan(friedman([[1, 2], [2, 3]])) and math.isnan(friedman(np.ones((4, 3))))


def test_ranks_and_what_is_said_of_them():
    values = np.array([[0.9, 0.8, 0.7], [0.9, 0.9, 0.1], [0.5, 0.6, 0.4]])
    assert ranks(values).tolist() == [[1, 2, 3], [1.5, 1.5, 3], [2, 1, 3]]
    assert ranks(values, higher_is_better=False)[0].tolist() == [3, 2, 1]
    assert friedman([[3, 2, 1]] * 10) == pytest.approx(math.exp(-10))  # chi-squared of 2 degrees of freedom at 20
    for methods, printed in ((2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)):  # Demsar 2006, table 5
        unit = math.sqrt(methods * (methods + 1) / (6 * 15))
        assert critical_difference(methods, 15) / unit == pytest.approx(printed, abs=1e-3)


@pytest.fixture
def pixels():
    """Labels, masks, maps and regions of eight small images."""
    rng = np.random.default_rng(5)
    masks = np.zeros((8, 12, 12), bool)
    for i in range(3, 8):
        masks[i, i - 2 : i + 2, 1:4] = True
        masks[i, 1, 8:10] = i % 2
    maps = rng.integers(0, 40, masks.shape) / 8 + masks
    return masks.any((1, 2)), masks, maps


def test_counted_pixels_of_some_images_are_those_images(pixels):
    """Of few scores nothing is lost, an image that counts twice is there twice, and one of no weight is not there."""
    _, masks, maps = pixels
    counts = count_pixels(masks, maps)
    assert counts.defective_share == pytest.approx(masks.mean((1, 2)))
    for chosen in (list(range(8)), [0, 1, 1, 4, 4, 4, 7], [2, 5]):
        ranked = counts.ranked(np.bincount(chosen, minlength=8))
        plain = metrics.map_metrics(masks[chosen], maps[chosen])
        assert {name: METRICS[name].function(ranked) for name in plain} == pytest.approx(plain)
    several = counts.ranked([[1, 1, 1, 0, 0, 0, 0, 0], [1] * 8])
    for name, value in metrics.map_metrics(masks, maps).items():
        assert METRICS[name].function(several) == pytest.approx([math.nan, value], nan_ok=True)
    assert count_pixels(np.zeros_like(masks), maps) is None


def test_many_scores_lose_next_to_nothing():
    rng = np.random.default_rng(0)
    masks = np.zeros((12, 64, 64), bool)
    masks[4:, 20:30, 20:30] = True
    masks[8:, 50:53, 3:9] = True
    maps = rng.normal(size=masks.shape).astype(np.float32) + 2.5 * masks
    regions = np.concatenate([np.where(np.nonzero(mask)[0] < 40, 2 * i, 2 * i + 1) for i, mask in enumerate(masks)])
    counts = count_pixels(masks, maps, regions)
    assert counts.regions.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and counts.normal.shape[1] <= 1001
    ranked = counts.ranked(np.ones(12))
    plain = metrics.map_metrics(masks, maps, regions)
    assert {name: METRICS[name].function(ranked) for name in plain} == pytest.approx(plain, abs=2e-3)


def test_deviations_are_those_of_the_drawn_images(pixels):
    labels, masks, maps = pixels
    scores, decisions = maps.max((1, 2)), maps.max((1, 2)) > 5.4
    drawn = bootstrap.draw(labels, 1, 5)
    assert (labels[drawn] == np.sort(labels)).all() and len({tuple(row) for row in drawn.tolist()}) > 1
    called = maps > 4.5
    types = np.where(labels, "structural_anomalies", "good").astype(object)
    types[[4, 6]] = "logical_anomalies"
    counts = count_pixels(masks, maps, decisions=called).of(np.arange(8))
    found = bootstrap.deviations(labels, scores, decisions, counts, drawn, types)
    assert found.keys() == (METRICS | LOCO_METRICS | DECISION_METRICS).keys()

    def plain(own):
        values = metrics.image_metrics(labels[own], scores[own]) | metrics.map_metrics(masks[own], maps[own])
        values |= metrics.combined_metrics(values)
        values |= metrics.pixel_decision_metrics(masks[own], called[own])
        kinds = {}
        for kind, chosen in metrics.of_kinds(labels[own], types[own]).items():
            kinds[kind] = Kind(metrics.rank_images(labels[own][chosen], scores[own][chosen]))
        return values | metrics.decision_metrics(labels[own], decisions[own]) | metrics.loco_metrics(kinds)

    whole = plain(np.arange(8))
    for i, own in enumerate(drawn):
        expected = {name: value - whole[name] for name, value in plain(own).items()}
        assert {name: values[i] for name, values in found.items()} == pytest.approx(expected, nan_ok=True)
    without = bootstrap.deviations(labels, scores, decisions, None, drawn)
    assert np.isnan(without["pro"]).all() and np.isnan(without["mad"]).all()
    assert (without["image_ap"] == found["image_ap"]).all() and np.isnan(without["image_auroc_mean"]).all()
    unknown = bootstrap.deviations(labels, scores, decisions, count_pixels(masks, maps), drawn)
    assert np.isnan(unknown["seg_f1"]).all() and (unknown["pro"] == found["pro"]).all()


def test_intervals_of_deviations():
    """Percentiles less twice what drawn test sets add, as they are drawn from images that are the best case already."""
    drawn = np.random.default_rng(0).normal(0.4, 1, 4001)
    values = expit(logit(0.8) + drawn)
    low, high = logit(bootstrap.interval(0.8, np.append(values - 0.8, math.nan)))
    middle = logit(0.8) - drawn.mean()
    assert (low, high) == pytest.approx((middle - 1.96, middle + 1.96), abs=0.12)
    for value, known in ((1.0, [0.0, -0.1]), (0.7, [0.0, 0.0]), (0.7, [math.nan]), (0.0, [0.1])):
        assert all(map(math.isnan, bootstrap.interval(value, np.array(known))))
    low, high = bootstrap.interval(0.999, np.array([-0.01, 0.001, 0.0, -0.002] * 50))
    assert 0.9 < low < 0.999 < high <= 1


def test_estimates_of_deviations():
    spread = np.array([0.0, 0.1, 0.2, math.nan, 0.3])
    assert bootstrap.estimate(0.7, spread) == pytest.approx((0.55, 0.0125))
    assert bootstrap.estimate(0.7, np.zeros(4)) == (0.7, 0)
    assert math.isnan(bootstrap.estimate(0.7, np.full(3, math.nan)).variance)
    low, high = unit_interval(Estimate(0.9, 0.03**2))
    assert 0.9 - low > high - 0.9 > 0.03 and 0.9 - low < 0.08
    for certain in (Estimate(1.0, 0.0), Estimate(0.5, math.nan), Estimate(0.0, 0.1)):
        assert all(map(math.isnan, unit_interval(certain)))
    assert math.isnan(p_value(Estimate(0.1, math.nan)))


def test_counts_come_back_from_their_file(pixels, tmp_path):
    _, masks, maps = pixels
    counts, path = count_pixels(masks, maps), tmp_path / "pixels.npz"
    write_pixels(path, counts)
    first = path.read_bytes()
    back = parse_pixels(path, first, 8)
    assert all(np.allclose(own, theirs, atol=1e-6) for own, theirs in zip(back[:4], counts, strict=False))
    assert back.called is None
    called = count_pixels(masks, maps, decisions=maps > 4.5)
    write_pixels(path, called)
    back = parse_pixels(path, path.read_bytes(), 8).called
    assert back.tolist() == [
        [(hot & ~mask).sum(), (hot & mask).sum()] for hot, mask in zip(maps > 4.5, masks, strict=True)
    ]
    write_pixels(path, counts)
    assert path.read_bytes() == first
    for content, images in ((b"", 8), (first[: len(first) // 2], 8), (first, 7)):
        with pytest.raises(DataError, match=r"pixels.npz' cannot be read as the counts of pixels"):
            parse_pixels(path, content, images)
