"""One job: train a detector for one class and backbone, evaluate it after every meta epoch, keep the last."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from datasets import ClassSamples, read_defects
from errors import UsageError
from experiment.config import PRECISIONS, DatasetConfig, JobName, RunConfig
from experiment.evaluation import Evaluation, evaluate, normal_thresholds
from experiment.features import ClassBanks, Predictions, TrainingEmbeddings, progress
from experiment.pictures import write_segmentations, write_worst
from experiment.results import EPOCH, flatten, replacing_folder, write_csv
from simplenet import EpochStats, SimpleNet
from simplenet.checkpoint import DESCRIPTION, Description, Thresholds, backbone_digest, read_description, restore, save


@dataclass(frozen=True)
class Job:
    """What is trained on what.

    Attributes:
        name: what it is called in the run's tables.
        folder: where checkpoint, predictions, pictures and TensorBoard scalars go.
        samples: the class's images.
        root: the folder that predictions.csv names images from.
        seed: of weights, noise, image order and random transforms.
        identity: the part of the model's description that the command line decides.
    """

    name: JobName
    folder: Path
    samples: ClassSamples
    root: Path
    seed: int
    identity: dict[str, Any]

    @property
    def key(self) -> dict[str, Any]:
        """What names the job in the run's tables."""
        return {"class": self.name.title, "seed": self.name.seed}


@dataclass(frozen=True)
class JobResult:
    """What a job adds to the run's tables.

    Attributes:
        row: metrics of the last meta epoch.
        best_row: metrics of the evaluated meta epoch with the best image AUROC (ties by pixel AUROC), and its number.
        history: a row per meta epoch.
    """

    row: dict[str, Any]
    best_row: dict[str, Any]
    history: list[dict[str, Any]]


