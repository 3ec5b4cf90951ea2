"""Datasets with a folder per class: CLASS/train/NORMAL, CLASS/test/TYPE and CLASS/ground_truth/TYPE."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.folders import apart_from_masks, folders, images, masks_by_stem, normal_samples, require_images
from datasets.sample import ClassSamples, Sample
from errors import DataError


@dataclass(frozen=True)
class ClassFolders:
    """How the folders of a class are named, and how masks are found.

    Attributes:
        normal: the folder of normal images, in train and in test.
        masks: from images and the folder of their masks to the masks of every image.
        layout: the layout in words.
    """

    normal: str = "good"
    masks: Callable[[Sequence[Path], Path], list[tuple[Path, ...]]] = masks_by_stem
    layout: str = "CLASS/train/good, CLASS/test/TYPE and CLASS/ground_truth/TYPE"

    def find_classes(self, root: Path) -> list[str]:
        """Names of the folders below root that have training images, sorted."""
        return [path.name for path in folders(root) if (path / "train" / self.normal).is_dir()]

    def read_class(self, root: Path, class_name: str) -> ClassSamples:
        """The samples of one class, sorted by defect type and file name; hidden files and non-images are passed over.

        Raises:
            DataError: a folder is missing or empty, or a defect image has no mask.
        """
        folder = root / class_name
        train = self.normal_images(folder, f"train/{self.normal}")
        self._require_folder(folder, "test")
        kinds = [kind.name for kind in folders(folder / "test", complete=True)]
        test = [sample for kind in kinds for sample in self._test_samples(folder, kind)]
        require_images(test, folder / "test")
        return ClassSamples(train, test)

    def normal_images(self, folder: Path, part: str) -> list[Sample]:
        """The images in a part of a class's folder.

        Raises:
            DataError: it is missing or empty.
        """
        self._require_folder(folder, part)
        samples = normal_samples(_images(folder / part), folder.name)
        require_images(samples, folder / part)
        return samples

    def _require_folder(self, folder: Path, part: str) -> None:
        if not (folder / part).is_dir():
            raise DataError(f"class '{folder.name}' has no folder '{folder / part}': expected {self.layout}")

    def _test_samples(self, folder: Path, defect_type: str) -> list[Sample]:
        image_paths = _images(folder / "test" / defect_type)
        if defect_type == self.normal:
            return normal_samples(image_paths, folder.name)
        masks = self.masks(image_paths, folder / "ground_truth" / defect_type)
        return [
            Sample(path, found, True, folder.name, defect_type) for path, found in zip(image_paths, masks, strict=True)
        ]


def _images(folder: Path) -> list[Path]:
    found, beside = apart_from_masks(images(folder))
    for image, mask in beside.items():
        raise DataError(f"'{mask}' is named as the mask of '{image.name}': expected in ground_truth, not among images")
    return found
