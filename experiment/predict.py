"""Predict one's own images with a trained model: a stream of paths in, rows and pictures out."""

import csv
import io
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datasets import ImageTransform, images_in, read_image, require_images, to_pixels
from detection import TrainedModel
from errors import DataError, UsageError
from experiment.config import PredictConfig, precision_name
from experiment.pictures import captioned, encoded, panel
from experiment.predict_table import predict_tables
from experiment.progress import progress
from experiment.resolve import choose_device, choose_precision, create_directory
from experiment.results import quote_formula
from files import cannot_write, partial, write_bytes
from methods import load

COLUMNS = ("path", "score", "decision", "seconds", "error")
STDIN = "-"


@dataclass(frozen=True)
class Item:
    """An image to predict.

    Attributes:
        path: as given.
        name: of what is written for it, without an ending.
        tensor: the model's input [3, H, W], once it is read.
        size: width and height of the file's image.
        original: its pixels, where they are drawn.
        error: what is wrong with it.
    """

    path: str
    name: Path
    tensor: Tensor | None = None
    size: tuple[int, int] = (0, 0)
    original: NDArray[np.uint8] | None = None
    error: str = ""


def predict(config: PredictConfig) -> int:
    """Predict images and write predictions.csv and the pictures; says what went wrong with which image.

    Returns:
        The exit code: 1 if any image could not be read, else 0.

    Raises:
        UsageError: no such path, no model, or an output folder that cannot be written.
        DataError: a folder without images, or a model that cannot be used.
    """
    items, total = _inputs(config.paths)
    device = choose_device((config.gpu,))
    model = load(config.model_dir, device, config.backbone_weights)
    choose_precision(precision_name(model.description.dtype), device)  # TF32 as in training
    threshold = model.thresholds.image if config.threshold is None else config.threshold
    create_directory(config.out, "--out")
    if model.table is not None:
        return predict_tables(model, [(Path(item.path), item.name) for item in items], threshold, config.out)
    counts = {"anomalous": 0, "normal": 0, "broken": 0}
    with _rows(config.out / "predictions.csv") as write, progress("predict", total=total, unit="image") as bar:
        reading = replace(model.transform.reading, max_pixels=config.max_pixels)
        stream = _read_ahead(items, replace(model.transform, reading=reading), config)
        while batch := list(islice(stream, config.batch_size)):
            good = [item for item in batch if not item.error]
            results = iter(_predict_batch(model, good))
            rows = []
            for item in batch:
                if item.error:
                    counts["broken"] += 1
                    rows.append([quote_formula(item.path), "", "", "", quote_formula(item.error)])
                    bar.clear()
                    click.echo(f"Error: {item.error}", err=True)
                    continue
                score, anomaly_map, seconds = next(results)
                anomalous = score > threshold
                counts["anomalous" if anomalous else "normal"] += 1
                _write_pictures(config, model, item, score, threshold, anomaly_map)
                rows.append([quote_formula(item.path), f"{score:.9g}", int(anomalous), f"{seconds:.4f}", ""])
            write(rows)
            bar.update(len(batch))
    found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    click.echo(f"{found or 'nothing'} at threshold {threshold:.4g}; written to {config.out}", err=True)
    return 1 if counts["broken"] else 0


def _predict_batch(model: TrainedModel, items: list[Item]) -> list[tuple[float, NDArray[np.float32], float]]:
    """Score, map and seconds of every image."""
    if not items:
        return []
    start = time.perf_counter()
    prediction = model.detector.predict(torch.stack([item.tensor for item in items]))
    scores, maps = prediction.scores.tolist(), prediction.maps.cpu().numpy()
    seconds = (time.perf_counter() - start) / len(items)
    return [(score, anomaly_map, seconds) for score, anomaly_map in zip(scores, maps, strict=True)]


def _inputs(paths: tuple[str, ...]) -> tuple[Iterator[Item], int | None]:
    """Images to read, and their number where it is known; of standard input, a path a line, it is not."""
    if paths in ((), (STDIN,)):
        lines = (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        first = None if sys.stdin.isatty() else next(lines, None)
        if first is None:
            raise UsageError("predict needs images: give files or folders, or pipe paths into it, one a line")
        return _named((Path(line), Path(Path(line).name)) for line in chain([first], lines)), None
    found: list[tuple[Path, Path]] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = images_in(path, recursive=True)
            require_images(inside, path)
            found += [(one, one.relative_to(path)) for one in inside]
        elif path.exists():
            found.append((path, Path(path.name)))
        else:
            raise UsageError(f"no such file or folder: '{path}'")
    return _named(iter(found)), len(found)


def _named(pairs: Iterator[tuple[Path, Path]]) -> Iterator[Item]:
    """Items whose names differ: what is written for a.png and for another a.jpg must not be one file."""
    taken: dict[Path, int] = {}
    for path, name in pairs:
        stem = name.with_suffix("")
        taken[stem] = taken.get(stem, 0) + 1
        yield Item(str(path), stem if taken[stem] == 1 else stem.with_name(f"{stem.name}_{taken[stem]}"))


def _read_ahead(items: Iterator[Item], transform: ImageTransform, config: PredictConfig) -> Iterator[Item]:
    """The items with their pixels, in order; threads read a bounded number ahead."""
    draws_originals = config.full_size and config.map in ("overlay", "both")

    def read(item: Item) -> Item:
        try:
            image = read_image(Path(item.path), transform.reading)
        except DataError as error:
            return Item(item.path, item.name, error=str(error))
        original = np.asarray(image) if draws_originals else None
        return Item(item.path, item.name, transform.image(image), image.size, original)

    threads = ThreadPoolExecutor(max(config.num_workers, 1))
    ahead: deque[Future[Item]] = deque()
    try:
        for item in items:
            ahead.append(threads.submit(read, item))
            if len(ahead) >= 2 * config.batch_size:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def _write_pictures(
    config: PredictConfig,
    model: TrainedModel,
    item: Item,
    score: float,
    threshold: float,
    anomaly_map: NDArray[np.float32],
) -> None:
    if config.map == "none":
        return
    if config.full_size:
        anomaly_map = _full_size(anomaly_map, model.transform, item.size)
    if config.map in ("raw", "both"):
        path = config.out / "maps" / f"{item.name}.{config.raw_format}"
        write_bytes(path, _raw(anomaly_map, config.raw_format))
    if config.map in ("overlay", "both"):
        image = to_pixels(item.tensor) if item.original is None else item.original
        drawn = panel(image, None, anomaly_map, model.description.map_range)
        path = config.out / "overlays" / f"{item.name}.png"
        write_bytes(path, encoded(captioned(drawn, score, threshold), ".png"))


def _full_size(
    anomaly_map: NDArray[np.float32], transform: ImageTransform, size: tuple[int, int]
) -> NDArray[np.float32]:
    """The map at the width and height of the image; NaN where the network did not look, beyond the crop."""
    width, height = size
    left, top, right, bottom = transform.window(width, height)
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
def _rows(path: Path) -> Iterator[Callable[[list[list[Any]]], None]]:
    """A CSV that grows by whole rows; whatever ends the block, complete rows are in it and it is in its place."""
    temporary = partial(path)
    complete = 0
    with temporary.open("wb", buffering=0) as file:

        def write(rows: list[list[Any]]) -> None:
            nonlocal complete
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(rows)
            left = memoryview(text.getvalue().encode())
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError as error:
                raise cannot_write(path, error, len(left)) from error
            complete = file.tell()

        try:
            write([list(COLUMNS)])
            yield write
        finally:
            file.truncate(complete)
            os.replace(temporary, path)
