"""SimpleNet (Liu et al., CVPR 2023): a detector that discriminates patch features from their Gaussian-noised copies."""

from functools import partial

from detection import Prediction, TrainedModel
from detection import load as load_one_of
from simplenet.detector import SimpleNet
from simplenet.model import Adaptor, Discriminator
from simplenet.training import discrimination_loss

load = partial(load_one_of, {"net": SimpleNet})

__all__ = [
    "Adaptor",
    "Discriminator",
    "Prediction",
    "SimpleNet",
    "TrainedModel",
    "discrimination_loss",
    "load",
]
