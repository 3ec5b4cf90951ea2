"""Predict one's own images with a trained model: a stream of paths in, rows and pictures out."""

import csv
import io
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from datasets import ImageTransform, reader_count
from detection import Prediction, TrainedModel, is_anomalous
from detection.precision import precision_name
from errors import DataError
from experiment.machine.device import choose_device, choose_precision
from experiment.machine.memory import Halving, is_out_of_memory, one_line_when_full
from experiment.machine.progress import progress
from experiment.model_config import OF_IMAGES, PredictConfig
from experiment.record.sheets import BOM, quote_formula
from experiment.show.pictures import captioned, encoded, panel
from experiment.use.folder import COLUMNS, MAPS, OVERLAYS, TABLE, check_free, own_folder
from experiment.use.inputs import Inputs, Item, allowing, read_ahead
from experiment.use.normal import among_normal, normal_said
from experiment.use.rows import predict_tables
from experiment.use.unused import refuse_of_images, refuse_of_maps, refuse_unused, refuse_unused_weights
from files import cannot_write, move, partial, readable, write_bytes
from methods import load

ADVICE = "free some memory, or choose another --gpu"
NOTHING = Prediction(torch.empty(0), torch.empty(0))


def predict(config: PredictConfig) -> int:
    """Predict images and write predictions.csv and the pictures; says what went wrong with which image.

    Returns:
        The exit code: 1 if any image could not be read or drawn, else 0.

    Raises:
        UsageError: no such path, no model, a flag without effect, or an output folder that holds anything else, cannot
            be written, or is being written.
        DataError: a folder without images, a model that cannot be used, or no memory or room.
    """
    refuse_unused(config)
    inputs = Inputs(config.paths)
    check_free(config.out)
    with one_line_when_full(ADVICE):
        device = choose_device((config.gpu,))
        model = load(config.model_dir, device, config.backbone_weights)
        refuse_unused_weights(model, config.backbone_weights)
        if model.table is not None:
            refuse_of_images(config)
        if not model.description.draws_maps:
            refuse_of_maps(config)
        choose_precision(precision_name(model.description.dtype), device)  # TF32 as in training
        threshold = model.thresholds.image if config.threshold is None else config.threshold
        with own_folder(config.out):
            if model.table is not None:
                code = predict_tables(model, [(Path(item.path), item.name) for item in inputs], threshold, config.out)
                _say_false_alarms(config, model)
                return code
            unset = {name: value for name, value in OF_IMAGES.items() if getattr(config, name) is None}
            return _predict_images(replace(config, **unset), model, inputs, threshold)


def _predict_images(config: PredictConfig, model: TrainedModel, inputs: Inputs, threshold: float) -> int:
    counts: Counter[str] = Counter()
    outside, normal = model.thresholds.outside, model.thresholds.normal
    score = Halving(model.detector.predict_read, "prediction", Prediction.joined, ADVICE)
    draws_originals = config.full_size and config.map in ("overlay", "both")
    transform = allowing(model.transform, config.max_pixels)
    stream = read_ahead(
        iter(inputs), transform, reader_count(config.num_workers), 2 * config.batch_size, draws_originals
    )
    with (
        _table(config.out / TABLE) as write,
        progress("predict", total=inputs.total, unit="image") as bar,
    ):
        while batch := list(islice(stream, config.batch_size)):
            read = [item.tensor for item in batch if not item.error]
            outside = outside and outside.with_images([item.brightness for item in batch if not item.error])
            start = time.perf_counter()
            prediction = score(torch.stack(read)) if read else NOTHING
            scores = prediction.scores.tolist()
            counts["beyond"] += normal.beyond(scores) if normal else 0
            maps = prediction.maps.cpu().numpy() if model.description.draws_maps else [None] * len(scores)
            seconds = (time.perf_counter() - start) / max(len(read), 1)
            results = zip(scores, maps, strict=True)
            rows: list[list[str]] = []
            try:
                for item in batch:
                    row = dict.fromkeys(COLUMNS, "") | {"path": quote_formula(item.path)}
                    rows.append(row)
                    error = item.error or _predict_one(config, model, item, threshold, row, seconds, *next(results))
                    if error:
                        row["error"] = quote_formula(error)
                        bar.clear()
                        click.echo(f"Error: {readable(error)}", err=True)
                    counts["broken" if not row["score"] else "anomalous" if row["decision"] == "1" else "normal"] += 1
                    counts["errors"] += bool(error)
            finally:  # also of pictures that were written before something else went wrong
                write([list(row.values()) for row in rows if row["score"] or row["error"]])
            bar.update(len(batch))
    found = ", ".join(f"{counts[name]} {name}" for name in ("anomalous", "normal", "broken") if counts[name])
    click.echo(f"{found or 'nothing'} at threshold {threshold:.4g}; written to {config.out}", err=True)
    _say_false_alarms(config, model)
    click.echo(normal_said(model.thresholds, counts["beyond"]), err=True)
    if outside and (note := outside.sentence("images")):
        click.echo(note, err=True)
    if inputs.said:
        click.echo(inputs.said, err=True)
    return 1 if counts["errors"] else 0


