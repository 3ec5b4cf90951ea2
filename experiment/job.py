"""One job: train a detector for one class and backbone, evaluate it after every meta epoch, keep the last."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from backbones import FeatureExtractor
from datasets import ClassSamples, Sample, read_defects
from experiment.config import BackboneConfig, DatasetConfig, JobName
from experiment.evaluation import Evaluation, evaluate
from experiment.features import ClassBanks, TestPredictions, TrainingEmbeddings, progress
from experiment.pictures import write_worst
from experiment.results import EPOCH, replacing_folder, write_csv
from simplenet import EpochStats, SimpleNet


@dataclass(frozen=True)
class Job:
    """What is trained on what.

    Attributes:
        name: what it is called in the run's tables.
        folder: where checkpoint, predictions, pictures and TensorBoard scalars go.
        samples: the class's images.
        backbone, extractor: which layers, and what gives them.
        seed: of weights, noise, image order and random transforms.
        options: the detector's keyword arguments.
    """

    name: JobName
    folder: Path
    samples: ClassSamples
    backbone: BackboneConfig
    extractor: FeatureExtractor
    seed: int
    options: dict[str, Any]


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


def run_job(
    job: Job, detector: SimpleNet, data: DatasetConfig, root: Path, eval_every: int, banks: ClassBanks | None
) -> JobResult:
    """Train, evaluate and save one job.

    Args:
        job: what to train on what.
        detector: fresh, on the device to train on.
        data: how images are read.
        root: the folder that predictions.csv names images from.
        eval_every: meta epochs between evaluations; the last one is always evaluated.
        banks: the class's embeddings; None embeds the images in every pass.

    Raises:
        DataError: an image or mask that cannot be used, or training that diverged; nothing of the job is left.
    """
    torch.manual_seed(job.seed)  # random transforms draw from the global generator
    samples = job.samples
    train = TrainingEmbeddings(detector, samples, data, job.seed, banks.train if banks else None)
    test = TestPredictions(detector, samples, data, banks)
    defects = read_defects(samples.test, samples.saturation, data.test_transform) if samples.saturation else []
    history: list[dict[str, Any]] = []
    evaluations: list[Evaluation] = []
    key = {"class": job.name.title, "seed": job.name.seed}
    steps = detector.passes * len(train) + -(-detector.meta_epochs // eval_every) * len(test)
    with (
        replacing_folder(job.folder) as folder,
        progress(f"{job.name.title} seed {job.seed}", total=steps) as bar,
        SummaryWriter(str(folder)) as board,
    ):

        def on_epoch(stats: EpochStats) -> None:
            values: dict[str, float] = {}
            if stats.meta_epoch % eval_every == 0 or stats.meta_epoch == detector.meta_epochs:
                evaluations[:] = [evaluate(test, samples.test, defects, bar)]
                values = evaluations[0].metrics
                bar.set_postfix(loss=f"{stats.loss:.3f}", image_auroc=f"{values['image_auroc']:.4f}")
            history.append({**key, **stats._asdict(), **values})
            for name, value in {**stats._asdict(), **values}.items():
                if name != "meta_epoch" and value == value:  # NaN: the metric does not exist
                    board.add_scalar(name, value, stats.meta_epoch)

        detector.fit_embeddings(_Counted(train, bar), on_epoch)
        state = {name: tensor.contiguous().cpu() for name, tensor in detector.state_dict().items()}
        geometry = {"image_size": detector.image_size, "resize": data.resize, "resize_mode": data.resize_mode}
        description = {"backbone": asdict(job.backbone), **geometry}
        checkpoint = save(state, metadata={"config": json.dumps({**description, **job.options})})
        (folder / "checkpoint.safetensors").write_bytes(checkpoint)
        write_worst(folder, test, evaluations[0])
        write_csv(folder / "predictions.csv", _predictions(samples.test, evaluations[0], root), float_format="%.9g")
    best = max((row for row in history if "image_auroc" in row), key=_rank)
    best_metrics = {name: best[name] for name in evaluations[0].metrics}
    row = {**key, **evaluations[0].metrics}
    return JobResult(row, {**key, **best_metrics, EPOCH: best["meta_epoch"]}, history)


def _rank(row: dict[str, Any]) -> tuple[float, float]:
    """Image AUROC, then pixel AUROC; one that does not exist decides nothing."""
    image, pixel = (0.0 if math.isnan(row[name]) else row[name] for name in ("image_auroc", "pixel_auroc"))
    return image, pixel


class _Counted:
    """Batches that advance a bar."""

    def __init__(self, batches: Iterable[Tensor], bar: tqdm) -> None:
        self.batches = batches
        self.bar = bar

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            yield batch
            self.bar.update()


def _predictions(samples: list[Sample], evaluation: Evaluation, root: Path) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image": [sample.image_path.relative_to(root).as_posix() for sample in samples],
            "label": [int(sample.anomalous) for sample in samples],
            "defect_type": [sample.defect_type for sample in samples],
            "score": evaluation.scores,
        }
    )
