"""Predict one's own images with a trained model: a stream of paths in, rows and pictures out."""

import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import click
import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from datasets import reader_count
from detection import Prediction, TrainedModel, is_anomalous
from detection.precision import precision_name
from detection.whole_images import stitched
from errors import DataError, Interrupted
from experiment.machine.allocator import kept_blocks
from experiment.machine.device import choose_device, choose_precision
from experiment.machine.memory import Halving, is_out_of_memory, one_line_when_full
from experiment.machine.progress import progress
from experiment.model_config import OF_IMAGES, PredictConfig
from experiment.record.sheets import quote_formula
from experiment.show.pictures import captioned, encoded, panel
from experiment.use.arrivals import watched
from experiment.use.folder import (
    COLUMNS,
    LATENCY,
    MAPS,
    OVERLAYS,
    SECONDS,
    TABLE,
    WITH_REGIONS,
    check_free,
    own_folder,
)
from experiment.use.growing import appending, csv_lines, growing
from experiment.use.inputs import Inputs, Item, allowing, images_at_once, read_ahead
from experiment.use.interest import masks_for
from experiment.use.latency import Latency, warm_up
from experiment.use.maps import full_size, raw
from experiment.use.normal import among_normal, class_said, normal_said
from experiment.use.region_files import RegionFiles, region_files, region_pictures
from experiment.use.regions import Regions, find_regions
from experiment.use.rows import predict_tables
from experiment.use.telling import telling
from experiment.use.unused import refuse_of_images, refuse_of_maps, refuse_unused, refuse_unused_weights
from files import readable, write_bytes
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
    inputs = Inputs(config.paths) if config.watch is None else None
    check_free(config.out)
    with one_line_when_full(ADVICE), kept_blocks():
        device = choose_device((config.gpu,))
        model = load(config.model_dir, device, config.backbone_weights)
        refuse_unused_weights(model, config.backbone_weights)
        if model.table is not None:
            refuse_of_images(config)
        if not model.description.draws_maps:
            refuse_of_maps(config)
        choose_precision(precision_name(model.description.dtype), device)  # TF32 as in training
        if said := class_said(model.description):
            click.echo(said, err=True)
        threshold = model.thresholds.image if config.threshold is None else config.threshold
        with own_folder(config.out, goes_on=config.watch is not None):
            if model.table is not None:
                code = predict_tables(model, [(Path(item.path), item.name) for item in inputs], threshold, config.out)
                _say_false_alarms(config, model)
                return code
            unset = {name: value for name, value in OF_IMAGES.items() if getattr(config, name) is None}
            if config.watch is not None:
                unset["batch_size"] = 1
            return _predict_images(replace(config, **unset), model, inputs, threshold)


def _predict_images(config: PredictConfig, model: TrainedModel, inputs: Inputs | None, threshold: float) -> int:
    """Predict the images of `inputs`; None: those that come into the folder that is watched."""
    counts: Counter[str] = Counter()
    outside, normal = model.thresholds.outside, model.thresholds.normal
    latency = Latency(model.detector) if config.latency else None
    score = Halving((latency or model.detector).predict_read, "prediction", Prediction.joined, ADVICE)
    draws_originals = config.full_size and config.map in ("overlay", "both")
    transform = allowing(model.transform, config.max_pixels)
    warm_up(model, config.warm_up, config.batch_size)
    mask_of = masks_for(model, config.model_dir, config.mask_of_interest)
    at_once, ahead = images_at_once(model.tiling, config.batch_size)
    if inputs is None:
        table, stream = appending, watched(config.watch, config.out, transform, draws_originals, mask_of)
    else:
        table, threads = growing, reader_count(config.num_workers)
        stream = read_ahead(iter(inputs), transform, threads, ahead, draws_originals, mask_of)
    columns = (*(WITH_REGIONS if config.regions else COLUMNS), *(LATENCY if config.latency else ()))
    tell = telling(config.stream, columns)
    with (
        suppress(*([Interrupted] if inputs is None else [])),  # what is watched has no other end
        table(config.out / TABLE, csv_lines([columns])) as write,
        region_files(config) as regions,
        progress("predict", total=inputs and inputs.total, unit="image") as bar,
    ):
        while batch := list(islice(stream, at_once)):
            read = [item.tensor for item in batch if not item.error]
            outside = outside and outside.with_images([item.brightness for item in batch if not item.error])
            start = time.perf_counter()
            tiles = model.tiling.batches(torch.stack(read), config.batch_size) if read else ()
            prediction = Prediction.joined([*stitched(map(score, tiles), model.tiling)] or [NOTHING])
            scores = prediction.scores.tolist()
            counts["beyond"] += normal.beyond(scores) if normal else 0
            maps = prediction.maps.cpu().numpy() if model.description.draws_maps else [None] * len(scores)
            took = {SECONDS: f"{(time.perf_counter() - start) / max(len(read), 1):.4f}"}
            if latency is not None:
                parts = (f"{1000 * own / max(len(read), 1):.3f}" for own in latency.taken())
                took |= dict(zip(LATENCY[1:], parts, strict=True))
            results = zip(scores, maps, strict=True)
            rows: list[list[str]] = []
            try:
                for item in batch:
                    row = dict.fromkeys(columns, "") | {"path": quote_formula(item.path)}
                    rows.append(row)
                    error = item.error or _predict_one(
                        config, model, item, threshold, row, regions, took, *next(results)
                    )
                    if error:
                        row["error"] = quote_formula(error)
                        bar.clear()
                        click.echo(f"Error: {readable(error)}", err=True)
                    counts["broken" if not row["score"] else "anomalous" if row["decision"] == "1" else "normal"] += 1
                    counts["errors"] += bool(error)
            finally:  # also of pictures that were written before something else went wrong
                done = [row for row in rows if row["score"] or row["error"]]
                write(csv_lines(row.values() for row in done))
                regions.write()
                tell(done)
            bar.update(len(batch))
    found = ", ".join(f"{counts[name]} {name}" for name in ("anomalous", "normal", "broken") if counts[name])
    click.echo(f"{found or 'nothing'} at threshold {threshold:.4g}; written to {config.out}", err=True)
    _say_false_alarms(config, model, outside.sentence("images") if outside else "")
    click.echo(normal_said(model.thresholds, counts["beyond"]), err=True)
    if inputs and inputs.said:
        click.echo(inputs.said, err=True)
    return 1 if counts["errors"] else 0


