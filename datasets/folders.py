"""What readers share: folders, the image files in them, masks by name, and the errors about both."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from datasets.masks import read_mask
from datasets.sample import Sample
from errors import DataError

ENDINGS = "png jpg jpeg jpe jfif bmp dib tif tiff webp ppm pgm pbm pnm jp2 tga gif avif"
IMAGE_SUFFIXES = frozenset(f".{ending}" for ending in ENDINGS.split())
MASK_MARKS = ("_gt", "_mask", "_label")  # at the end of the name of a mask that lies beside its image
TWO_MASKS, TWO_IMAGES = "are both the mask of one image", "would share one mask"


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
        DataError: an image without a mask, two masks of one image, or two images of one mask.
    """
    masks = one_of_each(images(mask_folder), lambda path: path.stem.removesuffix("_mask"), TWO_MASKS)
    one_of_each(image_paths, lambda path: path.stem, TWO_IMAGES)
    missing = [path for path in image_paths if path.stem not in masks]
    if missing:
        stem = missing[0].stem
        raise missing_masks(missing, f"'{mask_folder / f'{stem}_mask.png'}' or '{stem}.png' there")
    return [(masks[path.stem],) for path in image_paths]


def one_of_each(paths: Iterable[Path], name: Callable[[Path], Hashable], are: str) -> dict[Hashable, Path]:
    """Paths by a name that each of them has to have for itself.

    Raises:
        DataError: two of one name; `are` says what they are then.
    """
    found: dict[Hashable, Path] = {}
    for path in paths:
        first = found.setdefault(name(path), path)
        if first != path:
            raise DataError(f"'{first}' and '{path}' {are}: remove or rename one of them")
    return found


def apart_from_masks(paths: Sequence[Path]) -> tuple[list[Path], dict[Path, Path]]:
    """The images among some files, and the masks beside them: NAME_GT, NAME_mask or NAME_label of NAME, by image.

    Raises:
        DataError: two masks of one image, or two images of one mask.
    """
    stems = {path.with_suffix("") for path in paths}
    masks: dict[Path, Path] = {}
    for path in paths:
        mark = next((mark for mark in MASK_MARKS if path.stem.lower().endswith(mark)), "")
        if mark and path.with_name(path.stem[: -len(mark)]) in stems:
            masks[path] = path.with_name(path.stem[: -len(mark)])
    of = one_of_each(masks, masks.get, TWO_MASKS)
    found = [path for path in paths if path not in masks]
    one_of_each([path for path in found if path.with_suffix("") in of], lambda path: path.with_suffix(""), TWO_IMAGES)
    return found, {path: of[path.with_suffix("")] for path in found if path.with_suffix("") in of}


def missing_masks(image_paths: Sequence[Path], expected: str) -> DataError:
    """The error for anomalous images without a mask; `expected` is said of the first."""
    more = f" and {len(image_paths) - 1} more" if len(image_paths) > 1 else ""
    return DataError(f"no mask for '{image_paths[0]}'{more}: expected {expected}")


def normal_samples(image_paths: Sequence[Path], class_name: str) -> list[Sample]:
    """Records of normal images."""
    return [Sample(path, (), False, class_name, "good") for path in image_paths]


def labelled_sample(image_path: Path, mask_path: Path, class_name: str, doubts: dict[Path, str]) -> Sample:
    """The record of an image of which only the mask says whether it is anomalous: where it has defective pixels.

    A doubt about the mask is added to `doubts`.

    Raises:
        DataError: a mask that cannot be read.
    """
    mask = read_mask(mask_path)
    if mask.doubt is not None:
        doubts[mask_path] = mask.doubt
    if mask.values.any():
        return Sample(image_path, (mask_path,), True, class_name, "defect")
    return normal_samples([image_path], class_name)[0]


def require_images(found: Sequence[Path | Sample], folder: Path) -> None:
    """Raise a DataError where nothing was found in a folder."""
    if not found:
        raise DataError(f"no images in '{folder}': expected files ending in {', '.join(ENDINGS.split())}")
