"""KolektorSDD2: surfaces (Bozic et al., Computers in Industry 2021), train and test with N.png and N_GT.png.

An image is anomalous where its mask has defective pixels; anomalous training images are left out.
"""

from pathlib import Path

from datasets.folders import images, labelled_sample, missing_masks, one_of_each, require_images
from datasets.sample import ClassSamples, DatasetReader, Sample

CLASS = "surface"
LAYOUT = "train and test with N.png and N_GT.png"


def find_classes(root: Path) -> list[str]:
    """The one class, where root holds training images with masks."""
    return [CLASS] if (root / "test").is_dir() and any("_GT" in path.stem for path in images(root / "train")) else []


def read_class(root: Path, class_name: str) -> ClassSamples:
    """The published split, sorted by file name.

    Raises:
        DataError: an image without a mask, two files of one name, a mask that cannot be read, or a folder without
            images.
    """
    doubts: dict[Path, str] = {}
    train = [sample for sample in _samples(root / "train", class_name, doubts) if not sample.anomalous]
    test = _samples(root / "test", class_name, doubts)
    require_images(train, root / "train")
    require_images(test, root / "test")
    return ClassSamples(train, test, doubts=doubts)


def _samples(folder: Path, class_name: str, doubts: dict[Path, str]) -> list[Sample]:
    found = one_of_each(images(folder), lambda path: path.stem, "have one name")
    image_paths = [path for path in found.values() if "_GT" not in path.stem]  # nor is "10301_GT(copy)" an image
    missing = [path for path in image_paths if f"{path.stem}_GT" not in found]
    if missing:
        raise missing_masks(missing, f"'{folder / f'{missing[0].stem}_GT.png'}'")
    return [labelled_sample(path, found[f"{path.stem}_GT"], class_name, doubts) for path in image_paths]


SDD2 = DatasetReader(
    "sdd2",
    "KolektorSDD2, folders train and test; class surface",
    LAYOUT,
    find_classes,
    read_class,
    resize_mode="square",
)
