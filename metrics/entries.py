"""The metrics of a run: an entry each, which everything else reads.

An entry is all that adding a metric takes: its column is then in every file of a run, its title in every table to read.
The order of the entries is that of the columns.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metrics.decisions import Decided, accuracy, f1, precision, recall
from metrics.pixels import RankedPixels, rank_pixels
from metrics.ranking import (
    Crossings,
    Values,
    auroc,
    average_precision,
    best_f1,
    f1_max,
    precision_sum,
    roc_area,
)


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: of its column in CSV and JSON files, and in TensorBoard.
        title: of its column in tables to read, which show it in percent.
        function: of what its table below says; a finite number, or NaN where the metric does not exist.
        of_sets: of images: the same of Crossings of several sets of them, whose values are an array; None: it is called
            for one after another. (All other functions are given arrays of several sets where there are several.)
        of_pixels: whether it needs masks; such a function is given RankedPixels or, of decisions, those of all pixels.
        of_values: whether it is made of the metrics before it; such a function is given their values by name.
        higher_is_better: which value of several is the best one.
        main: whether it is shown where several runs stand side by side.
    """

    name: str
    title: str
    function: Callable[..., Values]
    of_pixels: bool = False
    of_values: bool = False
    higher_is_better: bool = True
    main: bool = False
    of_sets: Callable[[Crossings], Values] | None = None

    @property
    def is_of_images(self) -> bool:
        """Whether it is of images' labels and what is said of the images, and of nothing else."""
        return not self.of_pixels and not self.of_values


class Kind(NamedTuple):
    """The anomalies of one kind among all normal images.

    Attributes:
        images: ranked; None where none is of the kind, or none normal.
        pixels: ranked, with the overlap with saturated defects; None without any.
    """

    images: Crossings | None
    pixels: RankedPixels | None = None


KINDS = ("logical", "structural")
AVERAGED = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "pro")  # in mAD


