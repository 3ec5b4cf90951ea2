"""SimpleNet (Liu et al., CVPR 2023): a detector that discriminates patch features from their Gaussian-noised copies."""

from pathlib import Path

import torch

from detection import Prediction, TrainedModel
from detection import load as load_one_of
from simplenet.detector import SimpleNet
from simplenet.model import Adaptor, Discriminator
from simplenet.training import discrimination_loss

__all__ = [
    "Adaptor",
    "Discriminator",
    "Prediction",
    "SimpleNet",
    "TrainedModel",
    "discrimination_loss",
    "load",
]


def load(folder: str | Path, device: torch.device | str = "cpu", backbone_weights: str | None = None) -> TrainedModel:
    """Read a trained SimpleNet: detection.load, which says what is raised, for this detector alone."""
    return load_one_of({"net": SimpleNet}, folder, device, backbone_weights)
