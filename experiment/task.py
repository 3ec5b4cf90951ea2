"""Jobs in the order that embeds every image once: those that read the same features, one after the other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import backbones
from detection import Detector
from errors import DataError
from experiment.config import DatasetConfig, DetectorConfig, RunConfig
from experiment.features import EMBED_BATCH, ClassBanks, build_banks
from experiment.job import Job, run_job, test_job
from experiment.memory import one_line_when_full
from experiment.results import JobResult, read_result
from methods import DETECTORS

Outcome = JobResult | DataError | OSError  # what a job gave, or what main.py shows the user
FeatureKey = tuple[str, str, tuple[str, ...], int, int | None]


@dataclass(frozen=True)
class Task:
    """A job, and the command line that it is of.

    Attributes:
        job: what is trained on what.
        run, detector, data: of its run.
        problem: why the class cannot be read, where --on_error skip goes on without it.
    """

    job: Job
    run: RunConfig
    detector: DetectorConfig
    data: DatasetConfig
    problem: str | None = None

    @property
    def backbone(self) -> FeatureKey:
        """What decides the backbone's maps: name, weights, layers, image size and, of random weights, the seed."""
        own, weights = self.detector.backbones[self.job.name.backbone], self.detector.backbone_weights
        seed = own.seed_in(self.job.name.seed) if weights == "random" else None
        return own.name, weights, own.layers, self.data.imagesize, seed

    @property
    def features(self) -> tuple[Any, ...]:
        """What the job's patch embeddings depend on; jobs in which it is equal share them."""
        names = DETECTORS[self.detector.command].EMBEDDING_OPTIONS
        read = replace(self.data, subdatasets=(), num_workers=0, batch_size=max(EMBED_BATCH, self.data.batch_size))
        return (self.job.name.class_name, self.backbone, *(self.detector.options[name] for name in names), read)

    def build(self, source: backbones.FeatureExtractor, device: torch.device, precision: torch.dtype) -> Detector:
        """The detector, fresh."""
        backbone = self.detector.backbones[self.job.name.backbone]
        kind, options = DETECTORS[self.detector.command], self.detector.options
        size = (self.data.imagesize, self.data.imagesize)
        return kind(source, backbone.layers, size, seed=self.job.seed, precision=precision, **options).to(device)


def group(tasks: Sequence[Task]) -> list[list[Task]]:
    """Tasks that share their features together, otherwise in order."""
    groups: dict[tuple[Any, ...], list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.features, []).append(task)
    return list(groups.values())


def work(
    tasks: Sequence[Task], source: backbones.FeatureExtractor, device: torch.device, precision: torch.dtype
) -> Iterator[Outcome]:
    """Do tasks that share their features, embedding the images once.

    Yields:
        Of every task its result, or what main.py shows the user.
    """
    banks: ClassBanks | None = None
    for task in tasks:
        try:
            if task.problem:
                raise DataError(task.problem)
            if not task.run.test and task.job.folder.exists():  # by a process that died since
                yield read_result(task.job.folder, task.job.name)
                continue
            with one_line_when_full():
                detector = task.build(source, device, precision)
                if task.run.feature_bank != "off" and not detector.train_backbone and banks is None:
                    title, samples = task.job.name.title, task.job.samples
                    banks = build_banks(title, detector, samples, task.data, task.run.feature_bank, task.run.test)
            of_task = None if detector.train_backbone else banks
            yield (test_job if task.run.test else run_job)(task.job, detector, task.run, task.data, of_task)
        except (DataError, OSError) as error:
            yield error
