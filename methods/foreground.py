"""Foreground of objects in CPR's cascade: a linear map of backbone features that tells the object from what is behind.

Nobody says where the object is: the border of the training images is taken for background, and of their middle what is
not like it for foreground. The equation is (5) in methods/cpr.py.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from errors import DataError

BORDER = 3 / 80  # of a side, the ring that votes for the background
REACH = 1 / 5  # of a side, how far the middle goes from the centre
CELLS = 50_000  # that are clustered
MOST = 15_000  # of either kind
CLIPPED = (1, 99)  # percent of the decision values


def foreground_map(features: NDArray[np.float32], seed: int) -> tuple[Tensor, Tensor]:
    """Weight [C] and bias [] of the foreground (5) by maps [N, C, h, w] of training images: about 0 and 1 of it.

    Raises:
        DataError: the middle of the images looks like their border everywhere.
    """
    from sklearn.cluster import KMeans  # late: other commands need not wait for it
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.RandomState(seed)
    height, width = features.shape[2:]
    cells = features.transpose(0, 2, 3, 1)  # [N, h, w, C]
    rows = cells.reshape(-1, cells.shape[-1])
    halves = KMeans(2, n_init=10, random_state=rng).fit(rows[rng.permutation(len(rows))[:CELLS]])
    codes = halves.predict(np.ascontiguousarray(rows)).reshape(cells.shape[:3])
    ring, middle = ring_and_middle(height, width)
    background = int(2 * codes[:, ring].sum() > codes[:, ring].size)
    outside = cells[:, ring][codes[:, ring] == background]
    inside = cells[:, middle][codes[:, middle] != background]
    if not len(inside) or not len(outside):
        raise DataError("the middle of the training images looks like their border: use --kind texture")
    kinds = [own[rng.permutation(len(own))[:MOST]] for own in (outside, inside)]
    labels = np.repeat([0, 1], [len(own) for own in kinds])
    found = LinearDiscriminantAnalysis().fit(np.concatenate(kinds), labels)
    values = rows @ found.coef_[0] + found.intercept_[0]
    low, high = np.percentile(values, CLIPPED)
    scale = 1 / max(high - low, 1e-8)
    weight, bias = found.coef_[0] * scale, (found.intercept_[0] - low) * scale
    return torch.from_numpy(weight).float(), torch.tensor(bias).float()


def ring_and_middle(height: int, width: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Cells [h, w] of a map's border, at least one wide, and those around its centre."""
    rows, columns = (np.arange(side) for side in (height, width))
    rings = [max(1, int(BORDER * side)) for side in (height, width)]
    at_border = [
        (own < ring) | (own >= side - ring)
        for own, ring, side in zip((rows, columns), rings, (height, width), strict=True)
    ]
    central = [abs(own - side // 2) < REACH * side for own, side in zip((rows, columns), (height, width), strict=True)]
    return np.logical_or.outer(*at_border), np.logical_and.outer(*central)


def foreground(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """w (5) of maps [B, C, h, w] in [0, 1]: [B, h, w]."""
    return (torch.einsum("bchw,c->bhw", maps.float(), weight) + bias).clamp(0, 1)
