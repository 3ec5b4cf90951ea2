"""What every detector shares: its face, the loop of its training, the decision, anomaly maps, and models on disk."""

from detection.checkpoint import TrainedModel, load
from detection.decision import FalseAlarms, false_alarms, is_anomalous
from detection.detector import Detector
from detection.precision import autocast
from detection.prediction import Prediction
from detection.training import (
    EndOfPass,
    EpochStats,
    Mapped,
    MovingAverage,
    Normal,
    Passes,
    Training,
    gradient_scaler,
    learn,
)

__all__ = [
    "Detector",
    "EndOfPass",
    "EpochStats",
    "FalseAlarms",
    "Mapped",
    "MovingAverage",
    "Normal",
    "Passes",
    "Prediction",
    "TrainedModel",
    "Training",
    "autocast",
    "false_alarms",
    "gradient_scaler",
    "is_anomalous",
    "learn",
    "load",
]
