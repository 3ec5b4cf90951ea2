"""Training of one model: on the classes of a task's jobs, evaluated between meta epochs, kept as it is at last."""

import functools
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from detection import Detector, Normal
from errors import DataError
from experiment.machine.allocator import kept_blocks
from experiment.machine.memory import one_line_when_full
from experiment.machine.progress import progress
from experiment.machine.usage import Peak, PeakMemory, Stopwatch
from experiment.plan.job import Job
from experiment.plan.task import Task
from experiment.record.folders import STATE
from experiment.record.inputs import Inputs
from experiment.record.results import JobResult
from experiment.train.banks import ClassBanks
from experiment.train.calibration import Trials, cross_validate
from experiment.train.costs import Spent
from experiment.train.embeddings import ClassFeatures, lessons_of
from experiment.train.evaluation import Evaluation, evaluate
from experiment.train.finish import finish
from experiment.train.state import Rows, read_state, take_up, write_state
from experiment.train.tiles import tiles_to_train_on
from files import move, partial

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

STATE_SECONDS = 120.0  # between two states of training, the most that an interruption costs: one may be of a gigabyte


def train(
    task: Task, detector: Detector, banks: Sequence[ClassBanks] | None, fresh: Callable[[], Detector]
) -> list[JobResult]:
    """Train one model on the classes of a task's jobs, evaluate it on each and save it for each.

    What an interrupted process left is taken up. Everything is written into folders of temporary names, which are
    renamed when the jobs are finished. The state of training is in the first, written after this process's first meta
    epoch and then every STATE_SECONDS.

    Args:
        task: the jobs; how often to evaluate, which quantile the thresholds are, whether their false alarms are
            counted, and whether all test images are drawn.
        detector: fresh, on the device to train on.
        banks: the embeddings of every class; None embeds the images in every pass.
        fresh: builds another detector like it.

    Raises:
        DataError: an image or mask that cannot be used, training that diverged, no memory or no room; the state that
            was written last is kept and named.
    """
    jobs, run = task.jobs, task.run
    classes = [
        ClassFeatures(job, detector.for_part(i), own, _chosen(job, own))
        for i, (job, own) in enumerate(zip(jobs, banks or [None] * len(jobs), strict=True))
    ]
    lessons = lessons_of(detector, classes)
    inputs = [Inputs.of(job.samples, job.root) for job in jobs]
    folders = [partial(job.folder) for job in jobs]
    path = folders[0] / STATE
    state = read_state(path, jobs, inputs)
    histories: list[Rows] = state["history"] if state else [[] for _ in jobs]
    evaluations: list[Evaluation | None] = [None] * len(jobs)
    done = kept = len(histories[0])
    written = -math.inf
    watch, memory = Stopwatch(detector.device, state["seconds"] if state else 0.0), PeakMemory(detector.device)
    try:
        with ExitStack() as stack:
            stack.enter_context(one_line_when_full())
            stack.enter_context(kept_blocks())
            batches = functools.partial(_batches, detector, lessons, classes, run.eval_every)
            bar = stack.enter_context(progress(task.label, total=batches(detector.meta_epochs)))
            boards = [stack.enter_context(_board(folder, done)) for folder in folders]
            if state:
                bar.update(batches(done))
            with watch:
                training = take_up(detector, lessons, bar, path, state)
            training.eval_every = run.eval_every
            for stats in watch.timed(training):
                for i, (own, board) in enumerate(zip(classes, boards, strict=True)):
                    row = stats.row
                    if training.is_evaluated:
                        evaluations[i] = None  # its maps are let go before there are new ones
                        evaluations[i] = evaluate(**own.test_set, bar=bar)
                        row = {**row, **evaluations[i].metrics}
                    histories[i].append({**jobs[i].key, **row})
                    for name, value in row.items():
                        if name != "meta_epoch" and value == value:  # NaN: the metric does not exist
                            board.add_scalar(name, value, stats.meta_epoch)
                if training.is_evaluated:
                    aurocs = " ".join(f"{rows[-1]['image_auroc']:.4f}" for rows in histories)
                    loss = {} if math.isnan(stats.loss) else {"loss": f"{stats.loss:.3f}"}
                    bar.set_postfix(**loss, image_auroc=aurocs)
                if time.monotonic() - written >= STATE_SECONDS:
                    write_state(path, training, lessons, histories, inputs, watch.seconds)
                    written, kept = time.monotonic(), stats.meta_epoch
            seconds = watch.seconds + sum(own.seconds for own in banks or ())
            spent = Spent(seconds, functools.reduce(or_, (own.peak for own in banks or ()), Peak()), memory)
            trials = _cross_validated(task, classes, fresh)
            results = []
            for i, own in enumerate(classes):
                if evaluations[i] is None:  # interrupted after the last meta epoch
                    evaluations[i] = evaluate(**own.test_set, bar=bar)
                kept_as = folders[i], own, evaluations[i], histories[i], inputs[i]
                results.append(finish(*kept_as, run, trials[i], spent, beside=folders[0] if i else None))
    except (DataError, OSError) as error:
        reason = str(error) if isinstance(error, DataError) else f"'{path.parent}' cannot be written: {error.strerror}"
        where = f"; the state after meta epoch {kept} is in '{path}'" if kept else ""
        raise DataError(reason + where) from error
    finally:
        if not path.exists():  # nothing to go on from
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
    for job, folder in zip(reversed(jobs), reversed(folders), strict=True):  # the first last: till then all is redone
        shutil.rmtree(job.folder, ignore_errors=True)  # of a process that died between two of them
        move(folder, job.folder)
    (jobs[0].folder / STATE).unlink()
    return results


def _chosen(job: Job, banks: ClassBanks | None) -> NDArray[np.bool_] | None:
    """Which tiles of a job's images are trained on."""
    return banks.chosen if banks else tiles_to_train_on(job.name.title, job.samples, job.data)


def _cross_validated(
    task: Task, classes: Sequence[ClassFeatures], fresh: Callable[[], Detector]
) -> list[Trials | None]:
    """Of each job whose thresholds are of training images, as far as --calibrate asks for it."""
    jobs, run = task.jobs, task.run
    is_asked = run.calibrate is not None and all(len(job.samples.train) > 1 for job in jobs)
    if not is_asked or all(job.samples.validation for job in jobs):
        return [None] * len(jobs)
    sets = [own.train for own in classes]
    return list(cross_validate(fresh, sets, jobs[0].seed, run.calibrate, run.threshold_quantile, task.label))


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


def _batches(
    detector: Detector, lessons: Sequence[Normal], classes: Sequence[ClassFeatures], eval_every: int, epochs: int
) -> int:
    """How many are read in the first so many meta epochs."""
    evaluated = epochs // eval_every + (epochs == detector.meta_epochs and epochs % eval_every > 0)
    learned = sum(detector.passes_of(len(own.held_out) > 0).after(epochs) * len(own.train) for own in lessons)
    return learned + evaluated * sum(len(own.test) for own in classes)
