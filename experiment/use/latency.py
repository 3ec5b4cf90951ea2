"""How long a model takes: embedding and scoring apart, with all that a device still does."""

import torch
from torch import Tensor

from detection import Detector, Prediction, TrainedModel
from experiment.machine.usage import Stopwatch


class Latency:
    """Predicts as Detector.predict_read does, and takes the time of its two halves."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self._embed, self._score = Stopwatch(detector.device), Stopwatch(detector.device)

    @torch.no_grad()
    def predict_read(self, read: Tensor) -> Prediction:
        """The prediction of what Detector.embed_read takes."""
        with self._embed:
            embeddings = self.detector.embed_read(read)
        with self._score:
            return self.detector.score(embeddings)

    def taken(self) -> tuple[float, float]:
        """Seconds of embedding and of scoring since this was asked the last time."""
        found = self._embed.seconds, self._score.seconds
        self._embed.seconds = self._score.seconds = 0.0
        return found


def warm_up(model: TrainedModel, count: int, batch_size: int = 1) -> None:
    """Predict so many batches of black images, so that the first one of the user's is not slower than the others."""
    for _ in range(count):
        model.detector.predict_read(torch.zeros(batch_size, 3, *model.tiling.tile, dtype=torch.uint8))
