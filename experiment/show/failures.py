"""Where a detector fails: on which kinds of defects, and on how large ones."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from experiment.config import JobName
from experiment.record.read import RunRecord
from experiment.show.tables import NONE, Table
from metrics import METRICS, PixelCounts, auroc

PARTS = ("smallest third", "middle third", "largest third")


def failures(record: RunRecord, job: JobName) -> Table | None:
    """Defect types of a class, the hardest first, then its defects by size, each among all normal test images.

    Image AUROC, PRO (of runs that kept pixels.npz), and the share of images above the threshold. None without normal or
    without anomalous test images.

    Raises:
        DataError: a damaged file of the run.
    """
    table = record.predictions(job)
    anomalous = table["label"].to_numpy().astype(bool)
    if anomalous.all() or not anomalous.any():
        return None
    pixels = record.pixels(job, len(table))
    kinds = table["defect_type"].to_numpy()
    groups = {str(kind): anomalous & (kinds == kind) for kind in dict.fromkeys(kinds[anomalous])}
    scores, called = table["score"].to_numpy(), table["decision"].to_numpy().astype(bool)

    def area(chosen: NDArray[np.bool_]) -> float:
        among = chosen | ~anomalous
        return auroc(anomalous[among], scores[among])

    groups = dict(sorted(groups.items(), key=lambda group: area(group[1])))
    if pixels is not None:
        groups |= _by_size(anomalous, pixels)
    rows = []
    for name, chosen in groups.items():
        shares = (area(chosen), _pro(pixels, chosen | ~anomalous), called[chosen].mean())
        cells = [NONE if math.isnan(share) else f"{100 * share:.1f}" for share in shares]
        rows.append([name, str(chosen.sum()), *cells])
    heads = ["defects", "images", METRICS["image_auroc"].title, METRICS["pro"].title, "found at the threshold"]
    return Table("where it fails, percent", heads, rows)


def _by_size(anomalous: NDArray[np.bool_], pixels: PixelCounts) -> dict[str, NDArray[np.bool_]]:
    """The images with visible defects in thirds by the share of the image that is defective; named by that share."""
    share = pixels.defective_share
    seen = np.flatnonzero(anomalous & (share > 0))
    if len(seen) < len(PARTS):
        return {}
    found = {}
    parts = np.array_split(seen[np.argsort(share[seen], kind="stable")], len(PARTS))
    for name, part in zip(PARTS, parts, strict=True):
        low, high = (100 * share[part[i]] for i in (0, -1))
        chosen = np.zeros(len(anomalous), bool)
        chosen[part] = True
        found[f"{name}: {low:.2g} to {high:.2g} % of the image"] = chosen
    return found


def _pro(pixels: PixelCounts | None, chosen: NDArray[np.bool_]) -> float:
    return math.nan if pixels is None else float(METRICS["pro"].function(pixels.ranked(chosen)))
