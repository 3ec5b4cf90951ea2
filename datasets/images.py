"""Images from disk, one by one and in batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datasets.sample import Sample
from datasets.transforms import ImageTransform
from errors import DataError


class Batch(NamedTuple):
    """images float32 [B, 3, H, W], normalised; masks bool [B, H, W], all False for normal images."""

    images: Tensor
    masks: Tensor


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Samples as (image, mask) pairs.

    Args:
        samples: what to read.
        transform: brings image and mask to [3, H, W] and [H, W].
    """

    def __init__(self, samples: Sequence[Sample], transform: ImageTransform) -> None:
        self.samples = list(samples)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The image and mask at an index.

        Raises:
            DataError: a file that cannot be read.
        """
        sample = self.samples[index]
        pixels = self.transform.image(_read(sample.image_path, "RGB"))
        if sample.mask_path is None:
            return pixels, torch.zeros(pixels.shape[-2:], dtype=torch.bool)
        return pixels, self.transform.mask(_read(sample.mask_path, "L"))


def check_headers(samples: Sequence[Sample]) -> None:
    """Look into every file as far as its header, so that a bad one is known before hours of training.

    Raises:
        DataError: a file that is no image, or a mask of another size than its image; the first, and how many more.
    """
    problems = [problem for sample in samples if (problem := _header_problem(sample))]
    if problems:
        more = f" (and {len(problems) - 1} more such files)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)


def _header_problem(sample: Sample) -> str | None:
    try:
        image_size = _size(sample.image_path)
        if sample.mask_path is None or (mask_size := _size(sample.mask_path)) == image_size:
            return None
    except DataError as error:
        return str(error)
    return (
        f"mask '{sample.mask_path}' is {mask_size[0]} x {mask_size[1]} pixels, "
        f"but its image '{sample.image_path}' is {image_size[0]} x {image_size[1]}"
    )


class BatchLoader:
    """Batches of a dataset, read by worker processes; may be iterated any number of times.

    Args:
        dataset: where images come from.
        batch_size: images per batch; the last one may be smaller.
        num_workers: processes that read and transform; 0 reads in this one.
        shuffle_seed: seeds a new order at every pass; None keeps the dataset's order.
    """

    def __init__(
        self, dataset: ImageDataset, batch_size: int, num_workers: int = 0, shuffle_seed: int | None = None
    ) -> None:
        self._loader = DataLoader(
            _ErrorsAsItems(dataset),
            batch_size,
            sampler=None if shuffle_seed is None else Shuffled(len(dataset), shuffle_seed),
            num_workers=min(num_workers, len(dataset)),
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order.

        Raises:
            DataError: an image or mask that cannot be used.
        """
        for batch in self._loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch


class Shuffled(Sampler[int]):
    """The indices 0..n-1 in a new order at every pass, by a generator of its own."""

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.n, generator=self.generator).tolist())


class _ErrorsAsItems(Dataset[tuple[Tensor, Tensor] | DataError]):
    """A dataset whose DataErrors are items: raised in a worker they would reach the user as a traceback."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | DataError:
        try:
            return self.dataset[index]
        except DataError as error:
            return error


def _collate(items: list[tuple[Tensor, Tensor] | DataError]) -> Batch | DataError:
    for item in items:
        if isinstance(item, DataError):
            return item
    images, masks = zip(*items, strict=True)
    return Batch(torch.stack(images), torch.stack(masks))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image in a file; what Pillow may raise there becomes a DataError."""
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError as error:
        raise DataError(f"'{path}' is not an image that Pillow can read") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"'{path}' cannot be read: {error}") from error


def _read(path: Path, mode: str) -> Image.Image:
    with _opened(path) as image:
        return image.convert(mode)


def _size(path: Path) -> tuple[int, int]:
    with _opened(path) as image:
        return image.size
