"""Detection and localisation metrics: pure functions, arrays in, numbers out, exact under ties.

The pixels that are counted are those of the maps, which masks are brought to before.
"""

from metrics.pixels import pixel_metrics, pro, spro, spro_at
from metrics.ranking import auroc, average_precision, f1_max

__all__ = ["auroc", "average_precision", "f1_max", "pixel_metrics", "pro", "spro", "spro_at"]
