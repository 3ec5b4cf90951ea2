"""What is drawn of a job's test images: the worst errors or, where that is asked for, all."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiment.machine.progress import progress
from experiment.show.names import Names
from experiment.show.pictures import captioned, encoded, panel, picture_name, worst
from experiment.train.embeddings import Predictions
from experiment.train.evaluation import Evaluation
from files import write_bytes


def write_worst(
    folder: Path, predictions: Predictions, evaluation: Evaluation, map_range: tuple[float, float] | None
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
    map_range: tuple[float, float] | None,
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
    predictions: Predictions, indices: Sequence[int], map_range: tuple[float, float] | None
) -> Iterator[NDArray[np.uint8]]:
    has_masks = any(sample.mask_paths for sample in predictions.dataset.samples)
    for index, anomaly_map in zip(indices, predictions.maps_of(indices), strict=True):
        image, mask = predictions.dataset.read(index)
        yield panel(image[:3].permute(1, 2, 0).numpy(), mask.numpy() if has_masks else None, anomaly_map, map_range)
