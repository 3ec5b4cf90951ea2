"""Metrics: golden values, brute force over thresholds, invariants."""

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.measure import label
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from metrics import auroc, average_precision, f1_max, pixel_metrics, pro, spro, spro_at

GOLDEN = np.load(Path(__file__).parent / "golden" / "metrics_golden.npz")


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_golden_pro_and_spro(limit):
    maps = GOLDEN["anomaly_maps"]
    assert pro(GOLDEN["masks"], maps, limit) == pytest.approx(GOLDEN[f"aupro_{limit}"], abs=1e-3)
    assert pixel_metrics(GOLDEN["masks"], maps, limit)["pro"] == pro(GOLDEN["masks"], maps, limit)
    defects = zip(GOLDEN["spro_image_index"], GOLDEN["spro_channels"], GOLDEN["spro_saturation_area"], strict=True)
    assert spro(defects, maps, limit) == pytest.approx(GOLDEN[f"auspro_{limit}"], abs=1e-3)


def test_golden_auroc_and_ap():
    labels, scores = GOLDEN["image_labels"], GOLDEN["image_scores"]
    assert auroc(labels, scores) == pytest.approx(GOLDEN["image_auroc"], abs=1e-9)
    assert average_precision(labels, scores) == pytest.approx(GOLDEN["image_ap"], abs=1e-9)
    found = pixel_metrics(GOLDEN["masks"], GOLDEN["anomaly_maps"])
    assert found["auroc"] == pytest.approx(GOLDEN["pixel_auroc"], abs=1e-9)
    assert found["ap"] == pytest.approx(GOLDEN["pixel_ap"], abs=1e-9)


def area_to(x, y, limit):
    """Area under a polyline up to x = limit, segment by segment, divided by the limit."""
    area = 0.0
    for (x0, y0), (x1, y1) in zip(zip(x, y, strict=True), list(zip(x, y, strict=True))[1:], strict=False):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def brute_force(regions, covered, maps, limit):
    """(s)PRO with one threshold per distinct score; regions: (image index, mask, saturation area)."""
    x, y = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        found = maps >= threshold
        x.append((found & ~covered).sum() / (~covered).sum())
        y.append(np.mean([min((found[i] & mask).sum() / area, 1) for i, mask, area in regions]))
    return area_to(x, y, limit)


small_maps = arrays(np.float64, (3, 8, 8), elements=st.integers(0, 30).map(lambda k: k / 7))
small_masks = arrays(np.bool_, (3, 8, 8), elements=st.sampled_from([True, False, False, False]))
limits = st.sampled_from([0.05, 0.3, 0.77, 1.0])


@settings(max_examples=80, deadline=None)
@given(maps=small_maps, masks=small_masks, limit=limits)
def test_pixel_metrics_equal_brute_force(maps, masks, limit):
    found = pixel_metrics(masks, maps, limit)
    if masks.all() or not masks.any():
        assert all(math.isnan(value) for value in found.values())
        return
    labels = [label(mask, connectivity=2) for mask in masks]
    regions = [(i, grid == r, (grid == r).sum()) for i, grid in enumerate(labels) for r in range(1, grid.max() + 1)]
    assert found["pro"] == pytest.approx(brute_force(regions, masks, maps, limit), abs=1e-9)
    assert found["auroc"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-9)
    assert found["ap"] == pytest.approx(average_precision_score(masks.ravel(), maps.ravel()), abs=1e-9)
    precision, recall, _ = precision_recall_curve(masks.ravel(), maps.ravel())
    f1 = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-30))
    assert found["f1_max"] == pytest.approx(f1, abs=1e-9)


