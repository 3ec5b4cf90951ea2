"""SimpleNet (Liu et al., CVPR 2023): a detector that discriminates patch features from their Gaussian-noised copies."""

from simplenet.checkpoint import TrainedModel, load
from simplenet.detector import Prediction, SimpleNet
from simplenet.model import Adaptor, Discriminator
from simplenet.training import EpochStats, Training, discrimination_loss

__all__ = [
    "Adaptor",
    "Discriminator",
    "EpochStats",
    "Prediction",
    "SimpleNet",
    "TrainedModel",
    "Training",
    "discrimination_loss",
    "load",
]
