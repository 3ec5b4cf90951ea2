"""What every dataset is read into: one record per image."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One image: where it is, where its mask is (if there is one), and what is known of it.

    Attributes:
        image_path: the image file.
        mask_path: a mask whose non-zero pixels are defective; None for normal images and where a dataset has no masks.
        anomalous: the label.
        class_name: the class within the dataset, such as "bottle".
        defect_type: such as "broken_large"; "good" for normal images.
    """

    image_path: Path
    mask_path: Path | None
    anomalous: bool
    class_name: str
    defect_type: str


@dataclass(frozen=True)
class ClassSamples:
    """The images of one class: normal ones to train on, and those to test on, each in a fixed order."""

    train: list[Sample]
    test: list[Sample]


@dataclass(frozen=True)
class DatasetReader:
    """How one dataset is read.

    Attributes:
        layout: what is expected under a root folder, in words.
        find_classes: the classes under a root folder, in order; empty if there are none.
        read_class: the samples of one of them.
        default_root: where the data are if no path is given; None if a path must be.
    """

    layout: str
    find_classes: Callable[[Path], list[str]]
    read_class: Callable[[Path, str], ClassSamples]
    default_root: Callable[[], Path] | None = None
