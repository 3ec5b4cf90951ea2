"""Jobs: train a detector for a class and backbone, or for several classes together, evaluate it after every meta
epoch, and keep the last."""

import io
import json
import math
import os
import pickle
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from datasets import ClassSamples, read_defects, region_labels
from detection import Detector, Training
from detection.checkpoint import DESCRIPTION, Description, Thresholds, backbone_digest, read_description, restore, save
from errors import DataError, UsageError, first_line
from experiment.config import PRECISIONS, DatasetConfig, JobName, RunConfig
from experiment.evaluation import Evaluation, decision_metrics, evaluate, normal_thresholds
from experiment.features import ClassBanks, HeldOut, Predictions, TrainingEmbeddings
from experiment.inputs import Inputs
from experiment.memory import one_line_when_full
from experiment.pictures import write_segmentations, write_worst
from experiment.progress import progress
from experiment.provenance import flatten
from experiment.results import EPOCH, JobResult, read_result, without_nan, write_csv, write_result
from files import move, partial, write_bytes
from late import pandas as pd
from methods import DETECTORS

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

STATE = "state.pt"  # of training, while it lasts


@dataclass(frozen=True)
class Job:
    """What is trained on what.

    Attributes:
        name: what it is called in the run's tables.
        folder: where checkpoint, predictions, pictures and TensorBoard scalars go.
        samples: the class's images or rows.
        data: how they are read.
        root: the folder that predictions.csv names images from.
        seed: of weights, noise, image order and random transforms.
        identity: the part of the model's description that the command line decides.
    """

    name: JobName
    folder: Path
    samples: ClassSamples
    data: DatasetConfig
    root: Path
    seed: int
    identity: dict[str, Any]

    @property
    def key(self) -> dict[str, Any]:
        """What names the job in the run's tables."""
        return {"class": self.name.title, "seed": self.name.seed}


class _Part:
    """A job within the training of its model: what it is trained and tested on, and what is known of it so far.

    Args:
        job: what is trained on what.
        detector: as it embeds and predicts this job's class.
        banks: the class's embeddings; None embeds the images in every pass.
    """

    def __init__(self, job: Job, detector: Detector, banks: ClassBanks | None) -> None:
        self.job = job
        self.detector = detector
        self.banks = banks
        self.train = TrainingEmbeddings(detector, job.samples, job.data, job.seed, banks.train if banks else None)
        held_out = Predictions(detector, job.samples.validation, job.data, banks.validation if banks else None)
        self.held_out = HeldOut(held_out)
        self.test = _test_predictions(job, detector, banks)
        self.defects = read_defects(job.samples.test, job.samples.saturation, job.data.test_transform)
        self.inputs = Inputs.of(job.samples, job.root)
        self.regions = _regions(job, banks)
        self.history: list[dict[str, Any]] = []
        self.evaluation: Evaluation | None = None

    @property
    def folder(self) -> Path:
        """Where everything is written until the job is finished."""
        return partial(self.job.folder)

    def evaluate(self, bar: tqdm) -> dict[str, float]:
        """Predict the test images; their metrics."""
        samples = self.job.samples.test
        self.evaluation = evaluate(self.test, samples, self.defects, bar, self.test.on_disk, self.regions)
        return self.evaluation.metrics


