"""CIFAR-10 (Krizhevsky 2009) as torchvision keeps it: one class normal, the images of all others anomalous."""

import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.sample import ClassSamples, DatasetReader, Sample
from errors import DataError

FOLDER = "cifar-10-batches-py"
LAYOUT = f"{FOLDER} with data_batch_1 to data_batch_5, test_batch and batches.meta"
LOADED = {  # all that the published pickles name
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))


def find_classes(root: Path) -> list[str]:
    """The published names in the published order, where root is or holds the folder of the batches."""
    return _class_names(_folder(root)) if (_folder(root) / "batches.meta").is_file() else []


def read_class(root: Path, class_name: str) -> ClassSamples:
    """The training images of a class, and all test images, in the published order.

    Raises:
        DataError: a file is missing or not as published.
    """
    names = _class_names(_folder(root))
    train = [sample for batch in TRAIN for sample in _samples(root, batch, names, class_name, normal_only=True)]
    return ClassSamples(train, _samples(root, "test_batch", names, class_name))


def _folder(root: Path) -> Path:
    return root / FOLDER if (root / FOLDER).is_dir() else root


def _class_names(folder: Path) -> list[str]:
    names = _load(folder / "batches.meta").get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"'{folder / 'batches.meta'}' has no list of label_names: expected {LAYOUT}")
    return names


def _samples(root: Path, batch: str, names: list[str], class_name: str, normal_only: bool = False) -> list[Sample]:
    path = _folder(root) / batch
    pixels, labels = _read_batch(path)
    if not set(labels) <= set(range(len(names))):
        raise DataError(f"'{path}' has labels beyond the {len(names)} classes of batches.meta")
    samples = []
    for i, label in enumerate(labels):
        anomalous = names[label] != class_name
        if anomalous and normal_only:
            continue
        kind = names[label] if anomalous else "good"
        samples.append(Sample(root / batch / f"{i:05}", (), anomalous, class_name, kind, pixels=pixels[i]))
    return samples


@lru_cache(maxsize=len(TRAIN) + 1)  # ten classes share the images: 180 MB once, not ten times
def _read_batch(path: Path) -> tuple[NDArray[np.uint8], list[int]]:
    """Images [N, 32, 32, 3] and their labels."""
    batch = _load(path)
    data, labels = batch.get("data"), batch.get("labels")
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or data.shape[1:] != (3 * 32 * 32,)
        or not isinstance(labels, list)
        or not all(isinstance(label, int) for label in labels)
        or len(labels) != len(data)
    ):
        raise DataError(f"'{path}' is not a batch of CIFAR-10: expected data uint8 [N, 3072] and N labels")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays, numbers, strings, lists and dictionaries: a pickle can call whatever find_class lets it."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in LOADED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not loaded")
        return LOADED[module, name]


def _load(path: Path) -> dict[str, Any]:
    """A file's dictionary.

    Raises:
        DataError: a file that is missing, no pickle, or a pickle of anything but arrays and plain values.
    """
    if not path.is_file():
        raise DataError(f"no '{path}': expected {LAYOUT}")
    with path.open("rb") as file:
        try:
            content = _ArrayUnpickler(file, encoding="latin1").load()  # written by Python 2
        except Exception as error:  # a damaged pickle may raise anything
            raise DataError(f"'{path}' is no file of CIFAR-10: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"'{path}' is no file of CIFAR-10: expected a dictionary")
    return content


CIFAR10 = DatasetReader(
    "cifar10",
    "CIFAR-10 as torchvision keeps it, the images of all other classes anomalous",
    LAYOUT,
    find_classes,
    read_class,
    are_opposed=True,
)
