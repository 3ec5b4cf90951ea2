"""Tasks, done one after another in this process."""

from collections.abc import Generator, Mapping, Sequence
from functools import partial

import torch

import backbones
from backbones.host_memory import free_memory
from datasets import Kept
from errors import DataError
from experiment.machine.memory import one_line_when_full
from experiment.plan.task import FeatureKey, Task, group
from experiment.record.ledger import Outcome
from experiment.record.results import read_result
from experiment.train.banks import ClassBanks, banks_of
from experiment.train.light import learn_light
from experiment.train.train import train
from experiment.train.trained import test_trained

KEPT_SHARE = 0.25  # of free memory, for images that are embedded more than once


def work(
    tasks: Sequence[Task],
    sources: Mapping[FeatureKey, backbones.FeatureExtractor],
    device: torch.device,
    precision: torch.dtype,
) -> Generator[tuple[Task, Outcome], None, None]:
    """Do tasks, those of the same images together: these are decoded once, and embedded once for the same features.

    Args:
        tasks: to do; with --test, to evaluate what they left.
        sources: their backbones.
        device, precision: what to compute on, and in.

    Yields:
        Every task with its results, or what main.py shows the user.
    """
    for same in group(tasks):
        kept = Kept(int(KEPT_SHARE * free_memory())) if len(same) > 1 else None
        for shared in same:
            banks: list[ClassBanks] | None = None
            detector = light = None  # with the banks of the group before: their memory is let go first
            for task in shared:
                try:
                    if task.problem:
                        raise DataError(task.problem)
                    if not task.run.test and all(job.folder.exists() for job in task.jobs):  # by one that died since
                        yield task, [read_result(job.folder, job.name) for job in task.jobs]
                        continue
                    with one_line_when_full():
                        detector = task.build(sources[task.backbone], device, precision, light)
                        if light is None:
                            learn_light(task, detector, kept)
                            light = detector.light
                        if task.run.feature_bank != "off" and not detector.train_backbone and banks is None:
                            banks = banks_of(task, detector, kept)
                    own = None if detector.train_backbone else banks
                    if not task.run.test:
                        fresh = partial(task.build, sources[task.backbone], device, precision, light)
                        yield task, train(task, detector, own, fresh)
                        continue
                    parts = enumerate(zip(task.jobs, own or [None] * len(task.jobs), strict=True))
                    yield task, [test_trained(job, detector.for_part(i), task.run, one) for i, (job, one) in parts]
                except (DataError, OSError) as error:
                    yield task, error
