"""What a trained model cost, and what a prediction by it costs."""

from dataclasses import replace
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from datasets import ImageDataset
from detection import Detector, Prediction, is_anomalous
from detection.whole_images import predicted
from experiment.dataset_config import DatasetConfig
from experiment.machine.usage import Peak, PeakMemory, Stopwatch
from experiment.plan.task import embed_batch
from experiment.record.cost import Cost
from experiment.train.embeddings import ClassFeatures

TIMED = 5  # images, after one that is not timed
MB = 1e6


class Spent(NamedTuple):
    """What training took: seconds, the peak of memory before it, and what measures it since."""

    seconds: float
    peak: Peak
    memory: PeakMemory


def cost_of(features: ClassFeatures, threshold: float, spent: Spent) -> Cost:
    """The cost of a model that predicts a class and decides at a threshold.

    Raises:
        DataError: an image that cannot be read any more.
    """
    detector = features.detector
    peak = spent.peak | spent.memory.so_far()
    whole, rest = _milliseconds(detector, features.test.dataset, features.job.data, threshold)
    return Cost(
        fit_seconds=spent.seconds,
        ms_from_file=whole,
        ms_from_features=rest,
        parameters=sum(own.numel() for own in detector.parameters()),
        model_mb=megabytes(detector),
        peak_host_mb=None if peak.host is None else peak.host / MB,
        peak_device_mb=None if peak.device is None else peak.device / MB,
    )


def megabytes(model: torch.nn.Module) -> float:
    """Of all that a model keeps in memory, its backbone included."""
    return sum(own.nbytes for own in (*model.parameters(), *model.buffers())) / MB


@torch.no_grad()
def _milliseconds(
    detector: Detector, dataset: ImageDataset, data: DatasetConfig, threshold: float
) -> tuple[float, float]:
    """Of an image from its file to its decision and map, and of those from its features on: medians."""
    detector.eval()
    size = embed_batch(data.batch_size, detector.device)
    samples = [replace(sample, mask_paths=()) for sample in dataset.samples]  # which a decision does not need
    images = ImageDataset(samples[:: -(-len(samples) // TIMED)], dataset.transform)
    times = []
    for i in (0, *range(len(images))):
        before = Stopwatch(detector.device)

        def predict(tiles: Tensor, before: Stopwatch = before) -> Prediction:
            with before:
                embedded = detector.embed_read(tiles)
            return detector.score(embedded)

        with Stopwatch(detector.device) as whole:
            with before:
                image, _ = images.read(i)
            prediction = predicted(predict, image[None], data.tiling, size)
            is_anomalous(prediction.scores.cpu(), threshold)
            if prediction.maps is not None:
                prediction.maps.cpu()
        times.append((1000 * whole.seconds, 1000 * (whole.seconds - before.seconds)))
    return tuple(map(median, zip(*times[1:], strict=True)))
