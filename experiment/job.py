"""One job: train a detector for one class and backbone, evaluate it after every meta epoch, keep the last."""

import json
from collections.abc import Iterator
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
from datasets import BatchLoader, ClassSamples, ImageDataset, Sample
from experiment.config import BackboneConfig, DatasetConfig, DetectorConfig
from experiment.evaluation import Evaluation, evaluate
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
    """

    title: str
    folder: Path
    samples: ClassSamples
    backbone: BackboneConfig
    extractor: FeatureExtractor
    seed: int


@dataclass(frozen=True)
class JobResult:
    """A row of results.csv (the last meta epoch) and the rows of history.csv (all of them)."""

    row: dict[str, Any]
    history: list[dict[str, Any]]


def run_job(job: Job, config: DetectorConfig, data: DatasetConfig, root: Path, device: torch.device) -> JobResult:
    """Train, evaluate and save one job.

    Raises:
        DataError: an image or mask that cannot be used, or weights that cannot be had; nothing of the job is left.
    """
    torch.manual_seed(job.seed)  # random transforms draw from the global generator
    samples = job.samples
    train = BatchLoader(
        ImageDataset(samples.train, data.train_transform), data.batch_size, data.num_workers, shuffle_seed=job.seed
    )
    test = BatchLoader(ImageDataset(samples.test, data.test_transform), data.batch_size, data.num_workers)
    image_size = (data.imagesize, data.imagesize)
    detector = SimpleNet(job.extractor, job.backbone.layers, image_size, seed=job.seed, **config.options).to(device)
    history: list[dict[str, Any]] = []
    evaluations: list[Evaluation] = []
    steps = detector.passes * len(train) + config.options["meta_epochs"] * len(test)
    with replacing_folder(job.folder) as folder, progress(job.title, steps) as bar, SummaryWriter(str(folder)) as board:

        def on_epoch(stats: EpochStats) -> None:
            evaluation = evaluate(detector, test, samples.test, bar)
            evaluations[:] = [evaluation]
            history.append({"class": job.title, **stats._asdict(), **evaluation.metrics})
            shown = {"loss": stats.loss, "p_true": stats.p_true, "p_fake": stats.p_fake, **evaluation.metrics}
            for name, value in shown.items():
                if value == value:  # NaN: the metric does not exist
                    board.add_scalar(name, value, stats.meta_epoch)
            bar.set_postfix(loss=f"{stats.loss:.3f}", image_auroc=f"{evaluation.metrics['image_auroc']:.4f}")

        detector.fit(_Counted(train, bar), on_epoch)
        description = {
            "backbone": asdict(job.backbone),
            "image_size": image_size,
            "resize": data.resize,
            **config.options,
        }
        state = {name: tensor.contiguous().cpu() for name, tensor in detector.state_dict().items()}
        checkpoint = save(state, metadata={"config": json.dumps(description)})
        (folder / "checkpoint.safetensors").write_bytes(checkpoint)
        write_csv(folder / "predictions.csv", _predictions(samples.test, evaluations[-1], root), float_format="%.9g")
    return JobResult({"class": job.title, **evaluations[-1].metrics}, history)


def progress(title: str, steps: int) -> tqdm:
    """A bar over batches; where the output is no terminal, a line twice a minute at most."""
    bar = tqdm(total=steps, desc=title, unit="batch", dynamic_ncols=True, leave=False)
    if not bar.fp.isatty():
        bar.mininterval = bar.maxinterval = 30
    return bar


class _Counted:
    """The images of a loader's batches; every batch advances the bar."""

    def __init__(self, loader: BatchLoader, bar: tqdm) -> None:
        self.loader = loader
        self.bar = bar

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.loader:
            yield batch.images
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
