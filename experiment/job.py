"""One job: train a detector for one class and backbone, evaluate it after every meta epoch, keep the last."""

import json
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
from datasets import ClassSamples, Sample
from experiment.config import BackboneConfig, DatasetConfig
from experiment.evaluation import Evaluation, evaluate
from experiment.features import ClassBanks, TestPredictions, TrainingEmbeddings, progress
from experiment.results import replacing_folder, write_csv
from simplenet import EpochStats, SimpleNet


@dataclass(frozen=True)
class Job:
    """What is trained on what.

    Attributes:
        title: the row's name in results.csv, such as "mvtec_bottle".
        folder: where checkpoint, predictions and TensorBoard scalars go.
        samples: the class's images.
        backbone, extractor: which layers, and what gives them.
        seed: of weights, noise, image order and random transforms.
        options: the detector's keyword arguments.
    """

    title: str
    folder: Path
    samples: ClassSamples
    backbone: BackboneConfig
    extractor: FeatureExtractor
    seed: int
    options: dict[str, Any]


@dataclass(frozen=True)
class JobResult:
    """A row of results.csv (the last meta epoch) and the rows of history.csv (all of them)."""

    row: dict[str, Any]
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
    history: list[dict[str, Any]] = []
    evaluations: list[Evaluation] = []
    steps = detector.passes * len(train) + -(-detector.meta_epochs // eval_every) * len(test)
    with (
        replacing_folder(job.folder) as folder,
        progress(job.title, total=steps) as bar,
        SummaryWriter(str(folder)) as board,
    ):

        def on_epoch(stats: EpochStats) -> None:
            values: dict[str, float] = {}
            if stats.meta_epoch % eval_every == 0 or stats.meta_epoch == detector.meta_epochs:
                evaluations[:] = [evaluate(test, samples.test, bar)]
                values = evaluations[0].metrics
                bar.set_postfix(loss=f"{stats.loss:.3f}", image_auroc=f"{values['image_auroc']:.4f}")
            history.append({"class": job.title, **stats._asdict(), **values})
            for name, value in {**stats._asdict(), **values}.items():
                if name != "meta_epoch" and value == value:  # NaN: the metric does not exist
                    board.add_scalar(name, value, stats.meta_epoch)

        detector.fit_embeddings(_Counted(train, bar), on_epoch)
        state = {name: tensor.contiguous().cpu() for name, tensor in detector.state_dict().items()}
        geometry = {"image_size": detector.image_size, "resize": data.resize, "resize_mode": data.resize_mode}
        description = {"backbone": asdict(job.backbone), **geometry}
        checkpoint = save(state, metadata={"config": json.dumps({**description, **job.options})})
        (folder / "checkpoint.safetensors").write_bytes(checkpoint)
        write_csv(folder / "predictions.csv", _predictions(samples.test, evaluations[0], root), float_format="%.9g")
    return JobResult({"class": job.title, **evaluations[0].metrics}, history)


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
