"""One job: train a detector for one class and backbone, evaluate it after every meta epoch, keep the last."""

import io
import json
import math
import os
import pickle
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from datasets import ClassSamples, read_defects
from detection import Detector, Training
from detection.checkpoint import DESCRIPTION, Description, Thresholds, backbone_digest, read_description, restore, save
from errors import DataError, UsageError, first_line
from experiment.config import PRECISIONS, DatasetConfig, JobName, RunConfig
from experiment.evaluation import Evaluation, evaluate, normal_thresholds
from experiment.features import ClassBanks, Predictions, TrainingEmbeddings
from experiment.memory import one_line_when_full
from experiment.pictures import write_segmentations, write_worst
from experiment.progress import progress
from experiment.provenance import flatten
from experiment.results import EPOCH, JobResult, read_result, without_nan, write_csv, write_result
from files import partial, write_bytes
from methods import DETECTORS

STATE = "state.pt"  # of training, while it lasts


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
    def label(self) -> str:
        """What its bar is called."""
        return f"{self.name.title} seed {self.seed}"

    @property
    def key(self) -> dict[str, Any]:
        """What names the job in the run's tables."""
        return {"class": self.name.title, "seed": self.name.seed}


def run_job(job: Job, detector: Detector, run: RunConfig, data: DatasetConfig, banks: ClassBanks | None) -> JobResult:
    """Train, evaluate and save one job, from where an interrupted process left it.

    Everything is written into a folder of a temporary name, which is renamed when the job is finished. The state of
    training is in it after every meta epoch.

    Args:
        job: what to train on what.
        detector: fresh, on the device to train on.
        run: how often to evaluate, which quantile the thresholds are, and whether all test images are drawn.
        data: how images are read.
        banks: the class's embeddings; None embeds the images in every pass.

    Raises:
        DataError: an image or mask that cannot be used, training that diverged, no memory or no room; the state after
            the last good meta epoch is kept and named.
    """
    samples = job.samples
    train = TrainingEmbeddings(detector, samples, data, job.seed, banks.train if banks else None)
    test = _test_predictions(detector, samples, data, banks)
    defects = read_defects(samples.test, samples.saturation, data.test_transform)
    folder = partial(job.folder)
    state = _read_state(folder / STATE)
    history: list[dict[str, Any]] = state["history"] if state else []
    evaluation: Evaluation | None = None
    kept = 0
    passes = detector.passes * len(train) + -(-detector.meta_epochs // run.eval_every) * len(test)
    try:
        with (
            one_line_when_full(),
            progress(job.label, total=passes) as bar,
            _board(folder, len(history)) as board,
        ):
            if state:
                bar.update(_done(detector, run, len(history), len(train), len(test)))
            training = _take_up(detector, train, _Counted(train, bar), folder / STATE, state)
            kept = len(history)
            for stats in training:
                values: dict[str, float] = {}
                if stats.meta_epoch % run.eval_every == 0 or stats.meta_epoch == detector.meta_epochs:
                    evaluation = evaluate(test, samples.test, defects, bar, test.on_disk)
                    values = evaluation.metrics
                    bar.set_postfix(loss=f"{stats.loss:.3f}", image_auroc=f"{values['image_auroc']:.4f}")
                history.append({**job.key, **stats.row, **values})
                for name, value in {**stats.row, **values}.items():
                    if name != "meta_epoch" and value == value:  # NaN: the metric does not exist
                        board.add_scalar(name, value, stats.meta_epoch)
                _write_state(folder / STATE, training, train, history)
                kept = stats.meta_epoch
            if evaluation is None:  # interrupted after the last meta epoch
                evaluation = evaluate(test, samples.test, defects, bar, test.on_disk)
            result = _finish(job, folder, detector, test, evaluation, history, run, data, banks)
    except (DataError, OSError) as error:
        reason = str(error) if isinstance(error, DataError) else f"'{folder}' cannot be written: {error.strerror}"
        where = f"; the state after meta epoch {kept} is in '{folder / STATE}'" if kept else ""
        raise DataError(reason + where) from error
    finally:
        if not (folder / STATE).exists():  # nothing to go on from
            shutil.rmtree(folder, ignore_errors=True)
    os.replace(folder, job.folder)
    (job.folder / STATE).unlink()
    return result


def _finish(
    job: Job,
    folder: Path,
    detector: Detector,
    test: Predictions,
    evaluation: Evaluation,
    history: list[dict[str, Any]],
    run: RunConfig,
    data: DatasetConfig,
    banks: ClassBanks | None,
) -> JobResult:
    """Write what a trained detector is kept as: the model, its predictions and pictures, and job.json."""
    description = Description(
        **job.identity,
        backbone_sha256=backbone_digest(detector),
        precision=str(detector.precision).removeprefix("torch."),
        thresholds=_thresholds(detector, job.samples, data, banks, run.threshold_quantile),
        map_range=evaluation.map_range,
        metrics=without_nan(evaluation.metrics),
    )
    save(folder, detector, description)
    written = _write_predictions(folder, job, test, evaluation, description, run.save_segmentation_images)
    best = max((row for row in history if "image_auroc" in row), key=_rank)
    best_row = {**job.key, **{name: best[name] for name in evaluation.metrics}, EPOCH: best["meta_epoch"]}
    return write_result(folder, JobResult({**job.key, **evaluation.metrics}, best_row, history), written)


def test_job(job: Job, detector: Detector, run: RunConfig, data: DatasetConfig, banks: ClassBanks | None) -> JobResult:
    """Evaluate what an earlier run trained, and write its predictions and pictures again.

    Args:
        job, run, data, banks: as for run_job; the model is in the job's folder.
        detector: built as the model was.

    Raises:
        DataError: an image, a mask or a model that cannot be used.
    """
    description = read_description(job.folder, DETECTORS)
    restore(detector, job.folder, description)
    samples, test = job.samples, _test_predictions(detector, job.samples, data, banks)
    defects = read_defects(samples.test, samples.saturation, data.test_transform)
    with one_line_when_full(), progress(job.label, total=len(test)) as bar:
        evaluation = evaluate(test, samples.test, defects, bar, test.on_disk)
    shutil.rmtree(job.folder / "examples", ignore_errors=True)  # other images may be the worst of other test images
    written = _write_predictions(job.folder, job, test, evaluation, description, run.save_segmentation_images)
    row = {**job.key, **evaluation.metrics}
    return write_result(job.folder, replace(read_result(job.folder, job.name), row=row), written)


@contextmanager
def _board(folder: Path, epochs: int) -> Iterator[SummaryWriter]:
    """TensorBoard's writer; of what an interrupted process wrote, the epochs that are repeated do not count."""
    shown = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not isinstance(failed.exc_value, OSError):  # a full disk: its thread prints it, and raises it here as well
            shown(failed)

    threading.excepthook = hook
    try:
        with SummaryWriter(str(folder), purge_step=epochs + 1 if epochs else None) as board:
            yield board
    finally:
        threading.excepthook = shown


def _done(detector: Detector, run: RunConfig, epochs: int, train: int, test: int) -> int:
    """Batches that were read in the first so many meta epochs."""
    evaluated = epochs // run.eval_every + (epochs == detector.meta_epochs and epochs % run.eval_every > 0)
    return detector.passes_after(epochs) * train + evaluated * test


def _write_state(path: Path, training: Training, train: TrainingEmbeddings, history: list[dict[str, Any]]) -> None:
    """Keep all that the next meta epoch depends on."""
    buffer = io.BytesIO()
    state = {"training": training.state_dict(), "order": train.order.state_dict(), "history": history}
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def _read_state(path: Path) -> dict[str, Any] | None:
    """What _write_state wrote, if it did.

    Raises:
        DataError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if len(state["history"]) != state["training"]["meta_epoch"]:
            raise ValueError("its history does not fit")
        return state
    except (OSError, RuntimeError, ValueError, TypeError, EOFError, LookupError, pickle.UnpicklingError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"'{path}' is damaged ({first_line(error)}): remove the folder '{path.parent}' to train it from its start"
    )


def _take_up(
    detector: Detector, train: TrainingEmbeddings, batches: "_Counted", path: Path, state: dict[str, Any] | None
) -> Training:
    """Training from its start, or from a state that _read_state returned.

    Raises:
        DataError: the state is not one of this job.
    """
    if state is None:
        return detector.training_on(batches)
    try:
        train.order.load_state_dict(state["order"])
        return detector.training_on(batches, state["training"])
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise _damaged(path, error) from error


def check_trained(job: Job, run: RunConfig) -> Description:
    """The description of the model in a job's folder, which must be that of the same command line.

    Raises:
        UsageError: no model there, or one of other options; what was found is listed.
    """
    if not (job.folder / DESCRIPTION).is_file():
        models = sorted(path.parent.name for path in job.folder.parent.glob(f"*/{DESCRIPTION}"))
        found = f"found {', '.join(models)}" if models else "found no model at all"
        raise UsageError(f"--test: no model of '{job.name.title}' in '{job.folder}': {found}; train it without --test")
    description = read_description(job.folder, DETECTORS)
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
    detector: Detector, samples: ClassSamples, data: DatasetConfig, banks: ClassBanks | None
) -> Predictions:
    return Predictions(detector, samples.test, data, banks.test if banks else None, banks.masks if banks else None)


def _thresholds(
    detector: Detector, samples: ClassSamples, data: DatasetConfig, banks: ClassBanks | None, quantile: float
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
) -> list[Path]:
    """predictions.csv and the pictures; colours and threshold are those of the model's description.

    Returns:
        What reports read of it.
    """
    samples, threshold = predictions.dataset.samples, description.thresholds.image
    names = [image_name(sample.image_path, job.root) for sample in samples]
    examples = write_worst(folder, predictions, evaluation, description.map_range)
    if save_segmentation_images:
        write_segmentations(folder, names, predictions, evaluation, description.map_range, threshold)
    table = {
        "image": names,
        "label": [int(sample.anomalous) for sample in samples],
        "defect_type": [sample.defect_type for sample in samples],
        "score": evaluation.scores,
        "decision": (evaluation.scores > threshold).astype(int),
        **predictions.branch_scores(),
    }
    write_csv(folder / "predictions.csv", pd.DataFrame(table), float_format="%.9g")
    return [folder / "predictions.csv", *examples]


def image_name(path: Path, root: Path) -> str:
    """How predictions.csv names an image: by its path below the dataset's root, one that lies elsewhere in full."""
    path, root = Path(os.path.abspath(path)), Path(os.path.abspath(root))  # noqa: PTH100 - resolve follows links
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


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
