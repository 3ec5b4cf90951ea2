"""What predict writes of regions: regions.csv, and on request masks and contours for labelling tools."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiment.model_config import PredictConfig
from experiment.record.sheets import quote_formula
from experiment.show.pictures import encoded
from experiment.use.folder import COCO, COCO_START, CONTOURS, MASKS, OF_REGIONS, REGIONS
from experiment.use.growing import appending, csv_lines, growing
from experiment.use.inputs import Item
from experiment.use.regions import Region, Regions
from files import readable


class RegionFiles:
    """The files that grow: regions.csv and, for COCO's contours, one file of all images.

    Attributes:
        write_rows, write_annotations: write their text; None where there is no such file.
    """

    def __init__(self) -> None:
        self.write_rows: Callable[[str], None] | None = None
        self.write_annotations: Callable[[str], None] | None = None
        self.rows: list[list[Any]] = []
        self.annotations: list[str] = []
        self.images: list[str] = []
        self.count = 0  # of annotations

    def take(self, item: Item, regions: Regions) -> None:
        """Keep those of an image until they are written."""
        self.rows += [_row(item.path, number, own) for number, own in enumerate(regions.found, start=1)]
        if self.write_annotations is None:
            return
        image = {"id": len(self.images) + 1, "file_name": readable(item.path), "width": item.size[0]}
        self.images.append(json.dumps({**image, "height": item.size[1]}))
        for number, own in enumerate(regions.found, start=1):
            line = json.dumps(_annotation(self.count + 1, image["id"], own, regions.rings(number)[0]))
            self.annotations.append(f"{',' if self.count else ''}\n{line}")
            self.count += 1

    def write(self) -> None:
        """Write what was taken."""
        rows, annotations = csv_lines(self.rows), "".join(self.annotations)
        self.rows.clear()
        self.annotations.clear()
        if rows:
            self.write_rows(rows)
        if annotations:
            self.write_annotations(annotations)

    def end(self) -> str:
        """What stands behind COCO's annotations."""
        images = ",\n".join(self.images)
        return f'\n], "images": [\n{images}\n]}}\n'


@contextmanager
def region_files(config: PredictConfig) -> Iterator[RegionFiles]:
    """What takes and writes the regions of images; without --regions no file is made."""
    files = RegionFiles()
    with ExitStack() as stack:
        if config.regions:
            table = growing if config.watch is None else appending
            files.write_rows = stack.enter_context(table(config.out / REGIONS, csv_lines([OF_REGIONS])))
        if config.contours == "coco":
            files.write_annotations = stack.enter_context(growing(config.out / COCO, COCO_START, files.end))
        yield files


def region_pictures(config: PredictConfig, item: Item, regions: Regions) -> list[tuple[str, str, bytes]]:
    """Of every file of an image's regions its column in predictions.csv, its name and its content."""
    drawn = []
    if config.region_masks:
        drawn.append(("mask", f"{MASKS}/{item.name}.png", encoded(regions.mask.astype(np.uint8) * 255, ".png")))
    if config.contours == "geojson":
        drawn.append(("contours", f"{CONTOURS}/{item.name}.geojson", _geojson(item, regions).encode()))
    return drawn


def _row(path: str, number: int, region: Region) -> list[Any]:
    scores = (f"{own:.9g}" for own in (region.mean, region.highest))
    centre = (f"{own:.2f}" for own in region.centre)
    return [
        quote_formula(path),
        number,
        *region.box,
        region.area,
        f"{region.share:.6g}",
        *centre,
        *scores,
        int(region.touches_border),
    ]


def _annotation(number: int, image: int, region: Region, outer: NDArray[np.int32]) -> dict[str, Any]:
    """As COCO has it; its polygons know no holes."""
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": list(region.box),
        "area": region.area,
        "iscrowd": 0,
        "segmentation": [outer.ravel().tolist()],
        "score": region.highest,
    }


def _geojson(item: Item, regions: Regions) -> str:
    """The regions of an image as polygons, in its pixels; y points down."""
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[*ring.tolist(), ring[0].tolist()] for ring in regions.rings(number)],
            },
            "properties": {
                "image": readable(item.path),
                "region": number,
                "area": own.area,
                "mean_score": own.mean,
                "highest_score": own.highest,
                "touches_border": own.touches_border,
            },
        }
        for number, own in enumerate(regions.found, start=1)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features})
