"""The plain way to do what the toolkit does: the algorithm as it is usually written, with nothing reused.

Every pass reads, resizes and embeds each image again; patches are unfolded and every unfolded plane is resized; the
adaptor and the discriminator are applied one after the other to normal and noisy features. Tests hold the toolkit's own
steps to the same numbers; here they are timed against each other.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage.measure import label, regionprops
from torch import Tensor

from simplenet.model import Adaptor, Discriminator


def embed(maps: list[Tensor], pretrain: int, target: int, patchsize: int) -> Tensor:
    """Patch embeddings [B*H1*W1, D]: unfold, resize each plane to the first grid, pool each layer, pool the stack."""
    grid = maps[0].shape[-2:]
    pooled = []
    for layer_map in maps:
        batch, channels, height, width = layer_map.shape
        unfolded = F.unfold(layer_map, patchsize, padding=(patchsize - 1) // 2)
        planes = unfolded.view(batch * channels * patchsize**2, 1, height, width)
        if (height, width) != tuple(grid):
            planes = F.interpolate(planes, size=grid, mode="bilinear", align_corners=False)
        patches = planes.view(batch, channels * patchsize**2, -1).transpose(1, 2)
        pooled.append(F.adaptive_avg_pool1d(patches.flatten(0, 1).unsqueeze(1), pretrain).squeeze(1))
    return F.adaptive_avg_pool1d(torch.stack(pooled, dim=1).flatten(1).unsqueeze(1), target).squeeze(1)


class Training:
    """Adaptor and discriminator with the usual step: three products with features instead of one."""

    def __init__(self, dim: int, hidden: int, noise_std: float, margin: float) -> None:
        self.adaptor, self.discriminator = Adaptor(dim), Discriminator(dim, hidden=hidden)
        self.noise_std, self.margin = noise_std, margin
        self.optimizers = [
            torch.optim.AdamW(self.adaptor.parameters(), lr=1e-4),
            torch.optim.Adam(self.discriminator.parameters(), lr=2e-4, weight_decay=1e-5),
        ]

    def step(self, features: Tensor) -> float:
        """One optimisation step on features [N, D]; the loss."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        true = self.adaptor(features)
        fake = true + torch.normal(0, self.noise_std, true.shape)
        scores = self.discriminator(torch.cat([true, fake]))
        true_scores, fake_scores = scores[: len(true)], scores[len(true) :]
        loss = (self.margin - true_scores).clip(min=0).mean() + (self.margin + fake_scores).clip(min=0).mean()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()


def pro(masks: NDArray[np.bool_], maps: NDArray[np.floating], thresholds: int = 200) -> float:
    """PRO as it is often computed: sampled thresholds; predictions are dilated by 5 x 5 for overlaps alone.

    The curve below a false-positive rate of 0.3 is stretched to the whole axis.
    """
    square = np.ones((5, 5), np.uint8)
    regions = [label(mask) for mask in masks]
    curve = []
    for threshold in np.linspace(maps.min(), maps.max(), thresholds, endpoint=False):
        found = maps > threshold
        overlaps = []
        for image, region in zip(found, regions, strict=True):
            dilated = cv2.dilate(image.astype(np.uint8), square)
            overlaps += [dilated[tuple(one.coords.T)].mean() for one in regionprops(region)]
        curve.append(((found & ~masks).sum() / (~masks).sum(), np.mean(overlaps)))
    fpr, overlap = np.array(sorted(point for point in curve if point[0] < 0.3)).T
    return float(np.trapezoid(overlap, fpr / fpr.max()))
