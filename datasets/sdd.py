"""KolektorSDD: electrical commutators (Tabernik et al., JIM 2020), kos01 to kos50 with PartN.jpg and PartN_label.bmp.

The split is ours: normal images of every fifth item, in sorted order, are tested on and those of the others trained on;
all anomalous images are tested on. An image is anomalous where its label has defective pixels.
"""

from pathlib import Path

from datasets.folders import TWO_IMAGES, TWO_MASKS, folders, images, labelled_sample, missing_masks, one_of_each
from datasets.sample import ClassSamples, DatasetReader, Sample
from errors import DataError

CLASS = "commutator"
LAYOUT = "kos01 to kos50 with PartN.jpg and PartN_label.bmp"


def find_classes(root: Path) -> list[str]:
    """The one class, where root holds item folders with labels."""
    return [CLASS] if any(_is_label(path) for item in _items(root) for path in images(item)) else []


def read_class(root: Path, class_name: str) -> ClassSamples:
    """The samples of all items, sorted by item and file name.

    Raises:
        DataError: an image without a label or with two, a label of two images or that cannot be read, or nothing to
            train on.
    """
    train: list[Sample] = []
    test: list[Sample] = []
    doubts: dict[Path, str] = {}
    for i, item in enumerate(_items(root, complete=True)):
        samples = _item_samples(item, class_name, doubts)
        tested = [sample for sample in samples if sample.anomalous or i % 5 == 0]
        test += tested
        train += [sample for sample in samples if sample not in tested]
    if not train:
        raise DataError(f"no normal images to train on in '{root}': expected {LAYOUT}")
    return ClassSamples(train, test, doubts=doubts)


def _items(root: Path, complete: bool = False) -> list[Path]:
    return [path for path in folders(root, complete) if path.name.startswith("kos")]


def _is_label(path: Path) -> bool:
    return path.stem.endswith("_label")


def _item_samples(item: Path, class_name: str, doubts: dict[Path, str]) -> list[Sample]:
    image_paths = [path for path in images(item) if not _is_label(path)]
    one_of_each(image_paths, lambda path: path.stem, TWO_IMAGES)
    marked = [path for path in images(item) if _is_label(path)]
    labels = one_of_each(marked, lambda path: path.stem.removesuffix("_label"), TWO_MASKS)
    missing = [path for path in image_paths if path.stem not in labels]
    if missing:
        raise missing_masks(missing, f"'{item / f'{missing[0].stem}_label.bmp'}'")
    return [labelled_sample(path, labels[path.stem], class_name, doubts) for path in image_paths]


SDD = DatasetReader(
    "sdd",
    "KolektorSDD, folders kos01 to kos50; class commutator",
    LAYOUT,
    find_classes,
    read_class,
    resize_mode="square",
)
