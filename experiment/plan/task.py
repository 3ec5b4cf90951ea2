"""A task: what one model is trained for, the unit that is handed out; those that read the same features together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import backbones
from detection import Detector
from detection.light import Light
from experiment.config import JobName, RunConfig
from experiment.detector_config import DetectorConfig
from experiment.plan.job import Job, label_of
from methods import DETECTORS
from options import declared

EMBED_BATCH, GPU_EMBED_BATCH = 8, 32  # images embedded at once where the training batch is smaller
FeatureKey = tuple[str, str, backbones.Normalisation, tuple[str, ...], tuple[int, int], int | None]
Sources = dict[FeatureKey, backbones.FeatureExtractor]


def embed_batch(batch_size: int, device: torch.device) -> int:
    """How many images are embedded at once; not by what is free, for how convolutions round may depend on it."""
    return max(EMBED_BATCH if device.type == "cpu" else GPU_EMBED_BATCH, batch_size)


@dataclass(frozen=True)
class Task:
    """The jobs that one model is trained for, and the command line that they are of.

    Attributes:
        jobs: one for every class of a model of several, else one.
        run, detector: the configuration of their run.
        problem: why a class cannot be read, where --on_error skip goes on without it.
        called: its detector, among several of a command line; else "".
    """

    jobs: tuple[Job, ...]
    run: RunConfig
    detector: DetectorConfig
    problem: str | None = None
    called: str = ""

    @property
    def name(self) -> JobName:
        """Of the first job; backbone and seed are those of all."""
        return self.jobs[0].name

    @property
    def label(self) -> str:
        """What its bar is called."""
        return f"{self.called} {label_of(self.jobs)}".strip()

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return " ".join(filter(None, (self.called, self.run.point, label_of(self.jobs))))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what the network sees, images or their tiles, which a model sees one size of."""
        return self.jobs[0].data.tiling.tile

    @property
    def backbone(self) -> FeatureKey:
        """What decides the backbone's maps: name, weights, normalisation, layers, size of what is seen and, of random
        weights, the seed."""
        own, weights = self.detector.backbones[self.name.backbone], self.detector.backbone_weights
        seed = own.seed_in(self.name.seed) if weights == "random" else None
        normalisation = backbones.normalisation_of(own.name, self.detector.normalisation)
        return own.name, weights, normalisation, own.layers, self.size, seed

    @property
    def images(self) -> tuple[Any, ...]:
        """The classes that are read, however they are; of tasks in which it is equal, images are decoded once."""
        return tuple((job.root, job.name.class_name, job.name.seed if job.data.is_drawn else None) for job in self.jobs)

    @property
    def features(self) -> tuple[Any, ...]:
        """What the jobs' patch embeddings depend on; tasks in which it is equal share them, whatever their detector."""
        kind = DETECTORS[self.detector.command].variant(self.detector.options)
        read = (
            (
                job.name.class_name,
                replace(job.data, subdatasets=(), num_workers=0, batch_size=max(EMBED_BATCH, job.data.batch_size)),
            )
            for job in self.jobs
        )
        names = [one.name for one in declared(kind.Options) if one.option.decides_features]
        decisive = ((name, self.detector.options[name]) for name in sorted(names))
        embed = kind.embed, kind.features, kind.feature_type, kind.input_shape  # several detectors may inherit them
        return (self.images, self.backbone, embed, *decisive, *read)

    def build(
        self,
        source: backbones.FeatureExtractor,
        device: torch.device,
        precision: torch.dtype,
        light: Light | None = None,
    ) -> Detector:
        """The detector, fresh; with a light that was learned, where there is one."""
        backbone = self.detector.backbones[self.name.backbone]
        options = self.jobs[0].identity["options"]
        known = {"seed": self.jobs[0].seed, "precision": precision, "classes": len(self.jobs)}
        kind = DETECTORS[self.detector.command].variant(options)
        detector = kind(source, backbone.layers, self.size, **known, **options)
        detector.light = light or detector.light
        return detector.to(device)


def group(tasks: Sequence[Task]) -> list[list[list[Task]]]:
    """Tasks of the same images together, and of these the ones that share their features; otherwise in order."""
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Task]]] = {}
    for task in tasks:
        groups.setdefault(task.images, {}).setdefault(task.features, []).append(task)
    return [list(own.values()) for own in groups.values()]
