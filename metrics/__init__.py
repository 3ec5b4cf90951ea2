"""Detection and localisation metrics: pure functions, arrays in, numbers out, exact under ties.

The pixels that are counted are those of the maps, which masks are brought to before. `entries` says which metrics a run
has.
"""

from metrics.by_image import PixelCounts, count_pixels
from metrics.entries import (
    DECISION_METRICS,
    KINDS,
    LOCO_METRICS,
    METRICS,
    Kind,
    Metric,
    combined_metrics,
    decision_metrics,
    image_metrics,
    loco_metrics,
    map_metrics,
    of_kinds,
    pixel_decision_metrics,
)
from metrics.pixels import RankedPixels, pixel_metrics, pro, rank_defects, rank_pixels, spro, spro_at
from metrics.ranking import auroc, average_precision, f1_max, rank_images

__all__ = [
    "DECISION_METRICS",
    "KINDS",
    "LOCO_METRICS",
    "METRICS",
    "Kind",
    "Metric",
    "PixelCounts",
    "RankedPixels",
    "auroc",
    "average_precision",
    "combined_metrics",
    "count_pixels",
    "decision_metrics",
    "f1_max",
    "image_metrics",
    "loco_metrics",
    "map_metrics",
    "of_kinds",
    "pixel_decision_metrics",
    "pixel_metrics",
    "pro",
    "rank_defects",
    "rank_images",
    "rank_pixels",
    "spro",
    "spro_at",
]