def run_jobs(
    jobs: Sequence[Job], detector: Detector, run: RunConfig, banks: Sequence[ClassBanks] | None
) -> list[JobResult]:
    """Train one model on the classes of some jobs, evaluate it on each and save it for each.

    What an interrupted process left is taken up. Everything is written into folders of temporary names, which are
    renamed when the jobs are finished. The state of training is in all of them after every meta epoch, and read of the
    first.

    Args:
        jobs: what to train on what; several of a JOINT detector, else one.
        detector: fresh, on the device to train on.
        run: how often to evaluate, which quantile the thresholds are, and whether all test images are drawn.
        banks: the embeddings of every class; None embeds the images in every pass.

    Raises:
        DataError: an image or mask that cannot be used, training that diverged, no memory or no room; the state after
            the last good meta epoch is kept and named.
    """
    parts = [
        _Part(job, detector.for_part(i), own)
        for i, (job, own) in enumerate(zip(jobs, banks or [None] * len(jobs), strict=True))
    ]
    path = parts[0].folder / STATE
    state = _read_state(path, parts)
    for part, rows in zip(parts, state["history"] if state else [[] for _ in parts], strict=True):
        part.history = rows
    train, test = (sum(map(len, (getattr(part, name) for part in parts))) for name in ("train", "test"))
    passes = detector.passes * train + -(-detector.meta_epochs // run.eval_every) * test
    done = kept = len(parts[0].history)
    try:
        with ExitStack() as stack:
            stack.enter_context(one_line_when_full())
            bar = stack.enter_context(progress(label_of(jobs), total=passes))
            boards = [stack.enter_context(_board(part.folder, done)) for part in parts]
            if state:
                bar.update(_done(detector, run, done, train, test))
            training = _take_up(detector, parts, bar, path, state)
            for stats in training:
                is_evaluated = stats.meta_epoch % run.eval_every == 0 or training.finished
                for part, board in zip(parts, boards, strict=True):
                    values = part.evaluate(bar) if is_evaluated else {}
                    part.history.append({**part.job.key, **stats.row, **values})
                    for name, value in {**stats.row, **values}.items():
                        if name != "meta_epoch" and value == value:  # NaN: the metric does not exist
                            board.add_scalar(name, value, stats.meta_epoch)
                if is_evaluated:
                    aurocs = " ".join(f"{part.history[-1]['image_auroc']:.4f}" for part in parts)
                    bar.set_postfix(loss=f"{stats.loss:.3f}", image_auroc=aurocs)
                _write_state(training, parts)
                kept = stats.meta_epoch
            results = [_finish(part, run, bar) for part in parts]
    except (DataError, OSError) as error:
        reason = str(error) if isinstance(error, DataError) else f"'{path.parent}' cannot be written: {error.strerror}"
        where = f"; the state after meta epoch {kept} is in '{path}'" if kept else ""
        raise DataError(reason + where) from error
    finally:
        if not path.exists():  # nothing to go on from
            for part in parts:
                shutil.rmtree(part.folder, ignore_errors=True)
    for part in reversed(parts):  # the first folder last: until then all can be made again
        shutil.rmtree(part.job.folder, ignore_errors=True)  # of a process that died between two of them
        move(part.folder, part.job.folder)
        (part.job.folder / STATE).unlink()
    return results


def label_of(jobs: Sequence[Job]) -> str:
    """What the bar of jobs that train one model is called."""
    return f"{' + '.join(job.name.title for job in jobs)} seed {jobs[0].name.seed}"


def _finish(part: _Part, run: RunConfig, bar: tqdm) -> JobResult:
    """Write what a trained detector is kept as: the model, its predictions and pictures, and job.json."""
    job, detector = part.job, part.detector
    if part.evaluation is None:  # interrupted after the last meta epoch
        part.evaluate(bar)
    evaluation = part.evaluation
    description = Description(
        **job.identity,
        backbone_sha256=backbone_digest(detector),
        precision=str(detector.precision).removeprefix("torch."),
        thresholds=_thresholds(part, run.threshold_quantile),
        map_range=evaluation.map_range,
        metrics=without_nan(evaluation.metrics),
    )
    save(part.folder, detector, description)
    written = _write_predictions(part.folder, job, part.test, evaluation, description, run.save_segmentation_images)
    best = max((row for row in part.history if "image_auroc" in row), key=_rank)
    best_row = {**job.key, **{name: best[name] for name in evaluation.metrics}, EPOCH: best["meta_epoch"]}
    return write_result(
        part.folder, JobResult(_row(job, evaluation, description), best_row, part.history, inputs=part.inputs), written
    )


def _row(job: Job, evaluation: Evaluation, description: Description) -> dict[str, Any]:
    """A job's row of results.csv."""
    anomalous = [sample.anomalous for sample in job.samples.test]
    decisions = decision_metrics(anomalous, evaluation.scores > description.thresholds.image)
    return {**job.key, **evaluation.metrics, **decisions}


def test_job(job: Job, detector: Detector, run: RunConfig, banks: ClassBanks | None) -> JobResult:
    """Evaluate what an earlier run trained, and write its predictions and pictures again.

    Args:
        job: whose folder holds the model.
        detector: built as the model was, for this job's part of it.
        run, banks: as for run_jobs.

    Raises:
        DataError: an image, a mask or a model that cannot be used.
    """
    description = read_description(job.folder, DETECTORS)
    restore(detector, job.folder, description)
    samples, test = job.samples, _test_predictions(job, detector, banks)
    defects = read_defects(samples.test, samples.saturation, job.data.test_transform)
    regions = _regions(job, banks)
    with one_line_when_full(), progress(label_of([job]), total=len(test)) as bar:
        evaluation = evaluate(test, samples.test, defects, bar, test.on_disk, regions)
    shutil.rmtree(job.folder / "examples", ignore_errors=True)  # other images may be the worst of other test images
    written = _write_predictions(job.folder, job, test, evaluation, description, run.save_segmentation_images)
    row = _row(job, evaluation, description)
    return write_result(job.folder, replace(read_result(job.folder, job.name), row=row), written)


@contextmanager
def _board(folder: Path, epochs: int) -> Iterator["SummaryWriter"]:
    """TensorBoard's writer; of what an interrupted process wrote, the epochs that are repeated do not count."""
    from torch.utils.tensorboard import SummaryWriter  # late: nothing is written before training

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


def _write_state(training: Training, parts: Sequence[_Part]) -> None:
    """Keep all that the next meta epoch depends on, in every folder that is to be gone on with; the first last."""
    buffer = io.BytesIO()
    state = {
        "training": training.state_dict(),
        "orders": [part.train.order.state_dict() for part in parts],
        "history": [part.history for part in parts],
        "inputs": [part.inputs.content for part in parts],
    }
    torch.save(state, buffer)
    for part in reversed(parts):
        write_bytes(part.folder / STATE, buffer.getvalue())


def _read_state(path: Path, parts: Sequence[_Part]) -> dict[str, Any] | None:
    """What _write_state wrote of parts, if it did.

    Raises:
        DataError: it is damaged, or of other images.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if [len(rows) for rows in state["history"]] != [state["training"]["meta_epoch"]] * len(parts):
            raise ValueError("its history does not fit")
        inputs = state.get("inputs")  # earlier versions did not know them
    except (OSError, RuntimeError, ValueError, TypeError, EOFError, LookupError, pickle.UnpicklingError) as error:
        raise _damaged(path, error) from error
    if inputs is not None and inputs != [part.inputs.content for part in parts]:
        roots = " or ".join(dict.fromkeys(f"'{part.job.root}'" for part in parts))
        raise DataError(
            f"training in '{path.parent}' began with other images than those that are now in {roots}: remove that "
            "folder to train it from its start, or choose another --run_name"
        )
    return state


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"'{path}' is damaged ({first_line(error)}): remove the folder '{path.parent}' to train it from its start"
    )


def _take_up(
    detector: Detector, parts: Sequence[_Part], bar: tqdm, path: Path, state: dict[str, Any] | None
) -> Training:
    """Training from its start, or from a state that _read_state returned.

    Raises:
        DataError: the state is not one of these jobs.
    """
    batches, held_out = [_Counted(part.train, bar) for part in parts], [part.held_out for part in parts]
    if state is None:
        return detector.training_of(batches, held_out)
    try:
        for part, order in zip(parts, state["orders"], strict=True):
            part.train.order.load_state_dict(order)
        return detector.training_of(batches, held_out, state["training"])
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
    if all(Path(both["backbone.weights"]).suffix for both in (theirs, ours)):  # files, whose content restore compares
        ours["backbone.weights"] = theirs["backbone.weights"]
    differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if differing:
        shown = "; ".join(
            f"{name} {_short(theirs.get(name, 'unset'))}, not {_short(ours.get(name, 'unset'))}" for name in differing
        )
        raise UsageError(f"--test: the model in '{job.folder}' was trained with {shown}")
    return description


def _short(value: str) -> str:
    return value if len(value) <= 80 else f"{value[:77]}..."


def _test_predictions(job: Job, detector: Detector, banks: ClassBanks | None) -> Predictions:
    bank, masks = (banks.test, banks.masks) if banks else (None, None)
    return Predictions(detector, job.samples.test, job.data, bank, masks, job.name.title)


def _regions(job: Job, banks: ClassBanks | None) -> NDArray[np.integer]:
    """Of the defective pixels of a job's test images; read once for all jobs that share banks."""
    return banks.regions if banks else region_labels(job.samples.test, job.data.test_transform)


def _thresholds(part: _Part, quantile: float) -> Thresholds:
    """From held-out normal images where there are any, else from the training images."""
    samples, banks = part.job.samples, part.banks
    if samples.validation:
        source, predictions = "held-out normal", part.held_out.predictions
    else:
        train = banks.train if banks else None
        source, predictions = "training", Predictions(part.detector, samples.train, part.job.data, train)
    image, pixel = normal_thresholds(predictions, quantile)
    return Thresholds(image, pixel, quantile, f"{source} {samples.kind}s", len(predictions.dataset))


def _write_predictions(
    folder: Path,
    job: Job,
    predictions: Predictions,
    evaluation: Evaluation,
    description: Description,
    save_segmentation_images: bool,
) -> list[Path]:
    """predictions.csv and, of images, the pictures; colours and threshold are those of the model's description.

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
