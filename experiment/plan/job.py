"""A job: a class, a backbone and a seed, a row of results.csv; and what its trained model is known by."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import backbones
from datasets import ClassSamples, ImageSizes
from detection.description import described, described_tiles, kind_of_interest
from experiment.config import JobName, RunConfig
from experiment.dataset_config import DatasetConfig
from experiment.detector_config import DetectorConfig
from experiment.plan.reading import ClassFound
from methods import DETECTORS

NAMED = 3  # classes of one model, all of which a label names


@dataclass(frozen=True)
class Job:
    """A class's images, a backbone and a seed.

    Attributes:
        name: what it is called in the run's tables.
        folder: where checkpoint, predictions, pictures and TensorBoard scalars go.
        samples: the class's images or rows.
        data: how they are read.
        root: the folder that predictions.csv names images from.
        seed: of weights, noise, image order and random transforms.
        identity: the part of the model's description that the command line decides.
        sizes: of the files of the images to train on; None of rows.
    """

    name: JobName
    folder: Path
    samples: ClassSamples
    data: DatasetConfig
    root: Path
    seed: int
    identity: dict[str, Any]
    sizes: ImageSizes | None

    @property
    def key(self) -> dict[str, Any]:
        """What names the job in the run's tables."""
        return {"class": self.name.title, "seed": self.name.seed}


def label_of(jobs: Sequence[Job]) -> str:
    """What the bar of jobs that train one model is called; of many classes it names the first."""
    titles = [job.name.title for job in jobs]
    if len(titles) > NAMED:
        titles = [titles[0], f"{len(titles) - 1} more"]
    return f"{' + '.join(titles)} seed {jobs[0].name.seed}"


def make_job(
    name: JobName,
    run: RunConfig,
    detector: DetectorConfig,
    data: DatasetConfig,
    root: Path,
    found: ClassFound,
    part: dict[str, Any],
    classes: list[str] | None = None,
) -> Job:
    """A job of a run.

    Args:
        name, run, detector, data: which, and as the command line says.
        root, found: where the class is, and what is in it.
        part: the options of a JOINT detector that say which of its classes this is; else empty.
        classes: of the model, where it is of several and its detector not JOINT.
    """
    samples, data = found.samples, replace(data, reading=found.reading)
    backbone, weights = detector.backbones[name.backbone], detector.backbone_weights
    seed, kind = backbone.seed_in(name.seed), DETECTORS[detector.command]
    identity: dict[str, Any] = {
        "title": name.title,
        "dataset": data.name,
        "class_name": name.class_name,
        "backbone": {
            "name": backbone.name,
            "layers": list(backbone.layers),
            "weights": weights if weights in ("pretrained", "random") else str(Path(weights).resolve()),
            "seed": seed,
            "normalisation": asdict(backbones.normalisation_of(backbone.name, detector.normalisation)),
        },
        "transform": {"resize": data.resize, "imagesize": data.imagesize, "resize_mode": data.resize_mode},
        "reading": described(data.reading),
        "mask_of_interest": None if data.mask_of_interest is None else kind_of_interest(data.mask_of_interest),
        "tiles": None if data.tile is None else described_tiles(data.tiling, data.skip_empty_tiles),
        "table": None if samples.table is None else samples.table.to_dict(),
        "detector": detector.command,
        "options": {**detector.options, **kind.options_of_class(detector.options, name.class_name), **part},
        "seed": seed,
        "classes": classes,
    }
    return Job(name, run.directory / name.folder, samples, data, root, seed, identity, found.sizes)
