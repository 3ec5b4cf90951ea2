"""What readers share: folders, the image files in them, masks by name, and the errors about both."""

from collections.abc import Sequence
from pathlib import Path

from datasets.decode import read_mask
from datasets.sample import Sample
from errors import DataError

ENDINGS = "png jpg jpeg jpe jfif bmp dib tif tiff webp ppm pgm pbm pnm jp2 tga gif avif"
IMAGE_SUFFIXES = frozenset(f".{ending}" for ending in ENDINGS.split())


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones; none if it is missing."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def images(folder: Path, recursive: bool = False) -> list[Path]:
    """The image files in a folder, or also below it; sorted, without hidden files; none if it is missing."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in (folder.rglob("*") if recursive else folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def masks_by_stem(image_paths: Sequence[Path], mask_folder: Path) -> list[tuple[Path, ...]]:
    """The mask of every image: NAME_mask or NAME, with any image ending.

    Raises:
        DataError: an image without a mask.
    """
    masks = {path.stem.removesuffix("_mask"): path for path in images(mask_folder)}
    missing = [path for path in image_paths if path.stem not in masks]
    if missing:
        stem = missing[0].stem
        raise missing_masks(missing, f"'{mask_folder / f'{stem}_mask.png'}' or '{stem}.png' there")
    return [(masks[path.stem],) for path in image_paths]


def missing_masks(image_paths: Sequence[Path], expected: str) -> DataError:
    """The error for anomalous images without a mask; `expected` is said of the first."""
    more = f" and {len(image_paths) - 1} more" if len(image_paths) > 1 else ""
    return DataError(f"no mask for '{image_paths[0]}'{more}: expected {expected}")


def normal_samples(image_paths: Sequence[Path], class_name: str) -> list[Sample]:
    """Records of normal images."""
    return [Sample(path, (), False, class_name, "good") for path in image_paths]


def labelled_sample(image_path: Path, mask_path: Path, class_name: str) -> Sample:
    """The record of an image of which only the mask says whether it is anomalous: where it has non-zero pixels.

    Raises:
        DataError: a mask that cannot be read.
    """
    if read_mask(mask_path).any():
        return Sample(image_path, (mask_path,), True, class_name, "defect")
    return normal_samples([image_path], class_name)[0]


def require_images(found: Sequence[Path | Sample], folder: Path) -> None:
    """Raise a DataError where nothing was found in a folder."""
    if not found:
        raise DataError(f"no images in '{folder}': expected files ending in {', '.join(ENDINGS.split())}")