def _say_false_alarms(config: PredictConfig, model: TrainedModel, note: str = "") -> None:
    """Of the model's own threshold, beside a note on the images' light; of another nothing is known but that."""
    if said := model.thresholds.said_beside(note) if config.threshold is None else note:
        click.echo(said, err=True)


def _predict_one(
    config: PredictConfig,
    model: TrainedModel,
    item: Item,
    threshold: float,
    row: dict[str, str],
    files: RegionFiles,
    took: dict[str, str],
    score: float,
    anomaly_map: NDArray[np.float32] | None,
) -> str:
    """Fill an image's row and write its pictures; what is wrong with those, or nothing."""
    row |= {"score": f"{score:.9g}", "decision": str(int(is_anomalous(score, threshold)))} | took
    if config.latency:
        row[LATENCY[0]] = f"{1000 * item.seconds:.3f}"
    if model.thresholds.normal:
        row["percentile"], row["p_value"] = among_normal(model.thresholds.normal.p_values(score).item())
    try:
        regions = _regions(config, model, item, anomaly_map) if config.regions else None
        drawn = _pictures(config, model, item, score, threshold, anomaly_map, regions)
        if regions is not None:
            row["regions"] = str(len(regions.found))
            drawn += region_pictures(config, item, regions)
            files.take(item, regions)
    except DataError as error:
        return f"'{item.path}' was scored, but {error}"
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


def _regions(config: PredictConfig, model: TrainedModel, item: Item, anomaly_map: NDArray[np.float32]) -> Regions:
    """The regions of an image, in its own pixels.

    Raises:
        DataError: as full_size.
    """
    threshold = model.thresholds.pixel if config.pixel_threshold is None else config.pixel_threshold
    whole = full_size(anomaly_map, model.transform, item.size)
    return find_regions(whole, model.transform, threshold, config.min_area or 1)


def _pictures(
    config: PredictConfig,
    model: TrainedModel,
    item: Item,
    score: float,
    threshold: float,
    anomaly_map: NDArray[np.float32] | None,
    regions: Regions | None,
) -> list[tuple[str, str, bytes]]:
    """Of every file that is written for an image its column in the table, its name and its content.

    Raises:
        DataError: the network saw less than a pixel of the image.
    """
    if config.map == "none":
        return []
    drawn = []
    if config.full_size:
        anomaly_map = full_size(anomaly_map, model.transform, item.size)
    if config.map in ("overlay", "both"):
        image = item.tensor[:3].permute(1, 2, 0).numpy() if item.original is None else item.original
        outlined = regions and (regions.mask if config.full_size else regions.seen(len(image)))
        picture = panel(image, None, anomaly_map, model.description.map_range, outlined)
        picture = captioned(picture, score, threshold)  # under one name: large ones are not kept
        drawn.append(("picture", f"{OVERLAYS}/{item.name}.png", encoded(picture, ".png")))
        del picture
    if config.map in ("raw", "both"):
        name = f"{MAPS}/{item.name}.{config.raw_format}"
        drawn.append(("map", name, raw(anomaly_map, config.raw_format)))
    return drawn
