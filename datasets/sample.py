"""What every dataset is read into: one record per image, or per row of a table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datasets.columns import TableTransform
from errors import DataError


@dataclass(frozen=True)
class Sample:
    """One image or row: where it is, where its masks are (if there are any), and what is known of it.

    Attributes:
        image_path: the image file; only a name where `pixels` or `values` are given.
        mask_paths: masks whose non-zero pixels are defective, several where every defect has its own; empty for normal
            images and where a dataset has no masks.
        anomalous: the label.
        class_name: the class within the dataset, such as "bottle".
        defect_type: such as "broken_large"; "good" for normal images.
        interest_path: the mask of interest, white where the image is looked at; None: all of it is.
        pixels: uint8 [H, W, 3] where the image is no file of its own.
        values: [F], the encoded row where the sample is a row of a table.
    """

    image_path: Path
    mask_paths: tuple[Path, ...]
    anomalous: bool
    class_name: str
    defect_type: str
    interest_path: Path | None = None
    pixels: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    values: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Saturation:
    """The area of a defect beyond which finding more of it counts for nothing.

    Attributes:
        threshold: a share of the defect's area if `relative`, else pixels of the original image.
        relative: which of the two.
    """

    threshold: float
    relative: bool


@dataclass(frozen=True)
class ClassSamples:
    """The images or rows of one class, each list in a fixed order.

    Attributes:
        train: normal ones to train on.
        test: those to test on.
        validation: normal ones that are neither trained nor tested on.
        saturation: by the pixel value of a mask; empty where a dataset defines none.
        table: how the rows of a table were encoded; None for images.
        doubts: of masks that decided a label, what makes another meaning possible.
    """

    train: list[Sample]
    test: list[Sample]
    validation: list[Sample] = field(default_factory=list)
    saturation: dict[int, Saturation] = field(default_factory=dict)
    table: TableTransform | None = None
    doubts: dict[Path, str] = field(default_factory=dict)

    @property
    def kind(self) -> Literal["image", "row"]:
        """What its samples are."""
        return "image" if self.table is None else "row"


def split(samples: Sequence[Sample], share: float) -> tuple[list[Sample], list[Sample]]:
    """A share of samples, rounded down, and those held out: evenly spread, so that what changes slowly is in both.

    Raises:
        DataError: the share, --train_val_split, leaves none to train on.
    """
    count = len(samples)
    held_out = count - int(count * share)
    if held_out == count:
        raise DataError(f"--train_val_split {share} leaves none of {count} to train on")
    chosen = [(i + 1) * held_out // count > i * held_out // count for i in range(count)]
    return (
        [sample for sample, is_held in zip(samples, chosen, strict=True) if not is_held],
        [sample for sample, is_held in zip(samples, chosen, strict=True) if is_held],
    )


@dataclass(frozen=True)
class DatasetReader:
    """How one dataset is read.

    Attributes:
        name: what it is called on the command line.
        summary: what it holds, in a few words, for --help.
        layout: what is expected under a root folder, in words.
        find_classes: the classes under a root folder, in order; empty if there are none.
        read_class: the samples of one of them.
        default_root: where the data are if no path is given; None if a path must be.
        is_file: the root is a file and no folder.
        resize_mode: the geometry that suits its images: "aspect" where they are square, as the original's, "square"
            where they are not, of which "aspect" would cut much away; None: to be decided by looking at them.
        options: of its own, which it reads by: a dataclass of options; None where it has none.
        of: the reader of other such options.
        are_opposed: whether what is anomalous in a class are the normal images of the others.
    """

    name: str
    summary: str
    layout: str
    find_classes: Callable[[Path], list[str]]
    read_class: Callable[[Path, str], ClassSamples]
    default_root: Callable[[], Path] | None = None
    is_file: bool = False
    resize_mode: Literal["aspect", "square"] | None = "aspect"
    options: Any = None
    of: "Callable[[Any], DatasetReader] | None" = None
    are_opposed: bool = False
