"""What detectors of pixels share: the brightness of images in place of features, and scores that are read off maps."""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from backbones.resizing import averaged
from detection.anomaly_map import anomaly_maps, mean_of_highest
from detection.coreset import random_rows
from detection.detector import Detector
from detection.light import Matching, grey, match_light
from detection.memory_bank import WORKING_MEMORY
from detection.prediction import Prediction
from options import option

OF_DEVIATION = 1.4826  # the standard deviation of a Gaussian, over its median absolute deviation


@dataclass(frozen=True)
class PixelOptions:
    """Options of detectors of pixels, the base of their own."""

    match_light: Matching = match_light()
    sigma: float = option(
        2.0, "Standard deviation of the Gaussian that smooths maps, in pixels.", at_least=0.1, at_most=100
    )
    score_pixels: int = option(1, "An image's score is the mean of so many largest values of its map.", at_least=1)


class PixelDetector(Detector):
    """A detector of grey pixels from 0 to 1, whose Options are PixelOptions and more.

    Args:
        backbone, layers, image_size, seed, options: see Detector; the backbone is the image itself.
        precision: nothing is computed in less than float32.
    """

    NEEDS_BACKBONE = False

    @property
    def feature_type(self) -> torch.dtype:
        """As in Detector, float32."""
        return torch.float32

    def features(self, images: Tensor) -> Tensor:
        """Brightness of images [B, 3, H, W]: [B, H, W]."""
        return grey(images.float())

    def drawn_evenly(self, batches: Collection[Tensor]) -> Tensor:
        """Images of batches [B, H, W], which are read once: all, or as many as WORKING_MEMORY holds.

        Returns:
            [N, H, W] in random order, each image as likely as any other.
        """
        most = max(1, WORKING_MEMORY // (4 * math.prod(self.image_size)))
        return random_rows((own.flatten(1) for own in batches), most, self.seed).unflatten(1, self.image_size)

    def smoothed(self, values: Tensor) -> Tensor:
        """Maps [B, H, W] of values [B, h, w], in whose pixels sigma is."""
        return anomaly_maps(values, self.image_size, self.options.sigma * self.image_size[0] / values.shape[1])

    def predicted(self, maps: Tensor, interest: Tensor | None = None) -> Prediction:
        """These maps, and the means of their largest values where they are of interest, bool [B, H, W]."""
        return Prediction(mean_of_highest(maps, self.options.score_pixels, interest), maps)

    def half(self) -> "PixelDetector":
        """As in nn.Module, of nothing: see precision."""
        return self


def smaller(images: Tensor, side: int) -> Tensor:
    """Images [B, H, W] by the means of their squares, at most so many on each side: float32."""
    return averaged(images, [min(n, side) for n in images.shape[1:]])