def run_job(job: Job, detector: SimpleNet, run: RunConfig, data: DatasetConfig, banks: ClassBanks | None) -> JobResult:
    """Train, evaluate and save one job.

    Args:
        job: what to train on what.
        detector: fresh, on the device to train on.
        run: how often to evaluate, which quantile the thresholds are, and whether all test images are drawn.
        data: how images are read.
        banks: the class's embeddings; None embeds the images in every pass.

    Raises:
        DataError: an image or mask that cannot be used, or training that diverged; nothing of the job is left.
    """
    torch.manual_seed(job.seed)  # random transforms draw from the global generator
    samples = job.samples
    train = TrainingEmbeddings(detector, samples, data, job.seed, banks.train if banks else None)
    test = _test_predictions(detector, samples, data, banks)
    defects = read_defects(samples.test, samples.saturation, data.test_transform) if samples.saturation else []
    history: list[dict[str, Any]] = []
    evaluations: list[Evaluation] = []
    steps = detector.passes * len(train) + -(-detector.meta_epochs // run.eval_every) * len(test)
    with (
        replacing_folder(job.folder) as folder,
        progress(f"{job.name.title} seed {job.seed}", total=steps) as bar,
        SummaryWriter(str(folder)) as board,
    ):

        def on_epoch(stats: EpochStats) -> None:
            values: dict[str, float] = {}
            if stats.meta_epoch % run.eval_every == 0 or stats.meta_epoch == detector.meta_epochs:
                evaluations[:] = [evaluate(test, samples.test, defects, bar)]
                values = evaluations[0].metrics
                bar.set_postfix(loss=f"{stats.loss:.3f}", image_auroc=f"{values['image_auroc']:.4f}")
            history.append({**job.key, **stats._asdict(), **values})
            for name, value in {**stats._asdict(), **values}.items():
                if name != "meta_epoch" and value == value:  # NaN: the metric does not exist
                    board.add_scalar(name, value, stats.meta_epoch)

        detector.fit_embeddings(_Counted(train, bar), on_epoch)
        evaluation = evaluations[0]
        thresholds = _thresholds(detector, samples, data, banks, run.threshold_quantile)
        description = Description(
            **job.identity,
            backbone_sha256=backbone_digest(detector),
            precision=str(detector.precision).removeprefix("torch."),
            thresholds=thresholds,
            map_range=evaluation.map_range,
            metrics={name: None if math.isnan(value) else value for name, value in evaluation.metrics.items()},
        )
        save(folder, detector, description)
        _write_predictions(folder, job, test, evaluation, description, run.save_segmentation_images)
    best = max((row for row in history if "image_auroc" in row), key=_rank)
    best_metrics = {name: best[name] for name in evaluation.metrics}
    row = {**job.key, **evaluation.metrics}
    return JobResult(row, {**job.key, **best_metrics, EPOCH: best["meta_epoch"]}, history)


def test_job(
    job: Job, detector: SimpleNet, run: RunConfig, data: DatasetConfig, banks: ClassBanks | None
) -> dict[str, Any]:
    """Evaluate what an earlier run trained, and write its predictions and pictures again.

    Args:
        job, run, data, banks: as for run_job; the model is in the job's folder.
        detector: built as the model was.

    Returns:
        Class, seed and metrics.

    Raises:
        DataError: an image, a mask or a model that cannot be used.
    """
    description = read_description(job.folder)
    restore(detector, job.folder, description)
    samples, test = job.samples, _test_predictions(detector, job.samples, data, banks)
    defects = read_defects(samples.test, samples.saturation, data.test_transform) if samples.saturation else []
    with progress(f"{job.name.title} seed {job.seed}", total=len(test)) as bar:
        evaluation = evaluate(test, samples.test, defects, bar)
    shutil.rmtree(job.folder / "examples", ignore_errors=True)  # other images may be the worst of other test images
    _write_predictions(job.folder, job, test, evaluation, description, run.save_segmentation_images)
    return {**job.key, **evaluation.metrics}


def check_trained(job: Job, run: RunConfig) -> Description:
    """The description of the model in a job's folder, which must be that of the same command line.

    Raises:
        UsageError: no model there, or one of other options; what was found is listed.
    """
    if not (job.folder / DESCRIPTION).is_file():
        models = sorted(path.parent.name for path in job.folder.parent.glob(f"*/{DESCRIPTION}"))
        found = f"found {', '.join(models)}" if models else "found no model at all"
        raise UsageError(f"--test: no model of '{job.name.title}' in '{job.folder}': {found}; train it without --test")
    description = read_description(job.folder)
    wanted = {**job.identity, "threshold_quantile": run.threshold_quantile}
    trained = {name: getattr(description, name, description.thresholds.quantile) for name in wanted}
    if run.precision != "auto":
        wanted["precision"] = str(PRECISIONS[run.precision]).removeprefix("torch.")
        trained["precision"] = description.precision
    theirs, ours = flatten(trained), flatten(json.loads(json.dumps(wanted, default=str)))
    differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if differing:
        shown = "; ".join(f"{name} {theirs.get(name, 'unset')}, not {ours.get(name, 'unset')}" for name in differing)
        raise UsageError(f"--test: the model in '{job.folder}' was trained with {shown}")
    return description


def _test_predictions(
    detector: SimpleNet, samples: ClassSamples, data: DatasetConfig, banks: ClassBanks | None
) -> Predictions:
    return Predictions(detector, samples.test, data, banks.test if banks else None, banks.masks if banks else None)


def _thresholds(
    detector: SimpleNet, samples: ClassSamples, data: DatasetConfig, banks: ClassBanks | None, quantile: float
) -> Thresholds:
    """From held-out normal images where there are any, else from the training images."""
    if samples.validation:
        source, normal, bank = "held-out normal images", samples.validation, None
    else:
        source, normal, bank = "training images", samples.train, banks.train if banks else None
    image, pixel = normal_thresholds(Predictions(detector, normal, data, bank), quantile)
    return Thresholds(image, pixel, quantile, source, len(normal))


def _write_predictions(
    folder: Path,
    job: Job,
    predictions: Predictions,
    evaluation: Evaluation,
    description: Description,
    save_segmentation_images: bool,
) -> None:
    """predictions.csv and the pictures; colours and threshold are those of the model's description."""
    samples, threshold = predictions.dataset.samples, description.thresholds.image
    names = [sample.image_path.relative_to(job.root).as_posix() for sample in samples]
    write_worst(folder, predictions, evaluation, description.map_range)
    if save_segmentation_images:
        write_segmentations(folder, names, predictions, evaluation, description.map_range, threshold)
    table = {
        "image": names,
        "label": [int(sample.anomalous) for sample in samples],
        "defect_type": [sample.defect_type for sample in samples],
        "score": evaluation.scores,
        "decision": (evaluation.scores > threshold).astype(int),
    }
    write_csv(folder / "predictions.csv", pd.DataFrame(table), float_format="%.9g")


def _rank(row: dict[str, Any]) -> tuple[float, float]:
    """Image AUROC, then pixel AUROC; one that does not exist decides nothing."""
    image, pixel = (0.0 if math.isnan(row[name]) else row[name] for name in ("image_auroc", "pixel_auroc"))
    return image, pixel


class _Counted:
    """Batches that advance a bar."""

    def __init__(self, batches: TrainingEmbeddings, bar: tqdm) -> None:
        self.batches = batches
        self.bar = bar

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            yield batch
            self.bar.update()
