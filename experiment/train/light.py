"""What a detector knows of its classes' light before it embeds their images."""

from datasets import BatchLoader, ClassSamples, ImageDataset, Kept, normalised
from detection import Detector
from detection.checkpoint import restore
from detection.description import read_description
from experiment.dataset_config import DatasetConfig
from experiment.machine.progress import progress
from experiment.plan.task import EMBED_BATCH, Task
from methods import DETECTORS

MOST = 256  # images of a class that are looked at


def learn_light(task: Task, detector: Detector, kept: Kept | None = None) -> None:
    """Let a task's detector learn the light of its classes; with --test it is that of its trained model.

    `kept` holds images that were read before, for other features.

    Raises:
        DataError: an image that cannot be used, or a model.
    """
    if detector.light is None:
        return
    if task.run.test:
        folder = task.jobs[0].folder
        restore(detector, folder, read_description(folder, DETECTORS))
        return
    for i, job in enumerate(task.jobs):
        if job.samples.kind == "image":
            learn_light_of(job.name.title, detector.for_part(i), job.samples, job.data, kept)


def learn_light_of(
    title: str, detector: Detector, samples: ClassSamples, data: DatasetConfig, kept: Kept | None = None
) -> None:
    """Let a detector that matches light learn that of a class, of at most MOST images spread over its training images.
    Where images are cut, every tile is an image.

    Raises:
        DataError: an image that cannot be used.
    """
    chosen = samples.train[:: -(-len(samples.train) // MOST)]
    dataset, tiling = ImageDataset(chosen, data.test_transform), data.tiling
    loader = BatchLoader(dataset, tiling.images_in(EMBED_BATCH), data.num_workers, kept=kept)
    batches = progress(f"{title} light", loader)
    tiles = (tiles for batch in batches for tiles in tiling.batches(batch.images, EMBED_BATCH))
    detector.light.learn((normalised(own.to(detector.device)) for own in tiles), detector.part)