@settings(max_examples=80, deadline=None)
@given(
    maps=small_maps,
    masks=arrays(np.bool_, (4, 8, 8), elements=st.sampled_from([True, False, False])),
    images=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    areas=st.lists(st.floats(1, 40), min_size=4, max_size=4),
    limit=limits,
)
def test_spro_equals_brute_force(maps, masks, images, areas, limit):
    defects = [d for d in zip(images, masks, areas, strict=True) if d[1].any()]
    covered = np.zeros(maps.shape, bool)
    for i, mask, _ in defects:
        covered[i] |= mask
    found = spro(zip(images, masks, areas, strict=True), maps, limit)
    if not defects or covered.all():
        assert math.isnan(found)
    else:
        assert found == pytest.approx(brute_force(defects, covered, maps, limit), abs=1e-9)


def test_spro_of_unsaturated_components_is_pro():
    maps, masks = GOLDEN["anomaly_maps"], GOLDEN["masks"]
    defects = []
    for i, mask in enumerate(masks):
        grid = label(mask, connectivity=2)
        defects += [(i, grid == r, (grid == r).sum()) for r in range(1, grid.max() + 1)]
    assert spro(defects, maps) == pytest.approx(pro(masks, maps), abs=1e-12)


scored = st.lists(st.tuples(st.booleans(), st.integers(-20, 20)), min_size=2, max_size=60)


