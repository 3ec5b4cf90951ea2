"""MVTec LOCO AD (Bergmann et al., IJCV 2022): logical and structural anomalies, a mask per defect, saturated areas."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets.class_folders import ClassFolders
from datasets.folders import TWO_IMAGES, images, missing_masks, one_of_each
from datasets.sample import ClassSamples, DatasetReader, Saturation
from errors import DataError

LAYOUT = (
    "CLASS/train/good, CLASS/validation/good, CLASS/test/TYPE, CLASS/ground_truth/TYPE/NAME/*.png "
    "and CLASS/defects_config.json"
)


def masks_by_folder(image_paths: Sequence[Path], mask_folder: Path) -> list[tuple[Path, ...]]:
    """The masks of every image: all images in a folder that is named as it is.

    Raises:
        DataError: an image without a mask, two images of one, or two masks of one name.
    """
    one_of_each(image_paths, lambda path: path.stem, TWO_IMAGES)
    masks = [tuple(images(mask_folder / path.stem)) for path in image_paths]
    missing = [path for path, found in zip(image_paths, masks, strict=True) if not found]
    if missing:
        raise missing_masks(missing, f"'{mask_folder / missing[0].stem / '000.png'}'")
    for found in masks:
        one_of_each(found, lambda path: path.stem, "are both the mask of one defect")
    return masks


FOLDERS = ClassFolders(masks=masks_by_folder, layout=LAYOUT)


def read_class(root: Path, class_name: str) -> ClassSamples:
    """The samples of one class, with its validation images and saturation areas.

    Raises:
        DataError: a folder is missing or empty, a defect image has no mask, or defects_config.json is not as published.
    """
    folder = root / class_name
    return replace(
        FOLDERS.read_class(root, class_name),
        validation=FOLDERS.normal_images(folder, "validation/good"),
        saturation=_read_saturation(folder / "defects_config.json"),
    )


def _read_saturation(path: Path) -> dict[int, Saturation]:
    try:
        defects = json.loads(path.read_text(encoding="utf-8"))
        return {
            int(defect["pixel_value"]): Saturation(
                float(defect["saturation_threshold"]), bool(defect["relative_saturation"])
            )
            for defect in defects
        }
    except FileNotFoundError as error:
        raise DataError(f"no '{path}': expected {LAYOUT}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{path}' is not as published: expected a list of objects with pixel_value, saturation_threshold "
            f"and relative_saturation ({error!r})"
        ) from error


MVTEC_LOCO = DatasetReader(
    "mvtec_loco", "MVTec LOCO AD; also called mvtecloco", LAYOUT, FOLDERS.find_classes, read_class, resize_mode="square"
)
