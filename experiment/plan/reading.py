"""How the files of a class are read: what is found of its images, and what is said of it."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import (
    ClassSamples,
    Header,
    ImageSizes,
    Reading,
    Sample,
    bit_depth_of,
    check_headers,
    largest_value,
    reader_count,
)
from errors import DataError
from experiment.dataset_config import DatasetConfig
from experiment.machine.progress import progress


@dataclass(frozen=True)
class ClassFound:
    """A class that was looked at.

    Attributes:
        samples: its images or rows.
        reading: how its images are read, bit depth included.
        is_square: whether all images to train on are as wide as high.
        sizes: of the images to train on; None without any.
        notes: what its user should know.
    """

    samples: ClassSamples
    reading: Reading
    is_square: bool = True
    sizes: ImageSizes | None = None
    notes: tuple[str, ...] = ()


def look_at(data: DatasetConfig, title: str, samples: ClassSamples, expected: ImageSizes | None = None) -> ClassFound:
    """What the headers of a class's images say, and what the pixels of those of 16 bits.

    Args:
        data, title, samples: the class.
        expected: the sizes that its images must have; None: any.

    Raises:
        DataError: a file that is no image, is too large, of no size that is expected, or has values beyond the depth;
            or a mask of another size than its image.
    """
    if samples.kind == "row":
        return ClassFound(samples, replace(data.reading, bit_depth=data.reading.bit_depth or 16))
    train, rest = samples.train, samples.validation + samples.test
    headers = check_headers(train + rest, data.reading)
    if expected is not None:
        _check_sizes(train + rest, headers, expected)
    notes = []
    if turned := sum(header.orientation != 1 for header in headers):
        notes.append(f"{title}: {_images(turned)} turned as their EXIF orientation says")
    if (laid := sum(header.has_alpha for header in headers)) and data.reading.background:
        notes.append(f"{title}: {_images(laid)} transparent: laid on {data.reading.background}")
    deep = [header.is_deep for header in headers]
    reading, note = _with_depth(data, title, _deep(train, deep[: len(train)]), _deep(rest, deep[len(train) :]))
    is_square = all(header.width == header.height for header in headers[: len(train)])
    sizes = ImageSizes.of(headers[: len(train)])
    return ClassFound(samples, reading, is_square, sizes, (*notes, *note))


def _check_sizes(samples: Sequence[Sample], headers: Sequence[Header], expected: ImageSizes) -> None:
    others = [i for i, header in enumerate(headers) if not expected.hold(header)]
    if others:
        first = headers[others[0]]
        more = f", and {len(others) - 1} more are of other sizes too" if len(others) > 1 else ""
        raise DataError(
            f"'{samples[others[0]].image_path}' is {first.width} x {first.height} pixels{more}: expected {expected}, "
            "as the training images, for what they show would be at another scale; bring them to that size, or train "
            "again with all images"
        )


def _images(count: int) -> str:
    return f"{count} image{'s are' if count > 1 else ' is'}"


def _deep(samples: Sequence[Sample], deep: Iterable[bool]) -> list[Path]:
    return [sample.image_path for sample, is_deep in zip(samples, deep, strict=True) if is_deep]


def _shown(title: str, values: Iterable[int], count: int) -> Iterable[int]:
    return progress(f"{title} bit depth", values, total=count, unit="image")


def _with_depth(
    data: DatasetConfig, title: str, train: Sequence[Path], rest: Sequence[Path]
) -> tuple[Reading, tuple[str, ...]]:
    """The reading with a bit depth: the one asked for, else what holds the largest value to train on, 16 where no file
    has 16 bits. Files of 8 bits cost nothing."""
    asked = data.reading.bit_depth
    if asked == 16 or not (train or rest):
        return replace(data.reading, bit_depth=asked or 16), ()
    with ThreadPoolExecutor(max(reader_count(data.num_workers), 1)) as threads:
        largest = list(_shown(title, threads.map(largest_value, train), len(train)))
        depth = asked or bit_depth_of(max(largest, default=65535))
        if depth < 16:
            largest += _shown(title, threads.map(largest_value, rest), len(rest))
    for path, value in zip([*train, *rest], largest, strict=False):
        if value >= 2**depth:
            whose = "--bit_depth" if asked else "the training images'"
            raise DataError(
                f"'{path}' holds values up to {value}, more than {whose} {depth} bits: give --bit_depth "
                f"{bit_depth_of(value)} or more"
            )
    found = f"{title}: 16-bit files are read as of {depth} bits, for the largest value to train on is "
    notes = (f"{found}{max(largest[: len(train)])} (--bit_depth)",) if train and not asked else ()
    return replace(data.reading, bit_depth=depth), notes
