"""One's own images: folders of normal and anomalous images, and of masks if there are any."""

from collections import Counter
from dataclasses import dataclass, fields, replace
from itertools import permutations
from pathlib import Path

from datasets.folders import (
    TWO_MASKS,
    apart_from_masks,
    folders,
    images,
    missing_masks,
    normal_samples,
    one_of_each,
    require_images,
)
from datasets.masks import read_mask
from datasets.sample import ClassSamples, DatasetReader, Sample
from errors import DataError, UsageError
from options import option

NORMAL_NAMES = frozenset({"good", "ok", "normal"})


@dataclass(frozen=True)
class FolderNames:
    """Where the images of a class are, relative to its folder; all folders are read with those below them."""

    normal_dir: str = option("train/good", "Normal images to train on.")
    normal_test_dir: str = option(
        "test/good",
        "Normal images to test on.",
        shown="test/good, the folder in test of --normal_dir's name, or every fifth image of --normal_dir",
    )
    abnormal_dir: tuple[str, ...] = option(
        (),
        "Anomalous images, one folder per defect type; repeatable.",
        shown="every other folder in test",
    )
    mask_dir: str = option(
        "ground_truth",
        'Masks of the anomalous images, by defect type or for all: NAME or NAME_mask; "" for none.',
        shown="ground_truth, or beside the images, if there are any",
    )

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

    return DatasetReader(
        "folder",
        "your own images: DATA_PATH is a class or holds classes, with --normal_dir and the other folder options",
        layout,
        find_classes,
        read_class,
        resize_mode=None,
        options=names,
        of=folder_reader,
    )


def _read(folder: Path, class_name: str, names: FolderNames) -> ClassSamples:
    names = _with_normal_test(folder, names)
    abnormal = _abnormal_folders(folder, names)
    _check_apart([folder / names.normal_dir, *_others(folder, names), *abnormal])
    train, tested = _normal_images(folder, names)
    image_paths: list[tuple[Path, Path]] = []
    beside: dict[Path, Path] = {}
    for defect in abnormal:
        found, masks = _apart(images(defect, recursive=True))
        image_paths += [(path, defect) for path in found]
        beside |= masks
    _check_links_apart(train, tested + [path for path, _ in image_paths])
    masks_of = _find_masks(image_paths, beside, folder, names.mask_dir)
    anomalous = [
        Sample(path, found, True, class_name, defect.name)
        for (path, defect), found in zip(image_paths, masks_of, strict=True)
    ]
    return ClassSamples(normal_samples(train, class_name), normal_samples(tested, class_name) + anomalous)


def _with_normal_test(folder: Path, names: FolderNames) -> FolderNames:
    """The names, with the folder in `test` that is called as normal_dir is where no other was asked for.

    Raises:
        UsageError: the default exists beside it, or another folder of defects is called as normal images are.
    """
    alike, default = Path(names.normal_dir).name.casefold(), folder / FolderNames.normal_test_dir
    others = [path for path in folders(folder / "test") if path.resolve() != (folder / names.normal_dir).resolve()]
    same = [path for path in others if path.name.casefold() == alike and path != default]
    if names.normal_test_dir == FolderNames.normal_test_dir and same:
        if not default.is_dir():
            names = replace(names, normal_test_dir=same[0].relative_to(folder).as_posix())
        elif not names.abnormal_dir:
            raise UsageError(
                f"'{default}' and '{same[0]}' may both be normal: give --normal_test_dir and --abnormal_dir"
            )
    for path in [] if names.abnormal_dir else others:
        if path.name.casefold() in NORMAL_NAMES and path.resolve() != (folder / names.normal_test_dir).resolve():
            raise UsageError(
                f"'{path}' is called as normal images are, but would be tested on as a defect: give --normal_test_dir "
                f"{path.relative_to(folder).as_posix()}, or --abnormal_dir for every folder of defects"
            )
    return names


def _apart(paths: list[Path]) -> tuple[list[Path], dict[Path, Path]]:
    """Images, and the masks beside them; of a mask whose image is not there, a DataError."""
    found, beside = apart_from_masks(paths)
    for path in found:
        if path.stem.lower().endswith(("_gt", "_mask")):
            raise DataError(f"'{path}' is called as the mask of an image that is not beside it: remove or rename it")
    return found, beside


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
    """Normal images, which masks beside them have to agree with."""
    found, beside = _apart(images(folder, recursive=True))
    require_images(found, folder)
    for image, mask in beside.items():
        if read_mask(mask).values.any():
            raise DataError(
                f"'{image}' lies among normal images, but its mask '{mask}' has defective pixels: move both"
            )
    return found


def _existing(folder: Path, flag: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"no folder '{folder}' ({flag}): expected one with images")
    return folder


def _find_masks(
    image_paths: list[tuple[Path, Path]], beside: dict[Path, Path], folder: Path, mask_dir: str
) -> list[tuple[Path, ...]]:
    """The mask of every (image, its defect folder), or none of any where there are no masks at all."""
    has_folder = bool(mask_dir) and (mask_dir != FolderNames.mask_dir or (folder / mask_dir).is_dir())
    if not has_folder and not (mask_dir and beside):
        return [()] * len(image_paths)
    mask_folder = _existing(folder / mask_dir, "--mask_dir") if has_folder else folder / mask_dir
    masks = one_of_each(images(mask_folder, recursive=True), lambda path: _unmarked(path, mask_folder), TWO_MASKS)
    found = []
    for path, defect in image_paths:
        own = [beside[path]] if path in beside else []
        own += [masks[name] for name in _mask_names(path, defect) if name in masks][:1]
        if len(own) > 1:
            raise DataError(f"'{own[0]}' and '{own[1]}' {TWO_MASKS}: remove one of them")
        found.append(own[0] if own else None)
    missing = [pair for pair, mask in zip(image_paths, found, strict=True) if mask is None]
    if missing:
        expected = mask_folder / _mask_names(*missing[0])[0]
        raise missing_masks([path for path, _ in missing], f"'{expected}.png' or, to do without masks, --mask_dir \"\"")
    shared = [mask for mask, count in Counter(found).items() if count > 1]
    if shared:
        first, second = [path for (path, _), mask in zip(image_paths, found, strict=True) if mask == shared[0]][:2]
        advice = (
            "rename one of them" if first.parent == second.parent else "expected a folder of masks per defect folder"
        )
        raise DataError(f"mask '{shared[0]}' is that of '{first}' and of '{second}': {advice}")
    return [(mask,) for mask in found]


def _unmarked(mask: Path, mask_folder: Path) -> Path:
    """What a mask is the mask of: its path below the folder of masks, without _mask and ending."""
    path = mask.relative_to(mask_folder)
    return path.with_name(path.stem.removesuffix("_mask"))


def _mask_names(image_path: Path, defect: Path) -> list[Path]:
    """Where a mask may lie below the folder of masks, without _mask and ending."""
    stem = image_path.relative_to(defect).with_suffix("")
    return [Path(defect.name) / stem, stem]
