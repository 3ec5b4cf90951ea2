"""The detectors by the commands that train them, and load for the models of any of them.

A detector is imported when it is asked for: there are many, and a command needs one.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from options import declared

if TYPE_CHECKING:
    import torch

    from detection import Detector, TrainedModel


class Entry(NamedTuple):
    """Where a detector's class is, and what it is in a few words."""

    module: str
    name: str
    summary: str


ENTRIES = {
    "net": Entry("simplenet", "SimpleNet", "SimpleNet: a discriminator of patch features and their noisy copies."),
    "cfa": Entry("methods.cfa", "CFA", "CFA: distances to a memory bank, of adapted features."),
    "rd": Entry("methods.rd", "ReverseDistillation", "Reverse distillation: a student that decodes the backbone."),
    "stpm": Entry("methods.stpm", "STPM", "STPM: a student of the backbone's architecture that gives its maps."),
    "efficientad": Entry(
        "methods.efficientad", "EfficientAD", "EfficientAD: a small student of a small teacher, and an autoencoder."
    ),
    "logicrd": Entry("methods.logicrd", "LogicRD", "LogicRD: reverse distillation for logical anomalies too."),
    "patchcore": Entry("methods.patchcore", "PatchCore", "PatchCore: distances to a memory bank of normal patches."),
    "reconpatch": Entry("methods.reconpatch", "ReConPatch", "ReConPatch: a memory bank of patches drawn together."),
    "cpr": Entry(
        "methods.cpr", "CPR", "CPR: normal images like an image, and its patches near the same place in them."
    ),
    "template": Entry("methods.template", "Template", "Template matching: how far pixels are from normal images'."),
    "lowrank": Entry("methods.lowrank", "LowRank", "Low rank and sparse: what few places add to what repeats."),
    "frequency": Entry("methods.frequency", "Frequency", "Frequency: what the spectrum's regular pattern leaves."),
    "gaussian": Entry(
        "methods.gaussian", "Gaussian", "PaDiM: a Gaussian of every place; or of all patches, or a mixture."
    ),
    "oneclass": Entry("methods.oneclass", "OneClass", "OC-SVM and SVDD: a surface that holds most normal patches."),
    "sparse": Entry("methods.sparse", "SparseCoding", "Sparse coding: what few atoms of a dictionary do not make."),
    "fastflow": Entry("methods.fastflow", "FastFlow", "FastFlow: normalising flows, by which places are unlikely."),
    "msflow": Entry("methods.msflow", "MSFlow", "MSFlow: flows of layers that know their place, and see each other."),
    "multimodal": Entry("methods.multimodal", "Multimodal", "One Transformer for images and tables."),
}


class _Detectors(Mapping[str, "type[Detector]"]):
    """The classes by command."""

    def __getitem__(self, command: str) -> type[Detector]:
        entry = ENTRIES[command]
        return getattr(importlib.import_module(entry.module), entry.name)

    def __iter__(self) -> Iterator[str]:
        return iter(ENTRIES)

    def __len__(self) -> int:
        return len(ENTRIES)


DETECTORS = _Detectors()

__all__ = ["DETECTORS", "ENTRIES", "dataset_defaults", "load"]


def dataset_defaults(command: str, recipe: str = "paper") -> dict[str, Any]:
    """Defaults of dataset's options behind a detector, further ones by its recipe."""
    kind = DETECTORS[command]
    own = {one.name for one in declared(kind.Options)}
    further = {name: value for name, value in kind.RECIPES.get(recipe, {}).items() if name not in own}
    return {**kind.DATASET_DEFAULTS, **further}


def load(folder: str | Path, device: torch.device | str = "cpu", backbone_weights: str | None = None) -> TrainedModel:
    """Read a trained model of any of DETECTORS: detection.load, which says what is raised."""
    from detection import load as load_one_of

    return load_one_of(DETECTORS, folder, device, backbone_weights)