def _say_false_alarms(config: PredictConfig, model: TrainedModel) -> None:
    """Of the model's own threshold; of another nothing is known."""
    if config.threshold is None:
        click.echo(model.thresholds.said, err=True)


def _predict_one(
    config: PredictConfig,
    model: TrainedModel,
    item: Item,
    threshold: float,
    row: dict[str, str],
    seconds: float,
    score: float,
    anomaly_map: NDArray[np.float32] | None,
) -> str:
    """Fill an image's row and write its pictures; what is wrong with those, or nothing."""
    row |= {"score": f"{score:.9g}", "decision": str(int(is_anomalous(score, threshold))), "seconds": f"{seconds:.4f}"}
    if model.thresholds.normal:
        row["percentile"], row["p_value"] = among_normal(model.thresholds.normal.p_values(score).item())
    try:
        drawn = _pictures(config, model, item, score, threshold, anomaly_map)
    except DataError as error:
        return str(error)
    except (MemoryError, cv2.error) as error:
        reason = "out of memory" if is_out_of_memory(error) else "it is too large for a picture"
        return f"'{item.path}' was scored, but cannot be drawn at {item.size[0]} x {item.size[1]} pixels: {reason}"
    for column, name, content in drawn:
        row[column] = name
        try:
            write_bytes(config.out / name, content, flush=False)
        except BaseException:
            row[column] = name if (config.out / name).exists() else ""
            raise
    return ""


def _pictures(
    config: PredictConfig,
    model: TrainedModel,
    item: Item,
    score: float,
    threshold: float,
    anomaly_map: NDArray[np.float32] | None,
) -> list[tuple[str, str, bytes]]:
    """Of every file that is written for an image its column in the table, its name and its content.

    Raises:
        DataError: the network saw less than a pixel of the image.
    """
    if config.map == "none":
        return []
    drawn = []
    if config.full_size:
        try:
            anomaly_map = _full_size(anomaly_map, model.transform, item.size)
        except DataError as error:
            raise DataError(f"'{item.path}' was scored, but has no map of its own size: {error}") from error
    if config.map in ("overlay", "both"):
        image = item.tensor.permute(1, 2, 0).numpy() if item.original is None else item.original
        picture = panel(image, None, anomaly_map, model.description.map_range)
        content = encoded(captioned(picture, score, threshold), ".png")
        drawn.append(("picture", f"{OVERLAYS}/{item.name}.png", content))
    if config.map in ("raw", "both"):
        name = f"{MAPS}/{item.name}.{config.raw_format}"
        drawn.append(("map", name, _raw(anomaly_map, config.raw_format)))
    return drawn


def _full_size(
    anomaly_map: NDArray[np.float32], transform: ImageTransform, size: tuple[int, int]
) -> NDArray[np.float32]:
    """The map at the width and height of the image; NaN where the network did not look, beyond the crop.

    Raises:
        DataError: what the network saw is less than a pixel wide or high.
    """
    width, height = size
    left, top, right, bottom = transform.window(width, height)
    if left >= right or top >= bottom:
        raise DataError(f"of its {width} x {height} pixels the network saw less than one; leave out --full_size")
    full = np.full((height, width), np.nan, np.float32)
    full[top:bottom, left:right] = cv2.resize(anomaly_map, (right - left, bottom - top))
    return full


def _raw(anomaly_map: NDArray[np.float32], raw_format: str) -> bytes:
    buffer = io.BytesIO()
    if raw_format == "npy":
        np.save(buffer, anomaly_map)
    else:
        Image.fromarray(anomaly_map).save(buffer, "tiff")
    return buffer.getvalue()


@contextmanager
def _table(path: Path) -> Iterator[Callable[[list[list[Any]]], None]]:
    """A CSV that grows by whole rows; whatever ends the block, complete rows are in it and it is in its place."""
    temporary = partial(path)
    complete, is_ascii = 0, True
    file = temporary.open("wb", buffering=0)

    def write(rows: list[list[Any]]) -> None:
        nonlocal complete, is_ascii
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        text = readable(buffer.getvalue())
        left = memoryview(text.encode())
        try:
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            raise cannot_write(path, error, len(left)) from error
        complete, is_ascii = file.tell(), is_ascii and text.isascii()

    try:
        write([list(COLUMNS)])
        yield write
    finally:
        with file:
            file.truncate(complete)
        if not is_ascii:
            _mark(temporary)
        move(temporary, path)


def _mark(path: Path) -> None:
    """Put a byte order mark before a file's text, by which spreadsheets know it as UTF-8; no room leaves it without."""
    marked = partial(path)
    try:
        with path.open("rb") as file, marked.open("wb") as copy:
            copy.write(BOM.encode())
            shutil.copyfileobj(file, copy)
        os.replace(marked, path)
    except OSError:
        marked.unlink(missing_ok=True)
