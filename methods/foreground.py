"""The foreground of CPR's cascade: a linear map of backbone features that tells an object from what is behind it.

Nobody says where the object is: what most of the border of the training images is like is taken for background, and of
their middle what is not like it for foreground. The equation is (5) in methods/cpr.py.
"""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detection.neighbours import k_means, nearest
from errors import DataError

STARTS = 10  # of k-means
Cells = NDArray[np.float32]  # of layer maps, [N, C]
Mask = NDArray[np.bool_]

BORDER = 3 / 80  # of a side, the ring that votes for the background
REACH = 1 / 5  # of a side, how far the middle goes to either side of the centre
MOST = 15_000  # of background and of foreground
CLIPPED = 0.01  # of the decision values at either end


def foreground_map(cells: Cells, ring: Cells, middle: Cells, seed: int) -> tuple[Tensor, Tensor]:
    """Weight [C] and bias [] of the foreground (5).

    Args:
        cells: of training images, from anywhere; they are clustered, and scale the map.
        ring, middle: those of the border of these images and around their centre, see ring_and_middle.
        seed: of the clustering, and of the choice of MOST cells.

    Raises:
        DataError: the middle of the images looks like their border everywhere.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # late: other commands need not wait for it

    rng = np.random.default_rng(seed)
    halves = k_means(torch.from_numpy(cells), 2, seed, STARTS)
    at_ring, at_middle = (nearest(torch.from_numpy(own)[None], halves, 1).flatten().numpy() for own in (ring, middle))
    background = int(at_ring.mean() > 0.5)
    outside, inside = ring[at_ring == background], middle[at_middle != background]
    if not len(inside):
        raise DataError("the middle of the training images looks like their border: use --kind texture for this class")
    kinds = [own[rng.permutation(len(own))[:MOST]] for own in (outside, inside)]
    labels = np.repeat([0, 1], [len(own) for own in kinds])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # values that never move, or together, are no matter here
        found = LinearDiscriminantAnalysis().fit(np.concatenate(kinds), labels)
    direction, offset = found.coef_[0], found.intercept_[0]
    low, high = clipped_range(cells @ direction + offset)
    scale = 1 / max(high - low, 1e-8)
    return torch.from_numpy(direction * scale).float(), torch.tensor((offset - low) * scale).float()


def clipped_range(values: NDArray[np.floating]) -> tuple[float, float]:
    """The lowest and highest of values [N] but for CLIPPED of them at either end."""
    ordered, count = np.sort(values), max(1, int(CLIPPED * len(values)))
    return float(ordered[count - 1]), float(ordered[-count])


def ring_and_middle(height: int, width: int) -> tuple[Mask, Mask]:
    """Cells [h, w] of a map's border, at least one wide, and of the square around its centre, likewise."""
    at_border, at_centre = [], []
    for side in (height, width):
        places, ring, reach = np.arange(side), max(1, int(BORDER * side)), max(1, int(REACH * side))
        at_border.append((places < ring) | (places >= side - ring))
        at_centre.append((places >= side // 2 - reach) & (places < side // 2 + reach))
    return np.logical_or.outer(*at_border), np.logical_and.outer(*at_centre)


def foreground(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """w (5) of every cell of maps [B, C, h, w], in [0, 1]: [B, h, w]."""
    return (torch.einsum("bchw,c->bhw", maps.float(), weight) + bias).clamp(0, 1)
