"""Pictures for people: an image, its mask, its anomaly map and both on each other, side by side."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from datasets import to_pixels
from experiment.machine.progress import progress
from experiment.show.names import Names
from experiment.train.evaluation import Evaluation
from experiment.train.features import Predictions
from files import write_bytes

WORST = 4  # misses, and as many false alarms
OVERLAY = 0.45  # the map's share
MASK_COLOUR = (0, 255, 0)  # of the mask's outline on the overlay
CAPTION, FONT = 22, 13  # pixels


def panel(
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_] | None,
    anomaly_map: NDArray[np.floating],
    map_range: tuple[float, float],
) -> NDArray[np.uint8]:
    """Image, mask (where the dataset has masks), map and overlay in a row.

    Args:
        image: RGB [H, W, 3].
        mask: [H, W], or None to leave it out.
        anomaly_map: [H, W]; where it is NaN, nothing is laid over the image.
        map_range: the pixel scores that are drawn in the coldest and the hottest colour.

    Returns:
        RGB [H, 4 W, 3], or [H, 3 W, 3] without a mask.
    """
    low, high = map_range
    known = np.isfinite(anomaly_map)
    heat = np.clip((np.where(known, anomaly_map, low) - low) / max(high - low, 1e-12), 0, 1)
    colours = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    overlay = cv2.addWeighted(colours, OVERLAY, image, 1 - OVERLAY, 0)
    colours, overlay = np.where(known[..., None], colours, 0), np.where(known[..., None], overlay, image)
    if mask is None:
        return np.concatenate([image, colours, overlay], axis=1)
    filled = mask.astype(np.uint8) * 255
    outlines, _ = cv2.findContours(filled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    overlay = np.ascontiguousarray(overlay)
    cv2.drawContours(overlay, outlines, -1, MASK_COLOUR, 1)
    return np.concatenate([image, cv2.cvtColor(filled, cv2.COLOR_GRAY2RGB), colours, overlay], axis=1)


def captioned(drawn: NDArray[np.uint8], score: float, threshold: float) -> NDArray[np.uint8]:
    """A picture [H, W, 3] under a line with its score, the threshold and what follows from them."""
    decision = "anomalous" if score > threshold else "normal"
    strip = Image.new("RGB", (drawn.shape[1], CAPTION), "white")
    text = f"score {score:.3f}, threshold {threshold:.3f}: {decision}"
    ImageDraw.Draw(strip).text((6, 3), text, fill="black", font=ImageFont.load_default(FONT))
    return np.concatenate([np.asarray(strip), drawn])


def encoded(drawn: NDArray[np.uint8], suffix: str) -> bytes:
    """An RGB picture as the bytes of a file that ends in .png or .jpg."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 88] if suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    return cv2.imencode(suffix, drawn[..., ::-1], options)[1].tobytes()


def worst(anomalous: ArrayLike, scores: ArrayLike, count: int = WORST) -> tuple[list[int], list[int]]:
    """Where the model errs most: indices of the lowest-scored anomalous and of the highest-scored normal images.

    Args:
        anomalous: labels [N].
        scores: image scores [N].
        count: at most so many of each, the worst first.
    """
    labels, order = np.asarray(anomalous, dtype=bool), np.argsort(scores, kind="stable")
    misses, alarms = order[labels[order]], order[~labels[order]][::-1]
    return misses[:count].tolist(), alarms[:count].tolist()


def picture_name(index: int) -> str:
    """Where the picture of a row of predictions.csv lies below the model's folder."""
    return f"examples/{index:05}.jpg"


def write_worst(
    folder: Path, predictions: Predictions, evaluation: Evaluation, map_range: tuple[float, float]
) -> list[Path]:
    """Draw the worst misses and false alarms of the test images into `folder`/examples; returns where."""
    misses, alarms = worst([sample.anomalous for sample in predictions.dataset.samples], evaluation.scores)
    chosen = misses + alarms
    for index, drawn in zip(chosen, _panels(predictions, chosen, map_range), strict=True):
        write_bytes(folder / picture_name(index), encoded(drawn, ".jpg"), flush=False)
    return [folder / picture_name(index) for index in chosen]


def write_segmentations(
    folder: Path,
    names: list[str],
    predictions: Predictions,
    evaluation: Evaluation,
    map_range: tuple[float, float],
    threshold: float,
) -> None:
    """Draw every test image into `folder`/segmentations, under its name and with the ending .png."""
    drawings, free = _panels(predictions, range(len(names)), map_range), Names()
    with progress("pictures", total=len(names), unit="image") as bar:
        for name, score, drawn in zip(names, evaluation.scores, drawings, strict=True):
            path = folder / "segmentations" / f"{free.take(Path(name.removesuffix('.png')))}.png"
            write_bytes(path, encoded(captioned(drawn, score, threshold), ".png"), flush=False)
            bar.update()


def _panels(
    predictions: Predictions, indices: Sequence[int], map_range: tuple[float, float]
) -> Iterator[NDArray[np.uint8]]:
    has_masks = any(sample.mask_paths for sample in predictions.dataset.samples)
    for index, anomaly_map in zip(indices, predictions.maps_of(indices), strict=True):
        image, mask = predictions.dataset[index]
        yield panel(to_pixels(image), mask.numpy() if has_masks else None, anomaly_map, map_range)
