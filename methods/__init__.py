"""The detectors by the commands that train them, and load for the models of any of them."""

from pathlib import Path

import torch

from detection import Detector, TrainedModel
from detection import load as load_one_of
from methods.cfa import CFA
from methods.logicrd import LogicRD
from methods.multimodal import Multimodal
from methods.rd import ReverseDistillation
from simplenet import SimpleNet

DETECTORS: dict[str, type[Detector]] = {
    "net": SimpleNet,
    "cfa": CFA,
    "rd": ReverseDistillation,
    "logicrd": LogicRD,
    "multimodal": Multimodal,
}

__all__ = ["DETECTORS", "load"]


def load(folder: str | Path, device: torch.device | str = "cpu", backbone_weights: str | None = None) -> TrainedModel:
    """Read a trained model of any of DETECTORS: detection.load, which says what is raised."""
    return load_one_of(DETECTORS, folder, device, backbone_weights)
