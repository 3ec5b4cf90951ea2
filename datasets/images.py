"""Images from disk, one by one and in batches."""

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datasets.decode import SIDEWAYS, Header, Reading, read_header, read_image, read_mask
from datasets.sample import Sample, Saturation
from datasets.seen import Seen, seen_of_defect, seen_of_image
from datasets.transforms import ImageTransform
from errors import DataError

SHOWN = 20  # files that cannot be used


class Batch(NamedTuple):
    """images float32 [B, 3, H, W], normalised; masks bool [B, H, W], all False for normal images.

    Of a table the rows float32 [B, F], and masks [B, 0, 0].
    """

    images: Tensor
    masks: Tensor


class Defect(NamedTuple):
    """One defect: the index of its image, its mask bool [H, W], and the area in pixels that it saturates at."""

    image_index: int
    mask: NDArray[np.bool_]
    saturation_area: float


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Samples as (image, mask) pairs; rows of a table come as they are, with an empty mask.

    Args:
        samples: what to read.
        transform: brings image and mask to [3, H, W] and [H, W].
    """

    def __init__(self, samples: Sequence[Sample], transform: ImageTransform) -> None:
        self.samples = list(samples)
        self.transform = transform
        self.seen: dict[int, Seen] = {}  # of what this process read

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The image and mask at an index.

        Raises:
            DataError: a file that cannot be read.
        """
        sample = self.samples[index]
        if sample.values is not None:
            return torch.from_numpy(sample.values), torch.zeros(0, 0, dtype=torch.bool)
        if sample.pixels is None:
            image = read_image(sample.image_path, self.transform.reading)
        else:
            image = Image.fromarray(sample.pixels)
        pixels = self.transform.image(image)
        seen = seen_of_image(self.transform, *image.size)
        defective = torch.zeros(pixels.shape[-2:], dtype=torch.bool)
        for path in sample.mask_paths:
            values = read_mask(path)
            defective |= self.transform.mask(_binary(values))
            seen += seen_of_defect(self.transform, values > 0)
        self.seen[index] = seen
        return pixels, defective


def check_headers(samples: Sequence[Sample], reading: Reading = Reading()) -> list[Header]:  # noqa: B008 - frozen
    """Look into every file as far as its header, so that a bad one is known before hours of training.

    Returns:
        Of every image its header, in order; none of rows.

    Raises:
        DataError: files that are not there, are no images or too large, or masks of another size than their image;
            all of them.
    """
    headers: list[Header] = []
    problems: list[str] = []
    for sample in samples:
        if sample.values is not None:
            continue
        try:
            headers.append(_header(sample, reading))
        except DataError as error:
            problems.append(str(error))
    if problems:
        count = f"{len(problems)} files cannot be used: " if len(problems) > 1 else ""
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError(count + "; ".join(problems[:SHOWN]) + more)
    return headers


def _header(sample: Sample, reading: Reading) -> Header:
    """An image's header, whose masks have its size.

    Raises:
        DataError: as check_headers, of this sample.
    """
    if sample.pixels is not None:
        return Header(*sample.pixels.shape[1::-1])
    header = read_header(sample.image_path, reading)
    for path in sample.mask_paths:
        mask = read_header(path, replace(reading, oriented=True))
        if mask[:2] == header[:2]:
            continue
        turned = ""
        if header.orientation in SIDEWAYS and mask[:2] == header[1::-1]:
            turned = (
                f", turned as its EXIF orientation ({header.orientation}) says: turn the mask too or, where it fits "
                "the image as stored, remove the orientation from the image"
            )
        raise DataError(
            f"mask '{path}' is {mask.width} x {mask.height} pixels, "
            f"but its image '{sample.image_path}' is {header.width} x {header.height}{turned}"
        )
    return header


def read_defects(
    samples: Sequence[Sample], saturation: Mapping[int, Saturation], transform: ImageTransform
) -> list[Defect]:
    """Every defect for metrics.spro, but those that were cropped out.

    Args:
        samples: images whose masks hold a defect each.
        saturation: by the pixel value of a mask; empty where a dataset defines none, and then there are no defects.
        transform: what brings the images to the size of their maps.

    Returns:
        A defect per mask file, its area in pixels of its mask.

    Raises:
        DataError: a mask that cannot be read or has a pixel value that `saturation` lacks.
    """
    defects: list[Defect] = []
    for index, sample in enumerate(samples if saturation else []):
        for path in sample.mask_paths:
            values = read_mask(path)
            rule = _saturation_of(path, values, saturation)
            mask = transform.mask(_binary(values)).numpy()
            area = float(mask.sum())
            if area:
                height, width = values.shape
                unit = area if rule.relative else transform.area_scale(width, height)
                defects.append(Defect(index, mask, min(rule.threshold * unit, area)))
    return defects


