"""ELPV: electroluminescence images of solar cells (Buerhop-Lutz et al. 2018; Deitsch et al. 2019), 300 x 300, no masks.

The split is ours: cells with defect probability 0 are normal, every fifth of them (in the package's order) is tested on
and the others trained on; cells with probability 1 are anomalous; those between are left out.
"""

import importlib.util
from pathlib import Path

from datasets.sample import ClassSamples, DatasetReader, Sample
from errors import DataError

CLASSES = ["mono", "poly"]
LAYOUT = "the data folder of elpv-dataset, with labels.csv and images/"


def default_root() -> Path:
    """The data folder of the installed package.

    Raises:
        DataError: the package is not installed.
    """
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "elpv without a path reads the package elpv-dataset, which is missing: pip install elpv-dataset"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def find_classes(root: Path) -> list[str]:
    """Both classes, mono and poly, where root holds labels.csv."""
    return CLASSES if (root / "labels.csv").is_file() else []


def read_class(root: Path, class_name: str) -> ClassSamples:
    """The samples of mono- or polycrystalline cells in the order of labels.csv.

    Raises:
        DataError: labels.csv is missing or malformed, names a file that is not there, or lists no cells of the class.
    """
    rows = [(path, probability) for path, probability, kind in _read_labels(root) if kind == class_name]
    normal = [Sample(path, (), False, class_name, "good") for path, probability in rows if probability == 0]
    defective = [Sample(path, (), True, class_name, "defect") for path, probability in rows if probability == 1]
    train = [sample for i, sample in enumerate(normal) if i % 5 != 0]
    if not train:
        raise DataError(f"'{root / 'labels.csv'}' lists no normal cells of class '{class_name}' to train on")
    test = normal[::5] + defective
    for sample in train + test:
        if not sample.image_path.is_file():
            raise DataError(f"'{root / 'labels.csv'}' names '{sample.image_path}', which does not exist")
    return ClassSamples(train, test)


def _read_labels(root: Path) -> list[tuple[Path, float, str]]:
    """(image path, defect probability, kind) of every line of labels.csv."""
    labels = root / "labels.csv"
    if not labels.is_file():
        raise DataError(f"no '{labels}': expected {LAYOUT}")
    rows = []
    for number, line in enumerate(labels.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            path, probability, kind = line.split()
            rows.append((root / path, float(probability), kind))
        except ValueError as error:
            raise DataError(
                f"'{labels}' line {number}: expected 'PATH PROBABILITY KIND', found '{line.strip()}'"
            ) from error
    return rows


ELPV = DatasetReader(
    "elpv",
    "solar cells, classes mono and poly; without DATA_PATH those of the installed elpv-dataset package",
    LAYOUT,
    find_classes,
    read_class,
    default_root,
)
