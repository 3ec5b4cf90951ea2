"""Pictures for people: an image, its mask, its anomaly map and both on each other, side by side."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from datasets import to_pixels
from experiment.evaluation import Evaluation
from experiment.features import TestPredictions

WORST = 4  # misses, and as many false alarms
OVERLAY = 0.45  # the map's share
MASK_COLOUR = (0, 255, 0)  # of the mask's outline on the overlay


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
        anomaly_map: [H, W].
        map_range: the pixel scores that are drawn in the coldest and the hottest colour.

    Returns:
        RGB [H, 4 W, 3], or [H, 3 W, 3] without a mask.
    """
    low, high = map_range
    heat = np.clip((anomaly_map - low) / max(high - low, 1e-12), 0, 1)
    colours = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    overlay = cv2.addWeighted(colours, OVERLAY, image, 1 - OVERLAY, 0)
    if mask is None:
        return np.concatenate([image, colours, overlay], axis=1)
    filled = mask.astype(np.uint8) * 255
    outlines, _ = cv2.findContours(filled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(overlay, outlines, -1, MASK_COLOUR, 1)
    return np.concatenate([image, cv2.cvtColor(filled, cv2.COLOR_GRAY2RGB), colours, overlay], axis=1)


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


def write_worst(folder: Path, predictions: TestPredictions, evaluation: Evaluation) -> None:
    """Draw the worst misses and false alarms of the test images into `folder`/examples."""
    dataset = predictions.dataset
    misses, alarms = worst([sample.anomalous for sample in dataset.samples], evaluation.scores)
    chosen = misses + alarms
    has_masks = any(sample.mask_paths for sample in dataset.samples)
    (folder / "examples").mkdir()
    for index, anomaly_map in zip(chosen, predictions.maps_of(chosen), strict=True):
        image, mask = dataset[index]
        drawn = panel(to_pixels(image), mask.numpy() if has_masks else None, anomaly_map, evaluation.map_range)
        encoded = cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
        (folder / picture_name(index)).write_bytes(encoded.tobytes())