def _saturation_of(path: Path, values: NDArray[np.integer], saturation: Mapping[int, Saturation]) -> Saturation:
    found = np.unique(values[values > 0]).tolist()
    if len(found) != 1 or found[0] not in saturation:
        shown = ", ".join(map(str, found)) or "none but 0"
        raise DataError(f"mask '{path}' has pixel values {shown}: expected one that defects_config.json defines")
    return saturation[found[0]]


def _binary(values: NDArray[np.integer]) -> Image.Image:
    return Image.fromarray((values > 0).view(np.uint8))


class BatchLoader:
    """Batches of a dataset, read by worker processes; may be iterated any number of times.

    Attributes:
        seen: how much of the images and defects is seen, once a pass is over.

    Args:
        dataset: where images come from.
        batch_size: images per batch; the last one may be smaller.
        num_workers: processes that read and transform; 0 reads in this one.
        order: a new order at every pass, and seeds of random changes; None keeps the dataset's order.
    """

    def __init__(
        self, dataset: ImageDataset, batch_size: int, num_workers: int = 0, order: "Shuffled | None" = None
    ) -> None:
        warnings.filterwarnings("ignore", "This DataLoader will create")  # slow disks want more readers than cores
        num_workers = min(num_workers, len(dataset))
        self._loader = DataLoader(
            _Items(dataset),
            batch_size,
            sampler=None if order is None else _Draws(order),
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            worker_init_fn=_leave_quietly,
            generator=torch.Generator(),  # it would draw a seed of the global one at every pass
        )
        self.seen = Seen()

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order.

        Raises:
            DataError: an image or mask that cannot be used.
        """
        total = Seen()
        for batch in self._loader:
            if isinstance(batch, DataError):
                raise batch
            tensors, seen = batch
            total += seen
            yield tensors
        self.seen = total


def _leave_quietly(_: int) -> None:
    """Keep a reader from printing a traceback when the run ends while it hands over a batch."""
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, ConnectionError | EOFError):
            shown(kind, error, trace)

    sys.excepthook = hook


class Shuffled(Sampler[int]):
    """The indices 0..n-1 in a new order at every pass, by a generator of its own; another seeds random changes."""

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self.generator = torch.Generator().manual_seed(seed)
        self.changes = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.n, generator=self.generator).tolist())

    def state_dict(self) -> dict[str, Tensor]:
        """What the next pass depends on."""
        return {"generator": self.generator.get_state(), "changes": self.changes.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what state_dict returned."""
        self.generator.set_state(state["generator"])
        self.changes.set_state(state["changes"])


class _Draws(Sampler[tuple[int, int]]):
    """Indices in their order, each with the seed of its random changes: whichever process reads it, they are the same.

    A sampler rather than a generator, for the loader wants its length.
    """

    def __init__(self, order: Shuffled) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        seeds = torch.randint(2**62, (len(self.order),), generator=self.order.changes).tolist()
        return zip(self.order, seeds, strict=True)


_Item = tuple[Tensor, Tensor, Seen]


class _Items(Dataset[_Item | DataError]):
    """A dataset for the loader, with what is seen of every image.

    DataErrors are items: raised in a worker they would reach the user as a traceback.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int | tuple[int, int]) -> _Item | DataError:
        if isinstance(item, tuple):
            item, seed = item
            torch.default_generator.manual_seed(seed)  # which random transforms draw from
        try:
            return *self.dataset[item], self.dataset.seen.pop(item, Seen())
        except DataError as error:
            return error


def _collate(items: list[_Item | DataError]) -> tuple[Batch, Seen] | DataError:
    for item in items:
        if isinstance(item, DataError):
            return item
    images, masks, seen = zip(*items, strict=True)
    return Batch(torch.stack(images), torch.stack(masks)), sum(seen, Seen())