def _by_name(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


def _of_kinds(name: str, title: str, function: Callable[[Kind], float]) -> Iterator[Metric]:
    """A metric of each kind, and its mean over the kinds."""
    for kind in KINDS:
        yield Metric(f"{name}_{kind}", f"{title} {kind}", lambda kinds, kind=kind: function(kinds[kind]))
    yield Metric(f"{name}_mean", f"{title} mean", lambda kinds: sum(map(function, kinds.values())) / len(kinds))


def _area(kind: Kind) -> Values:
    return math.nan if kind.images is None else roc_area(kind.images)


def _auspro(kind: Kind, max_fpr: float) -> Values:
    return math.nan if kind.pixels is None else kind.pixels.overlap_area(max_fpr)


# Of labels (bool [N], both occur) and finite scores [N], of RankedPixels, or of the values of those before.
METRICS = _by_name(
    Metric("image_auroc", "image AUROC", auroc, main=True, of_sets=roc_area),
    Metric("pixel_auroc", "pixel AUROC", lambda pixels: roc_area(pixels.ranked), of_pixels=True, main=True),
    Metric("pro", "PRO", lambda pixels: pixels.overlap_area(0.3), of_pixels=True, main=True),
    Metric("image_ap", "image AP", average_precision, of_sets=precision_sum),
    Metric("image_f1_max", "image max-F1", f1_max, of_sets=best_f1),
    Metric("pixel_ap", "pixel AP", lambda pixels: precision_sum(pixels.ranked), of_pixels=True),
    Metric("pixel_f1_max", "pixel max-F1", lambda pixels: best_f1(pixels.ranked), of_pixels=True),
    Metric("pro_0.05", "PRO 0.05", lambda pixels: pixels.overlap_area(0.05), of_pixels=True),
    Metric("mad", "mAD", lambda values: sum(values[name] for name in AVERAGED) / len(AVERAGED), of_values=True),
)

# Of a Kind for every one of KINDS: of MVTec LOCO and `assembly` only.
LOCO_METRICS = _by_name(
    *_of_kinds("image_auroc", "image AUROC", _area),
    *_of_kinds("auspro_0.05", "AUsPRO 0.05", lambda kind: _auspro(kind, 0.05)),
    *_of_kinds("auspro_0.3", "AUsPRO 0.3", lambda kind: _auspro(kind, 0.3)),
)

# Of images, of which both normal and anomalous ones occur, or of pixels, Decided at the stored threshold, known once
# training is over.
DECISION_METRICS = _by_name(
    Metric("precision", "precision", precision),
    Metric("recall", "recall", recall),
    Metric("f1", "F1", f1),
    Metric("accuracy", "accuracy", accuracy),
    Metric("seg_f1", "SegF1", f1, of_pixels=True),
)


def image_metrics(labels: ArrayLike, scores: ArrayLike) -> dict[str, float]:
    """The metrics of METRICS that need no masks, of labels [N], non-zero for anomalous, and finite scores [N].

    NaN where all labels are the same.
    """
    chosen = {name: metric for name, metric in METRICS.items() if metric.is_of_images}
    return _of_both_labels(chosen, labels, np.asarray(scores))


def map_metrics(masks: ArrayLike, maps: ArrayLike, regions: ArrayLike | None = None) -> dict[str, float]:
    """The metrics of METRICS that need masks. Arguments and errors as in pixel_metrics."""
    chosen = {name: metric for name, metric in METRICS.items() if metric.of_pixels}
    pixels = rank_pixels(masks, maps, regions)
    return dict.fromkeys(chosen, math.nan) if pixels is None else _values(chosen, pixels)


def combined_metrics(values: Mapping[str, float]) -> dict[str, float]:
    """The metrics of METRICS that are made of others, whose values are given by name; NaN where one of those is."""
    return _values({name: metric for name, metric in METRICS.items() if metric.of_values}, values)


def loco_metrics(kinds: Mapping[str, Kind]) -> dict[str, float]:
    """LOCO_METRICS of all KINDS."""
    return _values(LOCO_METRICS, kinds)


def decision_metrics(labels: ArrayLike, decisions: ArrayLike) -> dict[str, float]:
    """The metrics of DECISION_METRICS that are of images: of labels [N], non-zero for anomalous, and decisions [N],
    non-zero for called so.

    NaN where all labels are the same, as of AUROC, or a share is of nothing.
    """
    return _of_decided([metric for metric in DECISION_METRICS.values() if metric.is_of_images], labels, decisions)


def pixel_decision_metrics(masks: ArrayLike, decisions: ArrayLike) -> dict[str, float]:
    """The metrics of DECISION_METRICS that are of pixels: of masks and decisions [N, H, W], non-zero for defective.

    NaN where no pixel or every pixel is defective.
    """
    return _of_decided([metric for metric in DECISION_METRICS.values() if metric.of_pixels], masks, decisions)


def of_kinds(anomalous: NDArray[np.bool_], defect_types: ArrayLike) -> dict[str, NDArray[np.bool_]]:
    """By kind the images [N] that its metrics are of: those with its anomalies, and all normal ones."""
    types = np.asarray(defect_types)
    return {kind: ~anomalous | (types == f"{kind}_anomalies") for kind in KINDS}


def _of_both_labels(table: Mapping[str, Metric], labels: ArrayLike, values: NDArray) -> dict[str, float]:
    anomalous = np.asarray(labels).astype(bool, copy=False)
    if anomalous.all() or not anomalous.any():
        return dict.fromkeys(table, math.nan)
    return _values(table, anomalous, values)


def _of_decided(chosen: Iterable[Metric], labels: ArrayLike, decisions: ArrayLike) -> dict[str, float]:
    own = Decided.of(labels, decisions)
    table = {metric.name: metric for metric in chosen}
    exists = own.hits + own.misses and own.alarms + own.rests
    return _values(table, own) if exists else dict.fromkeys(table, math.nan)


def _values(table: Mapping[str, Metric], *of: object) -> dict[str, float]:
    return {name: float(metric.function(*of)) for name, metric in table.items()}
