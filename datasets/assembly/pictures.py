"""Every picture of the dataset, a function of its class, seed, split and index alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.assembly import defects
from datasets.assembly.box import BOX
from datasets.assembly.cable import CABLE
from datasets.assembly.render import Mask, defect_area, draw, photograph, see_mask
from datasets.assembly.rods import RODS
from datasets.assembly.scene import Kind, Rule

KINDS: dict[str, Kind] = {"box": BOX, "cable": CABLE, "rods": RODS}
LOGICAL, STRUCTURAL = "test/logical_anomalies", "test/structural_anomalies"
SPLITS = ("train/good", "validation/good", "test/good", LOGICAL, STRUCTURAL)


@dataclass(frozen=True)
class Picture:
    """An image, uint8 [SIZE, SIZE, 3], and every defect in it: its name and where it is, bool [SIZE, SIZE]."""

    image: NDArray[np.uint8]
    defects: list[tuple[str, Mask]]


def rules(class_name: str) -> list[Rule]:
    """The rules of all defects of a class; their pixel values count down from 255."""
    return [*KINDS[class_name].rules, *defects.RULES]


def picture(class_name: str, seed: int, split: str, index: int) -> Picture:
    """One picture; kinds of anomalies take turns.

    Args:
        class_name: a key of KINDS.
        seed: of the dataset.
        split: one of SPLITS.
        index: of the image in it.
    """
    kind = KINDS[class_name]
    rng = np.random.default_rng([seed, list(KINDS).index(class_name), SPLITS.index(split), index])
    if split == STRUCTURAL:
        name = list(defects.DEFECTS)[index % len(defects.DEFECTS)]
        image, mask = defects.damaged(kind.normal(rng), name, rng)
        return Picture(image, [(name, mask)])
    if split == LOGICAL:
        anomaly = list(kind.anomalies.values())[index % len(kind.anomalies)]
        scene, wrong = anomaly(rng)
    else:
        scene, wrong = kind.normal(rng), []
    canvas = draw(scene)
    found = [(defect.name, see_mask(defect_area(defect, canvas), scene.view)) for defect in wrong]
    return Picture(photograph(canvas.pixels, scene.view), found)
