"""MVTec AD (Bergmann et al., CVPR 2019): CLASS/train/good, CLASS/test/TYPE, CLASS/ground_truth/TYPE/NAME_mask.png."""

from pathlib import Path

from datasets.sample import ClassSamples, DatasetReader, Sample
from errors import DataError

LAYOUT = "CLASS/train/good, CLASS/test/TYPE and CLASS/ground_truth/TYPE"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def find_classes(root: Path) -> list[str]:
    """Names of the folders below root that have a train/good folder, sorted."""
    return [path.name for path in _folders(root) if (path / "train" / "good").is_dir()]


def read_class(root: Path, class_name: str) -> ClassSamples:
    """The samples of one class, sorted by defect type and file name; hidden files and non-images are passed over.

    Raises:
        DataError: a folder is missing or empty, or a defect image has no mask.
    """
    folder = root / class_name
    for part in ("train/good", "test"):
        if not (folder / part).is_dir():
            raise DataError(f"class '{class_name}' has no folder '{folder / part}': expected {LAYOUT}")
    train = [Sample(path, None, False, class_name, "good") for path in _images(folder / "train" / "good")]
    test = [sample for kind in _folders(folder / "test") for sample in _test_samples(folder, kind.name)]
    for samples, part in ((train, "train/good"), (test, "test")):
        if not samples:
            raise DataError(
                f"no images in '{folder / part}': expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
    return ClassSamples(train, test)


def _test_samples(folder: Path, defect_type: str) -> list[Sample]:
    images = _images(folder / "test" / defect_type)
    if defect_type == "good":
        return [Sample(path, None, False, folder.name, defect_type) for path in images]
    mask_folder = folder / "ground_truth" / defect_type
    masks = {path.stem.removesuffix("_mask"): path for path in _images(mask_folder)} if mask_folder.is_dir() else {}
    missing = [path for path in images if path.stem not in masks]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"no mask for '{missing[0]}'{more}: expected '{mask_folder / (missing[0].stem + '_mask.png')}'")
    return [Sample(path, masks[path.stem], True, folder.name, defect_type) for path in images]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


MVTEC = DatasetReader(LAYOUT, find_classes, read_class)