@settings(max_examples=200, deadline=None)
@given(scored=scored, order=st.randoms(use_true_random=False))
def test_ranking_invariants(scored, order):
    labels, scores = np.array([a for a, _ in scored]), np.array([b for _, b in scored], dtype=float)
    values = [metric(labels, scores) for metric in (auroc, average_precision, f1_max)]
    if labels.all() or not labels.any():
        assert all(math.isnan(value) for value in values)
        return
    shuffled = order.sample(range(len(scored)), len(scored))
    for changed_labels, changed_scores in (
        (labels[shuffled], scores[shuffled]),
        (labels, np.exp(scores / 7) - 3),
        (labels.astype(np.uint8) * 255, scores.astype(np.float32)),
    ):
        again = [metric(changed_labels, changed_scores) for metric in (auroc, average_precision, f1_max)]
        assert again == pytest.approx(values, abs=1e-12)
    assert auroc(labels, -scores) == pytest.approx(1 - values[0], abs=1e-12)
    assert auroc(labels, np.zeros(len(labels))) == 0.5
    assert values[0] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert values[1] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    found = [scores >= threshold for threshold in scores]
    best = max(2 * (labels & own).sum() / (labels.sum() + own.sum()) for own in found)
    assert values[2] == pytest.approx(best, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(maps=small_maps, masks=small_masks, limit=limits, order=st.permutations(range(3)))
def test_pixel_invariants(maps, masks, limit, order):
    found = pixel_metrics(masks, maps, limit)
    for changed in (
        pixel_metrics(masks[order], maps[order], limit),
        pixel_metrics(masks, np.exp(maps) * 5 - 2, limit),
        pixel_metrics(masks[:, ::-1, ::-1], maps[:, ::-1, ::-1], limit),
        pixel_metrics(masks.astype(np.uint8) * 255, maps, limit),
    ):
        assert changed == pytest.approx(found, abs=1e-12, nan_ok=True)
    whole = pixel_metrics(masks, maps, 1.0)
    assert whole.pop("pro") >= found["pro"] - 1e-12 or masks.all() or not masks.any()  # overlap only grows
    assert whole == pytest.approx({name: found[name] for name in whole}, abs=0, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(
    maps=small_maps,
    masks=arrays(np.bool_, (4, 8, 8), elements=st.sampled_from([True, False, False])),
    images=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    areas=st.lists(st.floats(1, 40), min_size=4, max_size=4),
    order=st.permutations(range(3)),
    defect_order=st.permutations(range(4)),
)
def test_spro_invariants(maps, masks, images, areas, order, defect_order):
    limits = [0.05, 0.3, 1.0]
    found = spro_at(zip(images, masks, areas, strict=True), maps, limits)
    assert found == pytest.approx([spro(zip(images, masks, areas, strict=True), maps, x) for x in limits], nan_ok=True)
    moved = [(order.index(images[i]), masks[i], areas[i]) for i in defect_order]
    flipped = [(i, mask[::-1], area) for i, mask, area in zip(images, masks, areas, strict=True)]
    for changed in (
        spro_at(moved, maps[order], limits),
        spro_at(zip(images, masks, areas, strict=True), np.exp(maps) * 5 - 2, limits),
        spro_at(flipped, maps[:, ::-1], limits),
    ):
        assert changed == pytest.approx(found, abs=1e-12, nan_ok=True)
    assert math.isnan(found[0]) or (np.diff(found) >= -1e-12).all()  # overlap only grows


@settings(max_examples=40, deadline=None)
@given(masks=small_masks)
def test_pixel_symmetry(masks):
    """Constant maps tell nothing: AUROC one half, PRO the diagonal; reversed maps mirror the AUROC."""
    if masks.all() or not masks.any():
        return
    found = pixel_metrics(masks, np.full(masks.shape, 3.0), 1.0)
    assert (found["auroc"], found["pro"]) == (0.5, pytest.approx(0.5))
    maps = np.random.default_rng(0).integers(0, 9, masks.shape) / 3
    assert pixel_metrics(masks, -maps)["auroc"] == pytest.approx(1 - pixel_metrics(masks, maps)["auroc"], abs=1e-12)


def test_parts_sorted_side_by_side_change_nothing(monkeypatch):
    maps, masks = GOLDEN["anomaly_maps"], GOLDEN["masks"]
    whole = pixel_metrics(masks, maps)
    monkeypatch.setattr("metrics.ranking.PART", 1000)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert pixel_metrics(masks, maps) == whole


def test_memory_grows_with_the_defective_pixels_only(monkeypatch):
    """Many maps cost no copy of them."""
    monkeypatch.setattr("metrics.ranking.PART", 20_000)
    maps = np.random.default_rng(0).random((8000, 32, 32), np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[:80, :4, :4] = True
    tracemalloc.start()
    pixel_metrics(masks, maps)
    spro([(i, masks[i], 5.0) for i in range(80)], maps)
    assert tracemalloc.get_traced_memory()[1] < maps.nbytes / 2  # spro's covered pixels are a quarter
    tracemalloc.stop()


def test_perfect_worst_and_constant_maps():
    masks = np.zeros((2, 6, 6), bool)
    masks[0, 1:3, 1:4] = True
    assert pixel_metrics(masks, masks.astype(float)) == {"auroc": 1, "ap": 1, "f1_max": 1, "pro": pytest.approx(1)}
    assert pro(masks, 1.0 - masks) == 0
    assert pro(masks, np.ones(masks.shape)) == pytest.approx(0.15)  # the diagonal up to 0.3, divided by 0.3


def test_a_pixel_shared_by_two_defects_is_no_false_positive_of_either():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2] = masks[1, 1:3] = True
    maps = (masks[0] | masks[1])[None].astype(float)
    assert spro([(0, masks[0], 8), (0, masks[1], 3)], maps) == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: auroc([0, 1], [1.0]), r"labels \[2\] and scores \[1\]"),
        (lambda: f1_max([0, 1], [1.0, np.nan]), "finite"),
        (lambda: pro(np.zeros((1, 2, 2)), np.zeros((1, 2, 3))), r"\[1, 2, 2\] and maps \[1, 2, 3\]"),
        (lambda: pixel_metrics(np.zeros((2, 2)), np.zeros((2, 2))), r"\[N, H, W\], not \[2, 2\]"),
        (lambda: pro(np.ones((1, 2, 2)), np.full((1, 2, 2), np.inf)), "finite"),
        (lambda: pro(np.ones((1, 2, 2)), np.zeros((1, 2, 2)), 0), "max_fpr"),
        (lambda: spro([(3, np.ones((2, 2)), 1)], np.zeros((1, 2, 2))), "image_index 3"),
        (lambda: spro([(0, np.ones((2, 3)), 1)], np.zeros((1, 2, 2))), r"\[2, 3\] must be \[2, 2\]"),
        (lambda: spro([(0, np.ones((2, 2)), 0)], np.zeros((1, 2, 2))), "saturation_area"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
