"""What is found in an image, as JSON."""

import base64
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from experiment.show.pictures import coloured, encoded
from experiment.use.finding import Finder, Finding
from experiment.use.regions import Regions

MOST_REGIONS = 100  # that are told, those with the highest scores
LONGEST_SIDE = 1600  # of pictures, in pixels


@dataclass(frozen=True)
class Asked:
    """What is asked of an image.

    Attributes:
        model: its name; None: the first.
        threshold: of scores; None: the model's.
        pixel_threshold: of the scores of regions' pixels; None: the model's.
        min_area: of the smallest region, in pixels of the image.
        regions, map, picture: what to tell.
    """

    model: str | None = None
    threshold: float | None = None
    pixel_threshold: float | None = None
    min_area: int = 1
    regions: bool = True
    map: bool = False
    picture: bool = False


def answer(finder: Finder, finding: Finding, shown: str, asked: Asked) -> dict[str, Any]:
    """What is told of an image that is called `shown`."""
    thresholds, description = finder.model.thresholds, finder.model.description
    threshold = thresholds.image if asked.threshold is None else asked.threshold
    told: dict[str, Any] = {
        "name": shown,
        "score": finding.score,
        "percentile": finding.percentile,
        "p_value": finding.p_value,
        "threshold": threshold,
        "decision": int(finding.is_anomalous(threshold)),
        "light": finding.light,
        "width": finding.size[0],
        "height": finding.size[1],
        "window": list(finding.window),
        "latency": {name: round(own, 3) for name, own in finding.milliseconds.items()},
    }
    if asked.regions:
        told |= _regions(finder, finding, asked)
    if asked.map:
        has_map = finding.map is not None
        told["map"] = _data(coloured(finding.map, *description.map_range), ".png") if has_map else None
        told["map_range"] = list(description.map_range) if has_map else None
    if asked.picture:
        told["picture"] = _data(_smaller(finding.original), ".jpg")
    return told


def _regions(finder: Finder, finding: Finding, asked: Asked) -> dict[str, Any]:
    own = finder.model.thresholds.pixel
    pixel_threshold = own if asked.pixel_threshold is None or own is None else asked.pixel_threshold
    found = finder.regions(finding, pixel_threshold, asked.min_area)
    told = None if found is None else [_region(found, number) for number in range(len(found.found))[:MOST_REGIONS]]
    return {
        "pixel_threshold": pixel_threshold,
        "regions_found": None if found is None else len(found.found),
        "regions": told,
    }


def _region(regions: Regions, i: int) -> dict[str, Any]:
    own = regions.found[i]
    return {
        "box": list(own.box),
        "area": own.area,
        "area_percent": own.share,
        "centre": list(own.centre),
        "mean_score": own.mean,
        "highest_score": own.highest,
        "touches_border": own.touches_border,
        "outlines": [ring.tolist() for ring in regions.rings(i + 1)],
    }


def _smaller(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture whose longer side is LONGEST_SIDE at most."""
    height, width = picture.shape[:2]
    if (scale := LONGEST_SIDE / max(height, width)) >= 1:
        return picture
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _data(picture: NDArray[np.uint8], suffix: str) -> str:
    """A picture as a data URL."""
    kind = {".png": "png", ".jpg": "jpeg"}[suffix]
    return f"data:image/{kind};base64,{base64.b64encode(encoded(picture, suffix)).decode()}"
