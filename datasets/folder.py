"""One's own images: folders of normal and anomalous images, and of masks if there are any."""

from collections import Counter
from dataclasses import dataclass, fields
from itertools import permutations
from pathlib import Path

from datasets.folders import folders, images, missing_masks, normal_samples, require_images
from datasets.sample import ClassSamples, DatasetReader, Sample
from errors import DataError, UsageError


@dataclass(frozen=True)
class FolderNames:
    """Where the images of a class are, relative to its folder; all folders are read with those below them.

    Attributes:
        normal_dir: normal images to train on.
        normal_test_dir: normal images to test on. Where the default does not exist, every fifth image of normal_dir is
            tested on and not trained on.
        abnormal_dir: a folder per defect type; empty: every folder in `test` that is none of the others.
        mask_dir: masks by defect type or for all; empty: there are none. The default need not exist.
    """

    normal_dir: str = "train/good"
    normal_test_dir: str = "test/good"
    abnormal_dir: tuple[str, ...] = ()
    mask_dir: str = "ground_truth"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            for name in value if isinstance(value, tuple) else (value,):
                if Path(name).is_absolute():
                    raise UsageError(f"--{field.name} {name}: expected a path relative to the class folder")


def folder_reader(names: FolderNames) -> DatasetReader:
    """The reader of images in folders of these names."""
    layout = f"{names.normal_dir}, or CLASS/{names.normal_dir}, with normal images to train on (--normal_dir)"

    def find_classes(root: Path) -> list[str]:
        """The name of root if that is a class itself, else of the folders in it that are; sorted."""
        if (root / names.normal_dir).is_dir():
            return [root.resolve().name]
        return [path.name for path in folders(root) if (path / names.normal_dir).is_dir()]

    def read_class(root: Path, class_name: str) -> ClassSamples:
        """The samples of one class, normal ones first, then by defect folder; sorted by path.

        Raises:
            UsageError: a folder that is asked for twice, or lies in another.
            DataError: a folder is missing or empty, or some anomalous images have masks and others have none.
        """
        folder = root if (root / names.normal_dir).is_dir() else root / class_name
        return _read(folder, class_name, names)

    return DatasetReader("folder", layout, find_classes, read_class, resize_mode=None)


def _read(folder: Path, class_name: str, names: FolderNames) -> ClassSamples:
    abnormal = _abnormal_folders(folder, names)
    _check_apart([folder / names.normal_dir, *_others(folder, names), *abnormal])
    train, tested = _normal_images(folder, names)
    image_paths = [(path, defect) for defect in abnormal for path in images(defect, recursive=True)]
    _check_links_apart(train, tested + [path for path, _ in image_paths])
    masks = _find_masks(image_paths, folder, names.mask_dir)
    anomalous = [
        Sample(path, found, True, class_name, defect.name)
        for (path, defect), found in zip(image_paths, masks, strict=True)
    ]
    return ClassSamples(normal_samples(train, class_name), normal_samples(tested, class_name) + anomalous)


def _others(folder: Path, names: FolderNames) -> list[Path]:
    """The folders of normal test images and of masks, where there are any."""
    others = [folder / names.normal_test_dir] + ([folder / names.mask_dir] if names.mask_dir else [])
    return [path for path in others if path.is_dir()]


def _abnormal_folders(folder: Path, names: FolderNames) -> list[Path]:
    taken = {(folder / names.normal_dir).resolve()} | {path.resolve() for path in _others(folder, names)}
    if not names.abnormal_dir:
        return [path for path in folders(folder / "test", complete=True) if path.resolve() not in taken]
    asked_for = [_existing(folder / name, "--abnormal_dir") for name in names.abnormal_dir]
    for path in asked_for:
        _images(path)
    return asked_for


def _check_apart(parts: list[Path]) -> None:
    for inner, outer in permutations(parts, 2):
        if inner.resolve().is_relative_to(outer.resolve()):
            raise UsageError(f"'{inner}' is or lies in '{outer}', so that images would be read twice: keep them apart")


def _check_links_apart(train: list[Path], tested: list[Path]) -> None:
    """Refuse links to folders that lead from images to train on to those to test on, or the other way round."""
    real = {folder: folder.resolve() for folder in {path.parent for path in train + tested}}
    trained_on = {real[path.parent]: path.parent for path in train}
    for path in tested:
        other = trained_on.get(real[path.parent])
        if other and other != path.parent:
            raise UsageError(
                f"'{other}' and '{path.parent}' are one folder, so that images would be trained and tested on"
            )


def _normal_images(folder: Path, names: FolderNames) -> tuple[list[Path], list[Path]]:
    """Those to train on and those to test on."""
    normal, tested_on = _images(folder / names.normal_dir), folder / names.normal_test_dir
    if tested_on.is_dir() or names.normal_test_dir != FolderNames.normal_test_dir:
        return normal, _images(_existing(tested_on, "--normal_test_dir"))
    if len(normal) < 2:
        raise DataError(
            f"'{folder / names.normal_dir}' holds one image, which cannot be both trained and tested on: add more, or "
            "give normal test images with --normal_test_dir"
        )
    return [path for i, path in enumerate(normal) if i % 5 != 0], normal[::5]


def _images(folder: Path) -> list[Path]:
    found = images(folder, recursive=True)
    require_images(found, folder)
    return found


def _existing(folder: Path, flag: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"no folder '{folder}' ({flag}): expected one with images")
    return folder


def _find_masks(image_paths: list[tuple[Path, Path]], folder: Path, mask_dir: str) -> list[tuple[Path, ...]]:
    """The mask of every (image, its defect folder), or none of any where there is no folder of masks."""
    if not mask_dir or (mask_dir == FolderNames.mask_dir and not (folder / mask_dir).is_dir()):
        return [()] * len(image_paths)
    mask_folder = _existing(folder / mask_dir, "--mask_dir")
    masks = {path.relative_to(mask_folder).with_suffix(""): path for path in images(mask_folder, recursive=True)}
    found = [
        next((masks[name] for name in _mask_names(path, defect) if name in masks), None) for path, defect in image_paths
    ]
    missing = [pair for pair, mask in zip(image_paths, found, strict=True) if mask is None]
    if missing:
        expected = mask_folder / _mask_names(*missing[0])[0]
        raise missing_masks([path for path, _ in missing], f"'{expected}.png' or, to do without masks, --mask_dir \"\"")
    shared = [mask for mask, count in Counter(found).items() if count > 1]
    if shared:
        first, second = [path for (path, _), mask in zip(image_paths, found, strict=True) if mask == shared[0]][:2]
        raise DataError(
            f"mask '{shared[0]}' is that of '{first}' and of '{second}': expected a folder of masks per defect folder"
        )
    return [(mask,) for mask in found]


def _mask_names(image_path: Path, defect: Path) -> list[Path]:
    """Where a mask may lie below the folder of masks, without its ending."""
    stem = image_path.relative_to(defect).with_suffix("")
    return [
        parent / stem.with_name(name)
        for parent in (Path(defect.name), Path())
        for name in (stem.name, f"{stem.name}_mask")
    ]
