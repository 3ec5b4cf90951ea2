"""Models to train in the order that embeds every image once: those that read the same features, one after another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import backbones
from detection import Detector
from errors import DataError
from experiment.config import DetectorConfig, JobName, RunConfig
from experiment.machine.memory import one_line_when_full
from experiment.record.results import JobResult, read_result
from experiment.train.features import EMBED_BATCH, ClassBanks, build_banks
from experiment.train.train import Job, label_of, run_jobs, test_job
from methods import DETECTORS

Outcome = list[JobResult] | DataError | OSError  # what a task's jobs gave, or what main.py shows the user
FeatureKey = tuple[str, str, backbones.Normalisation, tuple[str, ...], int, int | None]


@dataclass(frozen=True)
class Task:
    """The jobs that one model is trained for, and the command line that they are of.

    Attributes:
        jobs: what is trained on what; several of a JOINT detector, else one.
        run, detector: of their run.
        problem: why a class cannot be read, where --on_error skip goes on without it.
    """

    jobs: tuple[Job, ...]
    run: RunConfig
    detector: DetectorConfig
    problem: str | None = None

    @property
    def name(self) -> JobName:
        """Of the first job; backbone and seed are those of all."""
        return self.jobs[0].name

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return f"{self.run.point} {label_of(self.jobs)}".strip()

    @property
    def imagesize(self) -> int:
        """Side of the images, of which a model sees one size."""
        return self.jobs[0].data.imagesize

    @property
    def backbone(self) -> FeatureKey:
        """What decides the backbone's maps: name, weights, normalisation, layers, image size and, of random weights,
        the seed."""
        own, weights = self.detector.backbones[self.name.backbone], self.detector.backbone_weights
        seed = own.seed_in(self.name.seed) if weights == "random" else None
        normalisation = backbones.normalisation_of(own.name, self.detector.normalisation)
        return own.name, weights, normalisation, own.layers, self.imagesize, seed

    @property
    def features(self) -> tuple[Any, ...]:
        """What the jobs' patch embeddings depend on; tasks in which it is equal share them."""
        names = DETECTORS[self.detector.command].EMBEDDING_OPTIONS
        read = (
            (
                job.name.class_name,
                replace(job.data, subdatasets=(), num_workers=0, batch_size=max(EMBED_BATCH, job.data.batch_size)),
            )
            for job in self.jobs
        )
        return (self.backbone, *(self.detector.options[name] for name in names), *read)

    def build(self, source: backbones.FeatureExtractor, device: torch.device, precision: torch.dtype) -> Detector:
        """The detector, fresh."""
        backbone = self.detector.backbones[self.name.backbone]
        kind, options, size = DETECTORS[self.detector.command], self.jobs[0].identity["options"], (self.imagesize,) * 2
        return kind(source, backbone.layers, size, seed=self.jobs[0].seed, precision=precision, **options).to(device)

    def embed(self, detector: Detector) -> list[ClassBanks]:
        """The feature banks of all jobs."""
        return [
            build_banks(
                job.name.title, detector.for_part(i), job.samples, job.data, self.run.feature_bank, self.run.test
            )
            for i, job in enumerate(self.jobs)
        ]


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
        Of every task its results, or what main.py shows the user.
    """
    banks: list[ClassBanks] | None = None
    for task in tasks:
        try:
            if task.problem:
                raise DataError(task.problem)
            if not task.run.test and all(job.folder.exists() for job in task.jobs):  # by a process that died since
                yield [read_result(job.folder, job.name) for job in task.jobs]
                continue
            with one_line_when_full():
                detector = task.build(source, device, precision)
                if task.run.feature_bank != "off" and not detector.train_backbone and banks is None:
                    banks = task.embed(detector)
            of_task = None if detector.train_backbone else banks
            if task.run.test:
                parts = zip(task.jobs, of_task or [None] * len(task.jobs), strict=True)
                yield [test_job(job, detector.for_part(i), task.run, own) for i, (job, own) in enumerate(parts)]
            else:
                yield run_jobs(task.jobs, detector, task.run, of_task)
        except (DataError, OSError) as error:
            yield error
