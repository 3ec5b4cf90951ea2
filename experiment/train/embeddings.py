"""What a detector reads of a job's class: embeddings from a feature bank, or of the images again at every pass."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat, tee
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from backbones import FeatureBank, Features
from datasets import Batch, BatchLoader, ImageDataset, Sample, read_defects, region_labels
from detection import Detector, Normal, Prediction
from detection.memory_bank import Forgetful
from detection.whole_images import stitched
from experiment.dataset_config import DatasetConfig
from experiment.plan.job import Job
from experiment.plan.task import embed_batch
from experiment.train.banks import ClassBanks
from experiment.train.training_set import TrainingSet, learned_from

SCORE_BATCH = 32  # embeddings scored at once
UNKNOWN: NDArray[np.float64] = np.empty(0)  # brightness


class Predictions:
    """Predictions of images in batches, by the detector as it is then; with masks (bool [B, H, W]).

    Images that are cut into tiles are predicted one by one, put together from what their tiles give.

    Args:
        detector: what predicts.
        samples: of what, in this order.
        data: how images are read; random changes apply where they are drawn once, to images that were trained on.
        bank: the images' embeddings; None embeds the images every time.
        masks: of all images where a bank is given; None: there are none.
        brightness: of all images, [N], where a bank is given; empty where it is not known.
        as_new: they are images that it was trained on; each is predicted as if it had not been, where the detector can.
        title: names the class when the first pass over the images says what is not seen of them; empty: it does not.
    """

    def __init__(
        self,
        detector: Detector,
        samples: Sequence[Sample],
        data: DatasetConfig,
        bank: FeatureBank | None = None,
        masks: NDArray[np.bool_] | None = None,
        brightness: NDArray[np.float64] = UNKNOWN,
        title: str = "",
        as_new: bool = False,
    ) -> None:
        self.detector = detector
        is_whole = data.tiling.count == 1 and data.random.is_fixed  # else an image is not known by what it gives
        transform = data.train_transform if as_new and data.random.is_fixed else data.test_transform
        self.as_new = as_new and is_whole and len(samples) > 1 and isinstance(detector, Forgetful) and detector.forgets
        self.title = title
        self.bank = bank
        self.masks = masks
        self._brightness = brightness
        self.batch_size = SCORE_BATCH if bank else embed_batch(data.batch_size, detector.device)  # of tiles
        self.tiling = data.tiling
        self.step = self.batch_size if self.tiling.count == 1 else 1  # images in a prediction
        self.dataset = ImageDataset(samples, transform)
        self.num_workers = data.num_workers
        self.loader = None if bank else self._reader(samples)

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.step)

    @property
    def brightness(self) -> NDArray[np.float64]:
        """Of all images, [N], once a pass over them is made; empty of rows."""
        return self._brightness if self.loader is None else self.loader.brightness

    @property
    def on_disk(self) -> bool:
        """Whether what is kept of all images belongs on the disk, as their embeddings are."""
        return self.bank is not None and self.bank.place == "disk"

    def maps_of(self, indices: Sequence[int]) -> Iterator[NDArray[np.float32] | None]:
        """The anomaly maps [H, W] of some of the images; None where the detector draws none."""
        if self.bank is not None:
            chosen = self.tiling.numbers(indices)
            tiles = map(self.detector.score, self.bank.batches(self.batch_size, chosen))
        else:
            loader = self._reader([self.dataset.samples[i] for i in indices])
            tiles = map(self.detector.predict_read, self._tiles(loader))
        for prediction in stitched(tiles, self.tiling):
            drawn = repeat(None, len(prediction.scores)) if prediction.maps is None else prediction.maps.cpu().numpy()
            yield from drawn

    def embeddings(self) -> Iterator[Features]:
        """The embeddings of the images' tiles, in batches."""
        if self.bank is not None:
            return self.bank.batches(self.batch_size)
        return map(self.detector.embed_read, self._tiles(self.loader))

    def __iter__(self) -> Iterator[tuple[Prediction, NDArray[np.bool_] | None]]:
        if self.as_new:
            return zip(self.detector.scored_as_new(self.embeddings), repeat(None), strict=False)
        if self.bank is None:
            batches, same = tee(self._loaded())
            predictions = stitched(map(self.detector.predict_read, self._tiles(batches)), self.tiling)
            masks = chain.from_iterable(batch.masks.split(self.step) for batch in same)
            return zip(predictions, (own.numpy() for own in masks), strict=True)
        predictions = stitched(map(self.detector.score, self.bank.batches(self.batch_size)), self.tiling)
        if self.masks is None:
            return zip(predictions, repeat(None), strict=False)
        starts = range(0, len(self.dataset), self.step)
        return zip(predictions, (self.masks[i : i + self.step] for i in starts), strict=True)

    def _reader(self, samples: Sequence[Sample]) -> BatchLoader:
        """Whole images, as many at once as give a batch of tiles."""
        dataset = ImageDataset(samples, self.dataset.transform)
        return BatchLoader(dataset, self.tiling.images_in(self.batch_size), self.num_workers)

    def _tiles(self, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """The tiles of images that were read, in batches."""
        return chain.from_iterable(self.tiling.batches(batch.images, self.batch_size) for batch in batches)

    def _loaded(self) -> Iterator[Batch]:
        yield from self.loader
        self._say_seen()

    def _say_seen(self) -> None:
        sentence = self.loader.seen.sentence(self.title, self.dataset.transform)
        if sentence and self.title:
            tqdm.write(sentence, file=sys.stderr)
        self.title = ""  # once is enough


class HeldOut:
    """Batches of embeddings of held-out normal images, the same at every pass; none where nothing is held out.

    Args:
        predictions: of those of every class.
    """

    def __init__(self, *predictions: Predictions) -> None:
        self.predictions = predictions

    def __len__(self) -> int:
        return sum(map(len, self.predictions))

    def __iter__(self) -> Iterator[Features]:
        return chain.from_iterable(own.embeddings() for own in self.predictions if len(own))


class ClassFeatures:
    """All that a detector reads of a job's class.

    Args:
        job: whose class.
        detector: as it embeds and predicts this class.
        banks: the class's embeddings; None embeds the images in every pass.
        chosen: which tiles are trained on, see tiles_to_train_on.

    Attributes:
        train: the images to train on.
        held_out: predictions of the normal images that are not trained on.
        normal: predictions of the images that thresholds come from: held out, where any are, else trained on.
        test: predictions of the test images.
        defects: of the test images, for sPRO; see read_defects.
        regions: of all their defective pixels; both are read once for all jobs that share banks.

    Raises:
        DataError: a mask that cannot be used.
    """

    def __init__(
        self, job: Job, detector: Detector, banks: ClassBanks | None, chosen: NDArray[np.bool_] | None = None
    ) -> None:
        samples, data = job.samples, job.data
        self.job = job
        self.detector = detector
        self.train = TrainingSet(samples, data, banks and banks.train, chosen)
        levels, test_levels = (banks.normal_brightness, banks.brightness) if banks else (UNKNOWN, UNKNOWN)
        self.held_out = Predictions(detector, samples.validation, data, banks and banks.validation, brightness=levels)
        self.normal = self.held_out
        if not samples.validation:
            bank = banks and banks.train
            self.normal = Predictions(detector, samples.train, data, bank, brightness=levels, as_new=True)
        bank, masks = (banks.test, banks.masks) if banks else (None, None)
        self.test = Predictions(detector, samples.test, data, bank, masks, test_levels, job.name.title)
        transform = data.test_transform
        self.defects = banks.defects if banks else read_defects(samples.test, samples.saturation, transform)
        self.regions = banks.regions if banks else region_labels(samples.test, transform)

    @property
    def test_set(self) -> dict[str, Any]:
        """The arguments of evaluate, but for its bar."""
        return {
            "predictions": self.test,
            "samples": self.job.samples.test,
            "defects": self.defects,
            "on_disk": self.test.on_disk,
            "regions": self.regions,
        }


def lessons_of(detector: Detector, classes: Sequence[ClassFeatures]) -> list[Normal]:
    """What a detector learns from: every class by itself, if it is JOINT; else all of them together."""
    trained_on = learned_from(detector, [own.train for own in classes], classes[0].job.seed)
    groups = [[own] for own in classes] if detector.JOINT else [classes]
    return [
        Normal(train, HeldOut(*(own.held_out for own in group)))
        for train, group in zip(trained_on, groups, strict=True)
    ]
