"""Images from disk, one by one and in batches."""

import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.brightness import brightness_of
from datasets.decode import SIDEWAYS, Header, Reading, read_header, read_image
from datasets.interest import meets, other_shape, pixels_of_interest, read_interest
from datasets.kept import Kept, Read
from datasets.masks import mask_size, read_mask
from datasets.order import Draws, Shuffled
from datasets.regions import read_masks, regions_of
from datasets.sample import Sample
from datasets.seen import Seen, seen_of_defect, seen_of_image
from datasets.sizes import have_one_shape
from datasets.transforms import ImageTransform, normalised
from errors import DataError

NAMED, SHOWN = 3, 20  # files that a remark names, and an error
UNSEEN = "lie wholly outside of what is of interest, where nothing is found, though their images count as anomalous"
MOST_READERS = 16


class Batch(NamedTuple):
    """images uint8 [B, 3, H, W], not normalised yet; masks bool [B, H, W], all False for normal images.

    Images with masks of interest have these as a fourth channel, see ImageTransform.pixels. Of a table the
    rows float32 [B, F], and masks [B, 0, 0].
    """

    images: Tensor
    masks: Tensor


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Samples as (image, mask) pairs; rows of a table come as they are, with an empty mask.

    Args:
        samples: what to read.
        transform: brings image and mask to [3, H, W] and [H, W]; an image with a mask of interest to [4, H, W].
    """

    def __init__(self, samples: Sequence[Sample], transform: ImageTransform) -> None:
        self.samples = list(samples)
        self.transform = transform
        self.seen: dict[int, Seen] = {}  # of what this process read

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The image, normalised, and the mask at an index.

        Raises:
            DataError: a file that cannot be read, or a mask of interest that leaves nothing of its image.
        """
        image, mask = self.read(index)
        return normalised(image[:3]) if image.dtype == torch.uint8 else image, mask

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """The image's pixels, uint8 [3 or 4, H, W], or a table's row, and the mask at an index; raises as above."""
        sample = self.samples[index]
        if sample.values is not None:
            return torch.from_numpy(sample.values), torch.zeros(0, 0, dtype=torch.bool)
        if sample.pixels is None:
            image = read_image(sample.image_path, self.transform.reading)
        else:
            image = Image.fromarray(sample.pixels)
        masks = read_masks(sample)
        seen = (seen_of_defect(self.transform, mask) for mask in masks)
        self.seen[index] = sum(seen, seen_of_image(self.transform, *image.size))
        return seen_pixels(self.transform, image, sample), torch.from_numpy(regions_of(masks, self.transform) > 0)


def seen_pixels(transform: ImageTransform, image: Image.Image, sample: Sample) -> Tensor:
    """What the network is to see of a sample's image, uint8 [3, H, W], or [4, H, W] with a mask of interest.

    Raises:
        DataError: as ImageDataset.
    """
    path = sample.interest_path
    if path is None:
        return transform.pixels(image)
    return pixels_of_interest(transform, image, read_interest(path), path, sample.image_path)


class JoinedImages(ImageDataset):
    """The samples of several datasets, one after another, each read as its own dataset reads them.

    Args:
        datasets: at least one; `transform` is that of the first.
    """

    def __init__(self, datasets: Sequence[ImageDataset]) -> None:
        super().__init__([sample for own in datasets for sample in own.samples], datasets[0].transform)
        self.places = [(own, i) for own in datasets for i in range(len(own))]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """As in ImageDataset."""
        own, place = self.places[index]
        found = own.read(place)
        self.seen[index] = own.seen.pop(place, Seen())
        return found


def check_headers(samples: Sequence[Sample], reading: Reading = Reading()) -> list[Header]:  # noqa: B008 - frozen
    """Look into every file as far as its header, so that a bad one is known before hours of training.

    Returns:
        Of every image its header, in order.

    Raises:
        DataError: files that are not there, are no images or too large, or masks of another shape than their image;
            all of them.
    """
    headers: list[Header] = []
    problems: list[str] = []
    for sample in samples:
        try:
            headers.append(_header(sample, reading))
        except DataError as error:
            problems.append(str(error))
    _raise_all(problems)
    return headers


def _header(sample: Sample, reading: Reading) -> Header:
    """An image's header, whose masks have its shape.

    Raises:
        DataError: as check_headers, of this sample.
    """
    header = read_header(sample.image_path, reading) if sample.pixels is None else Header(*sample.pixels.shape[1::-1])
    width, height = header[:2]
    if sample.interest_path is not None:
        own = mask_size(sample.interest_path)
        if not have_one_shape((width, height), own):
            raise other_shape(sample.interest_path, own, sample.image_path, (width, height))
    for path in sample.mask_paths:
        mask_width, mask_height = mask_size(path)
        if have_one_shape((width, height), (mask_width, mask_height)):
            continue
        turned = ""
        if header.orientation in SIDEWAYS and have_one_shape((height, width), (mask_width, mask_height)):
            turned = (
                f", turned as its EXIF orientation ({header.orientation}) says: turn the mask too or, where it fits "
                "the image as stored, remove the orientation from the image"
            )
        raise DataError(
            f"mask '{path}' is {mask_width} x {mask_height} pixels, "
            f"but its image '{sample.image_path}' is {width} x {height}{turned}"
        )
    return header


