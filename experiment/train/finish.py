"""What a trained model is kept as: its folder with model.json, predictions.csv, pictures and job.json."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from datasets import ClassSamples, read_interest
from detection import is_anomalous
from detection.brightness import Outside, like
from detection.checkpoint import backbone_digest, save
from detection.decision import SURE, Thresholds
from detection.description import Description
from detection.normal_scores import NormalScores
from experiment.config import RunConfig
from experiment.plan.job import Job
from experiment.record.cost import write_cost
from experiment.record.data import image_name
from experiment.record.inputs import Inputs
from experiment.record.pixels import PIXELS, write_pixels
from experiment.record.results import EPOCH, JobResult, without_nan, write_result
from experiment.record.sheets import write_csv
from experiment.train.calibration import Trials
from experiment.train.costs import Spent, cost_of
from experiment.train.drawings import write_segmentations, write_worst
from experiment.train.embeddings import ClassFeatures, Predictions
from experiment.train.evaluation import Evaluation, image_threshold, scores_of
from experiment.train.state import Rows
from late import pandas as pd
from metrics import DECISION_METRICS, count_pixels, decision_metrics, pixel_decision_metrics


def finish(
    folder: Path,
    features: ClassFeatures,
    evaluation: Evaluation,
    history: Rows,
    inputs: Inputs,
    run: RunConfig,
    trials: Trials | None,
    spent: Spent,
    beside: Path | None,
) -> JobResult:
    """Write the model of a job into a folder, with its predictions and pictures, what it cost, and job.json.

    `beside` is the folder of another job that has the same model, if there is one.
    """
    job, detector = features.job, features.detector
    description = Description(
        **job.identity,
        backbone_sha256=backbone_digest(detector),
        precision=str(detector.precision).removeprefix("torch."),
        thresholds=thresholds_of(job.samples, features.normal, run.threshold_quantile, trials),
        map_range=evaluation.map_range,
        metrics=without_nan(evaluation.metrics),
        image_sizes=job.sizes,
    )
    mask = read_interest(job.data.mask_of_interest) if description.keeps_mask else None
    save(folder, detector, description, mask, beside)
    written = write_predictions(folder, job, features.test, evaluation, description, run.save_segmentation_images)
    write_cost(folder, cost_of(features, description.thresholds.image, spent))
    best = max((row for row in history if "image_auroc" in row), key=_rank)
    values = {name: best.get(name, math.nan) for name in evaluation.metrics}  # an earlier version's may lack one
    best_row = {**job.key, **values, EPOCH: best["meta_epoch"]}
    outside = outside_of(features.test, description.thresholds)
    result = JobResult(row_of(job, evaluation, description), best_row, history, inputs=inputs, outside=outside)
    return write_result(folder, result, written)


def row_of(job: Job, evaluation: Evaluation, description: Description) -> dict[str, Any]:
    """A job's row of results.csv."""
    thresholds, values = description.thresholds, dict.fromkeys(DECISION_METRICS, math.nan)
    anomalous = [sample.anomalous for sample in job.samples.test]
    values |= decision_metrics(anomalous, is_anomalous(evaluation.scores, thresholds.image))
    if evaluation.masks is not None:
        looked_at = evaluation.masks & ~np.isnan(evaluation.maps)
        values |= pixel_decision_metrics(looked_at, is_anomalous(evaluation.maps, thresholds.pixel))
    return {**job.key, **evaluation.metrics, **values}


def thresholds_of(samples: ClassSamples, normal: Predictions, quantile: float, trials: Trials | None) -> Thresholds:
    """The thresholds of a model.

    Args:
        samples: of its class.
        normal: predictions of the held-out ones where there are any, else of those that it was trained on.
        quantile: of their scores.
        trials: what cross-validation says of thresholds of training images; None: what they themselves say, predicted
            as new.
    """
    source = f"{'held-out normal' if samples.validation else 'training'} {samples.kind}s"
    scores, pixel = scores_of(normal, quantile)
    image = image_threshold(scores, quantile)
    if trials is None and normal.as_new:
        trials = Trials(int(is_anomalous(scores, image).sum()), len(scores))
    counted = {} if trials is None or samples.validation else trials._asdict()
    is_matched = normal.detector.light is not None  # whatever light images are in
    brightness = None if is_matched else like(normal.brightness, SURE)
    kept = NormalScores.of(scores)
    return Thresholds(
        image,
        pixel,
        quantile,
        source,
        len(scores),
        **counted,
        brightness=brightness,
        scores=kept.kept,
        tail=kept.tail,
    )


def outside_of(test: Predictions, thresholds: Thresholds) -> Outside | None:
    """Of the normal test images, which were predicted, those too dark or too bright for what thresholds promise."""
    if thresholds.outside is None:
        return None
    normal = [not sample.anomalous for sample in test.dataset.samples]
    return thresholds.outside.with_images(test.brightness[normal])


def write_predictions(
    folder: Path,
    job: Job,
    predictions: Predictions,
    evaluation: Evaluation,
    description: Description,
    save_segmentation_images: bool,
) -> list[Path]:
    """predictions.csv, pixels.npz and, of images, the pictures; colours and threshold are those of the model's
    description.

    Returns:
        What reports read of it.
    """
    samples, threshold = predictions.dataset.samples, description.thresholds.image
    names = [image_name(sample.image_path, job.root) for sample in samples]
    has_pictures = job.samples.kind == "image"
    examples = write_worst(folder, predictions, evaluation, description.map_range) if has_pictures else []
    if save_segmentation_images and has_pictures:
        write_segmentations(folder, names, predictions, evaluation, description.map_range, threshold)
    table = {
        "image": names,
        "label": [int(sample.anomalous) for sample in samples],
        "defect_type": [sample.defect_type for sample in samples],
        "score": evaluation.scores,
        "decision": is_anomalous(evaluation.scores, threshold).astype(int),
        **evaluation.terms,
    }
    write_csv(folder / "predictions.csv", pd.DataFrame(table), float_format="%.9g")
    counts, masks, maps = None, evaluation.masks, evaluation.maps
    if masks is not None:
        called = is_anomalous(maps, description.thresholds.pixel)
        counts = count_pixels(masks, maps, evaluation.regions, called)
    if counts is not None:
        write_pixels(folder / PIXELS, counts)
    return [folder / "predictions.csv", *([] if counts is None else [folder / PIXELS]), *examples]


def _rank(row: dict[str, Any]) -> tuple[float, float]:
    """Image AUROC, then pixel AUROC; one that does not exist decides nothing."""
    image, pixel = (0.0 if math.isnan(row[name]) else row[name] for name in ("image_auroc", "pixel_auroc"))
    return image, pixel
