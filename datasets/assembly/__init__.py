"""Assembly: drawn scenes with constraints, in MVTec LOCO's layout, with logical and structural anomalies.

    box     a tray with four compartments, each of which holds a fixed number of parts of one kind
    cable   joins terminals of the same number on two housings, and has the colour of a label
    rods    two rods of any lengths that add up lie end to end in a slot; a groove holds a fixed number of rivets

Textures are cut from the photographs that come with scikit-image; pose, light and noise vary. Every image is a
function of class, --dataset_seed, split and index, so that a larger dataset holds the images of a smaller one. A class
is written to the user's cache folder when it is first read, and read as MVTec LOCO is.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import click
import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from datasets.assembly.pictures import KINDS, SPLITS, picture, rules
from datasets.mvtec_loco import MVTEC_LOCO
from datasets.sample import ClassSamples, DatasetReader
from errors import DataError
from files import PARTIAL
from options import option

MOST = 100_000  # images that are written to the disk
SUMMARY = (
    "trays, cables and rods drawn with logical and structural anomalies, classes box, cable and rods; without "
    "DATA_PATH written to the cache folder first"
)
VERSION = 1  # of the images: raised whenever they change
CLASSES = list(KINDS)


@dataclass(frozen=True)
class AssemblyOptions:
    """Which images are drawn."""

    n_train: int = option(
        200,
        "Training images of a class; a tenth as many are for validation.",
        at_least=1,
        at_most=MOST,
    )
    n_test: int = option(100, "Test images, of good and both anomalies each.", at_least=1, at_most=MOST)
    dataset_seed: int = option(0, "Seeds its images.", at_least=0)

    def counts(self) -> dict[str, int]:
        """How many images every split has."""
        return dict(zip(SPLITS, (self.n_train, max(1, self.n_train // 10), *[self.n_test] * 3), strict=True))


def assembly_reader(options: AssemblyOptions) -> DatasetReader:
    """The reader of images drawn by these options or, of other folders, of those in MVTec LOCO's layout."""

    def make_root() -> Path:
        """The folder of these options in the user's cache, which is made where there is none.

        Raises:
            DataError: it cannot be.
        """
        root = cache_folder(options)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _no_room(root, error) from error
        return root

    def find_classes(root: Path) -> list[str]:
        """All classes where they are drawn, else those found."""
        return CLASSES if root == cache_folder(options) else MVTEC_LOCO.find_classes(root)

    def read_class(root: Path, class_name: str) -> ClassSamples:
        """The samples of a class, which is drawn and written first where it is not there yet.

        Raises:
            DataError: it cannot be written, or what MVTec LOCO's reader raises.
        """
        if root == cache_folder(options) and not (root / class_name).is_dir():
            click.echo(f"Writing class '{class_name}' of dataset 'assembly' to '{root}'", err=True)
            write_class(root / class_name, options)
        return MVTEC_LOCO.read_class(root, class_name)

    return DatasetReader(
        "assembly", SUMMARY, MVTEC_LOCO.layout, find_classes, read_class, make_root, options=options, of=assembly_reader
    )


def cache_folder(options: AssemblyOptions) -> Path:
    """Where the images of these options are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = f"v{VERSION}-seed_{options.dataset_seed}-train_{options.n_train}-test_{options.n_test}"
    return cache / "simplenet" / "assembly" / name


def write_class(folder: Path, options: AssemblyOptions) -> None:
    """Draw a class and write it whole or not at all; where another process did meanwhile, its folder stays.

    Args:
        folder: named as the class is.
        options: which images.

    Raises:
        DataError: no room or no right to.
    """
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex}{PARTIAL}")
    try:
        for name, content in _files(folder.name, options):
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    except OSError as error:
        raise _no_room(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _files(class_name: str, options: AssemblyOptions) -> Iterator[tuple[str, bytes]]:
    """The name below the folder of the class and the content of every file."""
    values = {rule.name: 255 - i for i, rule in enumerate(rules(class_name))}
    config = [
        {
            "defect_name": rule.name,
            "pixel_value": values[rule.name],
            "saturation_threshold": rule.threshold,
            "relative_saturation": rule.relative,
        }
        for rule in rules(class_name)
    ]
    yield "defects_config.json", json.dumps(config, indent=2).encode()
    counts = options.counts()
    places = ((split, i) for split, count in counts.items() for i in range(count))
    bar = tqdm(places, class_name, sum(counts.values()), leave=False, unit="image", dynamic_ncols=True, disable=None)
    for split, i in bar:
        drawn = picture(class_name, options.dataset_seed, split, i)
        yield f"{split}/{i:03}.png", _png(drawn.image[..., ::-1])
        for k, (name, mask) in enumerate(drawn.defects):
            path = f"{split.replace('test', 'ground_truth')}/{i:03}/{k:03}.png"
            yield path, _png(mask.astype(np.uint8) * np.uint8(values[name]))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def _no_room(path: Path, error: OSError) -> DataError:
    """What to tell a user whose cache folder takes no images."""
    return DataError(
        f"dataset 'assembly' cannot be written to '{path}': {error.strerror}; "
        "make room there, or set XDG_CACHE_HOME to a folder for such files"
    )


ASSEMBLY = assembly_reader(AssemblyOptions())
