"""What every detector shares: its face, the loop of its training, anomaly maps, and models on disk."""

from detection.checkpoint import TrainedModel, load
from detection.detector import Detector, Prediction, autocast
from detection.training import EndOfPass, EpochStats, MovingAverage, Training, learn

__all__ = [
    "Detector",
    "EndOfPass",
    "EpochStats",
    "MovingAverage",
    "Prediction",
    "TrainedModel",
    "Training",
    "autocast",
    "learn",
    "load",
]
