"""MTD: surfaces of magnetic tiles (Huang et al., The Visual Computer 2020), MT_TYPE/Imgs with NAME.jpg and NAME.png.

The split is ours: a fifth of MT_Free, drawn by a generator of seed 0 whatever --seed is, is tested on and the rest
trained on, so that runs of different seeds are tested on the same images.
"""

from pathlib import Path

import numpy as np

from datasets.folders import TWO_IMAGES, TWO_MASKS, folders, images, missing_masks, normal_samples, one_of_each
from datasets.sample import ClassSamples, DatasetReader, Sample
from errors import DataError

CLASS = "tile"
NORMAL = "MT_Free"
LAYOUT = "MT_Free, MT_Blowhole, MT_Break, MT_Crack, MT_Fray and MT_Uneven with Imgs/NAME.jpg and Imgs/NAME.png"


def find_classes(root: Path) -> list[str]:
    """The one class, where root holds MT_Free/Imgs."""
    return [CLASS] if (root / NORMAL / "Imgs").is_dir() else []


def read_class(root: Path, class_name: str) -> ClassSamples:
    """The samples of all tiles: normal ones, then defects by type; sorted by file name.

    Raises:
        DataError: fewer than five normal images, which cannot be split, or a defect image without a mask.
    """
    normal = normal_samples(_photographs(root / NORMAL), class_name)
    if len(normal) < 5:
        raise DataError(f"'{root / NORMAL / 'Imgs'}' holds {len(normal)} photographs: at least 5 are expected")
    tested = set(np.random.default_rng(0).permutation(len(normal))[: len(normal) // 5].tolist())
    train = [sample for i, sample in enumerate(normal) if i not in tested]
    test = [sample for i, sample in enumerate(normal) if i in tested]
    for folder in folders(root, complete=True):
        if folder.name.startswith("MT_") and folder.name != NORMAL:
            test += _defects(folder, class_name)
    return ClassSamples(train, test)


def _photographs(folder: Path) -> list[Path]:
    return [path for path in images(folder / "Imgs") if path.suffix.lower() == ".jpg"]


def _defects(folder: Path, class_name: str) -> list[Sample]:
    image_paths = _photographs(folder)
    one_of_each(image_paths, lambda path: path.stem, TWO_IMAGES)
    drawn = [path for path in images(folder / "Imgs") if path.suffix.lower() == ".png"]
    masks = one_of_each(drawn, lambda path: path.stem, TWO_MASKS)
    missing = [path for path in image_paths if path.stem not in masks]
    if missing:
        raise missing_masks(missing, f"'{missing[0].with_suffix('.png')}'")
    defect_type = folder.name.removeprefix("MT_").lower()
    return [Sample(path, (masks[path.stem],), True, class_name, defect_type) for path in image_paths]


MTD = DatasetReader(
    "mtd",
    "magnetic tiles, folders MT_Free, MT_Crack and so on; class tile",
    LAYOUT,
    find_classes,
    read_class,
    resize_mode="square",
)
