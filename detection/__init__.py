"""What every detector shares: its face, the loop of its training, the decision, anomaly maps, and models on disk."""

from detection.checkpoint import TrainedModel, load
from detection.decision import is_anomalous
from detection.detector import Detector, Prediction, autocast
from detection.training import EndOfPass, EpochStats, MovingAverage, Training, gradient_scaler, learn

__all__ = [
    "Detector",
    "EndOfPass",
    "EpochStats",
    "MovingAverage",
    "Prediction",
    "TrainedModel",
    "Training",
    "autocast",
    "gradient_scaler",
    "is_anomalous",
    "learn",
    "load",
]
