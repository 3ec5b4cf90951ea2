"""What a model finds in one image at a time: the numbers of the row that predict writes for it alone."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datasets import declared_size
from datasets.decode import check_pixels
from detection import TrainedModel, is_anomalous
from detection.precision import precision_name
from detection.whole_images import predicted
from errors import DataError
from experiment.machine.device import allow_tf32
from experiment.model_config import OF_IMAGES
from experiment.use.inputs import Item, allowing, read_item
from experiment.use.interest import masks_for
from experiment.use.latency import Latency
from experiment.use.maps import full_size
from experiment.use.normal import among_normal
from experiment.use.regions import Regions, find_regions


@dataclass(frozen=True, eq=False)
class Finding:
    """What is known of an image.

    Attributes:
        score: float32's value.
        percentile, p_value: as in predictions.csv; None of a model without scores of normal images.
        light: whether it is darker or brighter than all images that the threshold holds for; None where not, or where
            the model does not know.
        size: width and height of the image, once it is turned.
        map: float32 [side, side]; None of a model that draws none.
        window: left, top, right and bottom of what the network saw, in the image's pixels.
        original: the image's pixels, RGB [H, W, 3].
        milliseconds: of decode, embed and score.
    """

    score: float
    percentile: float | None
    p_value: float | None
    light: Literal["darker", "brighter"] | None
    size: tuple[int, int]
    map: NDArray[np.float32] | None
    window: tuple[int, int, int, int]
    original: NDArray[np.uint8]
    milliseconds: dict[str, float]

    def is_anomalous(self, threshold: float) -> bool:
        return bool(is_anomalous(self.score, threshold))


class Finder:
    """A trained model, one image at a time.

    Args:
        model: of images.
        folder: where it is.
        max_pixels: of the largest image that is read.

    Raises:
        UsageError: a model that wants a mask of interest of every image.
    """

    def __init__(self, model: TrainedModel, folder: Path, max_pixels: int) -> None:
        self.model = model
        self.transform = allowing(model.transform, max_pixels)
        self._mask_of = masks_for(model, folder, None)
        self._latency = Latency(model.detector)

    def find(self, path: Path, shown: str, is_foreign: bool = False) -> Finding:
        """What the model finds in an image file.

        Args:
            path: of the file.
            shown: what it is called in messages.
            is_foreign: a file of somebody else's, of which nothing is decoded before its size is known.

        Raises:
            DataError: it cannot be read, is too large, or has a score that is no number.
        """
        try:
            if is_foreign:
                self._check_size(path)
            item = self.read(Item(str(path), Path("image")))
            if item.error:
                raise DataError(item.error)
        except DataError as error:
            raise DataError(str(error).replace(f"'{path}'", f"'{shown}'")) from error
        return self.found(item, shown)

    def read(self, item: Item) -> Item:
        """An item with its pixels, its own ones too, or with what is wrong with it."""
        return read_item(item, self.transform, keep_original=True, mask_of=self._mask_of)

    def regions(self, finding: Finding, threshold: float, min_area: int) -> Regions | None:
        """The regions of pixels above a threshold; None without a map, or where that is of less than a pixel."""
        left, top, right, bottom = finding.window
        if finding.map is None or left >= right or top >= bottom:
            return None
        whole = full_size(finding.map, self.transform, finding.size)
        return find_regions(whole, self.transform, threshold, min_area)

    def _check_size(self, path: Path) -> None:
        if not path.stat().st_size:
            raise DataError(f"'{path}' is empty: expected an image")
        if (size := declared_size(path)) is None:
            raise DataError(f"'{path}' is not an image that can be read")
        check_pixels(path, size, self.transform.reading.max_pixels)

    def found(self, item: Item, shown: str) -> Finding:
        """What the model finds in an image that was read, its own pixels kept.

        Raises:
            DataError: its score is no number.
        """
        allow_tf32(precision_name(self.model.description.dtype) != "fp32")  # another model may have come before
        image, size = item.tensor.unsqueeze(0), OF_IMAGES["batch_size"]
        prediction = predicted(self._latency.predict_read, image, self.model.tiling, size)
        (score,) = prediction.scores.tolist()
        embed, scoring = self._latency.taken()
        if not math.isfinite(score):
            raise DataError(f"the model gives '{shown}' a score that is no number")
        normal, outside = self.model.thresholds.normal, self.model.thresholds.outside
        cells = among_normal(normal.p_values(score).item()) if normal else (None, None)
        return Finding(
            score,
            *(None if cell is None else float(cell) for cell in cells),
            light=outside and outside.side_of(item.brightness),
            size=item.size,
            map=prediction.maps[0].cpu().numpy() if self.model.description.draws_maps else None,
            window=self.transform.window(*item.size),
            original=item.original,
            milliseconds={"decode": 1000 * item.seconds, "embed": 1000 * embed, "score": 1000 * scoring},
        )