def remarks_on_masks(samples: Sequence[Sample], doubts: Mapping[Path, str], reading: Reading) -> list[str]:
    """What a user should know of how a class's masks are read, a line each; all of them are read for it.

    Args:
        samples: those with masks.
        doubts: those that the class's reader had of further masks.
        reading: of their images.

    Raises:
        DataError: masks that cannot be read; all of them.
    """
    said: dict[str, dict[Path, None]] = defaultdict(dict)
    for path, doubt in doubts.items():
        said[doubt][path] = None
    problems = []
    for sample in samples:
        for path in sample.mask_paths:
            try:
                mask = read_mask(path)
                if mask.values.shape[::-1] != _size(sample, reading):
                    said["have another size than their images, and are resized"][path] = None
            except DataError as error:
                problems.append(str(error))
                continue
            if mask.doubt is not None:
                said[mask.doubt][path] = None
            elif sample.interest_path is not None and not meets(mask.values > 0, read_interest(sample.interest_path)):
                said[UNSEEN][path] = None
            elif not mask.values.any():
                said["have no defective pixel, though their images are anomalous"][path] = None
    _raise_all(problems)
    return [f"masks that {what}: {_first(list(paths))}" for what, paths in said.items()]


def _first(paths: list[Path]) -> str:
    """How many files there are, and the first of them."""
    names = ", ".join(f"'{path}'" for path in paths[:NAMED])
    return f"{len(paths)} ({names}{', ...' if len(paths) > NAMED else ''})"


def _size(sample: Sample, reading: Reading) -> tuple[int, int]:
    """Width and height of an image."""
    return read_header(sample.image_path, reading)[:2] if sample.pixels is None else sample.pixels.shape[1::-1]


def _raise_all(problems: list[str]) -> None:
    if problems:
        count = f"{len(problems)} files cannot be used: " if len(problems) > 1 else ""
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError(count + "; ".join(problems[:SHOWN]) + more)


def reader_count(asked: int | None, jobs: int = 1) -> int:
    """How many processes or threads read images where so many are asked for.

    Args:
        asked: None for one per core that this process may use, MOST_READERS at most.
        jobs: that share the cores.
    """
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_READERS, cores // jobs))


class BatchLoader:
    """Batches of a dataset, read by worker processes; may be iterated any number of times.

    Attributes:
        seen: how much of the images and defects is seen, once a pass is over.
        brightness: of every image, [N] in the order of that pass; of rows there is none.

    Args:
        dataset: where images come from.
        batch_size: images per batch; the last one may be smaller.
        num_workers: processes that read and transform, see reader_count; 0 reads in this one.
        order: a new order at every pass, and seeds of random changes; None keeps the dataset's order.
        kept: images that are not read again where all of them are there, and that what is read is added to; without an
            order.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        num_workers: int | None = 0,
        order: Shuffled | None = None,
        kept: Kept | None = None,
    ) -> None:
        warnings.filterwarnings("ignore", "This DataLoader will create")  # slow disks want more readers than cores
        num_workers = min(reader_count(num_workers), -(-len(dataset) // batch_size))  # each reads whole batches
        self._loader = DataLoader(
            _Items(dataset),
            batch_size,
            sampler=None if order is None else Draws(order),
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            worker_init_fn=_leave_quietly,
            generator=torch.Generator(),  # it would draw a seed of the global one at every pass
        )
        self.dataset = dataset
        self.kept = kept
        self.seen = Seen()
        self.brightness: NDArray[np.float64] = np.empty(0)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order.

        Raises:
            DataError: an image or mask that cannot be used.
        """
        samples, transform = self.dataset.samples, self.dataset.transform
        known = self.kept and self.kept.all_of(samples, transform)
        size = self._loader.batch_size
        total, levels, done = Seen(), [], 0
        again = (_collate(known[i : i + size]) for i in range(0, len(samples), size))
        for batch in self._loader if known is None else again:
            if isinstance(batch, DataError):
                raise batch
            tensors, seen, bright = batch
            if self.kept is not None and known is None:
                self.kept.add(samples[done : done + len(seen)], transform, *tensors, seen)
            done += len(seen)
            total += sum(seen, Seen())
            levels += bright
            yield tensors
        self.seen, self.brightness = total, np.array(levels)

    def pass_over(self) -> None:
        """Draw what a pass draws, and read nothing."""
        iter(self._loader.sampler)


def _leave_quietly(_: int) -> None:
    """Keep a reader from printing a traceback when the run ends while it hands over a batch."""
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, ConnectionError | EOFError):
            shown(kind, error, trace)

    sys.excepthook = hook


class _Items(Dataset[Read | DataError]):
    """A dataset for the loader, with what is seen of every image.

    DataErrors are items: raised in a worker they would reach the user as a traceback.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int | tuple[int, int]) -> Read | DataError:
        if isinstance(item, tuple):
            item, seed = item
            torch.default_generator.manual_seed(seed)  # which random transforms draw from
        try:
            return Read(*self.dataset.read(item), self.dataset.seen.pop(item, Seen()))
        except DataError as error:
            return error


def _collate(items: Sequence[Read | DataError]) -> tuple[Batch, Sequence[Seen], list[float]] | DataError:
    for item in items:
        if isinstance(item, DataError):
            return item
    images, masks, seen = zip(*items, strict=True)
    levels = [level for level in map(brightness_of, images) if level is not None]
    return Batch(torch.stack(images), torch.stack(masks)), seen, levels
