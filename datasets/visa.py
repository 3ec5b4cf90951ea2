"""VisA (Zou et al., ECCV 2022) as released, split by split_csv/1cls.csv, or converted to the layout of MVTec AD."""

import csv
from pathlib import Path

from datasets.class_folders import ClassFolders
from datasets.folders import TWO_IMAGES, missing_masks, normal_samples, one_of_each
from datasets.sample import ClassSamples, DatasetReader, Sample
from errors import DataError

SPLIT = Path("split_csv", "1cls.csv")
COLUMNS = {"object", "split", "label", "image", "mask"}
CONVERTED = ClassFolders()
LAYOUT = f"CLASS/Data and {SPLIT.as_posix()}, or {CONVERTED.layout}"


def find_classes(root: Path) -> list[str]:
    """The classes of the split that have a folder, or those of the converted layout; sorted."""
    if not (root / SPLIT).is_file():
        return CONVERTED.find_classes(root)
    return sorted(name for name in {row["object"] for row in _read_split(root)} if (root / name).is_dir())


def read_class(root: Path, class_name: str) -> ClassSamples:
    """The samples of one class, in the order of the split or, where there is none, of the converted layout.

    Raises:
        DataError: a malformed split, one that names a file that is not there or one mask for two images, or what the
            converted layout lacks.
    """
    if not (root / SPLIT).is_file():
        return CONVERTED.read_class(root, class_name)
    rows = [row for row in _read_split(root) if row["object"] == class_name]
    missing = [row for row in rows if row["label"] != "normal" and not row["mask"]]
    if missing:
        raise missing_masks([root / row["image"] for row in missing], f"a path in column mask of '{root / SPLIT}'")
    train = normal_samples(
        [root / row["image"] for row in rows if row["split"] == "train" and row["label"] == "normal"], class_name
    )
    test = [_test_sample(root, row) for row in rows if row["split"] == "test"]
    masks = {sample.image_path: sample.mask_paths for sample in test if sample.mask_paths}
    one_of_each(masks, masks.get, TWO_IMAGES)
    for samples, split in ((train, "train"), (test, "test")):
        if not samples:
            raise DataError(f"'{root / SPLIT}' lists no images of class '{class_name}' in split '{split}'")
    for sample in train + test:
        for path in (sample.image_path, *sample.mask_paths):
            if not path.is_file():
                raise DataError(f"'{root / SPLIT}' names '{path}', which does not exist")
    return ClassSamples(train, test)


def _test_sample(root: Path, row: dict[str, str]) -> Sample:
    if row["label"] == "normal":
        return normal_samples([root / row["image"]], row["object"])[0]
    return Sample(root / row["image"], (root / row["mask"],), True, row["object"], row["label"])


def _read_split(root: Path) -> list[dict[str, str]]:
    with (root / SPLIT).open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        if not COLUMNS.issubset(table.fieldnames or ()):
            raise DataError(f"'{root / SPLIT}' needs the columns {', '.join(sorted(COLUMNS))}")
        rows = list(table)
    for number, row in enumerate(rows, start=2):
        if any(row[column] is None for column in COLUMNS):
            raise DataError(f"'{root / SPLIT}' line {number}: expected a value for each of the columns")
    return rows


VISA = DatasetReader(
    "visa",
    "VisA as released, with split_csv/1cls.csv, or in the layout of MVTec AD",
    LAYOUT,
    find_classes,
    read_class,
    resize_mode="square",
)
