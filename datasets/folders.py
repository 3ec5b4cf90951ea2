"""What readers share: folders, the image files in them, masks by name, and the errors about both."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from datasets.decode import MAX_PIXELS, check_pixels
from datasets.masks import mask_size, read_mask
from datasets.sample import Sample
from errors import DataError

ENDINGS = "png jpg jpeg jpe jfif bmp dib tif tiff webp ppm pgm pbm pnm jp2 tga gif avif"
IMAGE_SUFFIXES = frozenset(f".{ending}" for ending in ENDINGS.split())
MASK_MARKS = ("_gt", "_mask", "_label")  # at the end of the name of a mask that lies beside its image
TWO_MASKS, TWO_IMAGES = "are both the mask of one image", "would share one mask"


def folders(folder: Path, complete: bool = False) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones; none if it is missing.

    Args:
        folder: where to look.
        complete: whether all must be there.

    Raises:
        DataError: `complete`, and a name without an ending is a link to nothing.
    """
    inside = _visible(folder)
    lost = [path for path in inside if complete and not path.suffix and is_lost(path)]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise DataError(
            f"'{lost[0]}'{more}: a link to '{lost[0].readlink()}', which does not exist; fetch it (git annex get, dvc "
            "pull) or remove the link"
        )
    return [path for path in inside if path.is_dir()]


def images(folder: Path, recursive: bool = False) -> list[Path]:
    """The image files in a folder, or also below it; sorted, without hidden files; none if it is missing.

    Links are followed, those to folders once and never to one around the folder. Files that are not there are among the
    images, so that whoever reads them says so: links to nothing, and those that only DVC's NAME.dvc is there of.
    """
    files = _files_below(folder) if recursive else [path for path in _visible(folder) if not path.is_dir()]
    known = set(files)
    named = (path.with_suffix("") if path.suffix == ".dvc" else path for path in files)
    return sorted(
        path
        for path in dict.fromkeys(named)
        if path.suffix.lower() in IMAGE_SUFFIXES and (path not in known or path.is_file() or is_lost(path))
    )


def is_lost(path: Path) -> bool:
    """Whether a path is a link to nothing."""
    return path.is_symlink() and not path.exists()


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without what is hidden; nothing if it is missing."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _files_below(folder: Path) -> list[Path]:
    """All that is no folder. Links to folders come after the folders that are none, so that these keep their names."""
    files: list[Path] = []
    around = {folder.resolve(), *folder.resolve().parents}
    seen: set[Path] = set()
    own, linked = [folder], []
    while own or linked:
        here = own.pop(0) if own else linked.pop(0)
        place = here.resolve()
        if place in seen or (here != folder and place in around):
            continue
        seen.add(place)
        for path in _visible(here):
            if not path.is_dir():
                files.append(path)
            else:
                (linked if path.is_symlink() else own).append(path)
    return files


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
    check_pixels(mask_path, mask_size(mask_path), MAX_PIXELS)
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
