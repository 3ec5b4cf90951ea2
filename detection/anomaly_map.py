"""From a grid of patch scores to an anomaly map: bilinear upsampling, then a Gaussian (SimpleNet, section 3.5)."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.alignment import PIXELS, interpolation, interpolation_on, resampled
from backbones.centres import Centres
from backbones.devices import kept_on_device
from backbones.resizing import resized
from options import option

SIGMA = 4.0  # pixels


def align_maps(**role: bool) -> Any:
    """The option of this name, which detectors that draw maps have; `role` says whether it decides the features."""
    text = (
        "Draw each layer's cells where they look, found by tracing and, of learned weights, measuring them; else they "
        "share the image evenly, as in the papers."
    )
    return option(False, text, "--align_maps", "--no_align_maps", **role)


def anomaly_maps(
    patch_scores: Tensor,
    size: tuple[int, int],
    sigma: float = SIGMA,
    align_corners: bool = False,
    centres: tuple[Centres, Centres] | None = None,
) -> Tensor:
    """Upsample and smooth patch scores: M = A_h S A_w^T.

    Both steps are linear and separable, so each axis is one small matrix A = (Gaussian)(bilinear) and a map is two
    matrix products.

    Args:
        patch_scores: [B, H1, W1].
        size: height and width of the maps in pixels.
        sigma: standard deviation of the Gaussian in pixels; borders are mirrored (scipy's "reflect", truncate 4).
        align_corners: whether the outermost cells lie on the outermost pixels, or half a cell inside.
        centres: of rows and columns, where their scores are drawn in place of either.

    Returns:
        float32 [B, H, W] on the scores' device.
    """
    rows, columns = (
        _upsample_and_smooth(patch_scores.device, n_in, n_out, sigma, align_corners, own)
        for n_in, n_out, own in zip(patch_scores.shape[-2:], size, centres or (None, None), strict=True)
    )
    return resampled(patch_scores, rows, columns)


def upsampled(values: Tensor, size: tuple[int, int], centres: tuple[Centres, Centres] | None = None) -> Tensor:
    """Values [B, h, w] of cells at every pixel, bilinear, for what is not smoothed yet; arguments as of anomaly_maps.

    Returns:
        float32 [B, H, W] on the values' device.
    """
    if centres is None:
        return resized(values.float().unsqueeze(1), size)[:, 0]
    rows, columns = (
        interpolation_on(values.device, own, n_in, PIXELS, n_out)
        for own, n_in, n_out in zip(centres, values.shape[-2:], size, strict=True)
    )
    return resampled(values, rows, columns)


def highest(values: Tensor, inside: Tensor | None = None) -> Tensor:
    """The highest of each image's values [B, ...] where inside, bool [B, ...], is; of all where that is None: [B]."""
    return (values if inside is None else values.masked_fill(~inside, -torch.inf)).flatten(1).amax(dim=1)


def mean_of_highest(values: Tensor, count: int, inside: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
    """The mean of so many highest values of each image's [B, ...], of all where there are fewer: [B].

    Of those inside, bool [B, ...], where that is given; then it may be fewer of some images, counts [B].
    """
    flat = values.flatten(1)
    count = min(count, flat.shape[1])
    if inside is None:
        return flat.topk(count, dim=1).values.mean(dim=1)
    found = flat.masked_fill(~inside.flatten(1), -torch.inf).topk(count, dim=1).values
    numbers = inside.flatten(1).sum(dim=1, keepdim=True).clamp(max=count)
    if counts is not None:
        numbers = torch.minimum(numbers, counts.unsqueeze(1))
    is_inside = torch.arange(count, device=found.device) < numbers
    return torch.where(is_inside, found, 0).sum(dim=1) / numbers[:, 0]


def smoothed(maps: Tensor, sigma: float = SIGMA) -> Tensor:
    """Maps [B, H, W] after a Gaussian whose borders are mirrored without repeating the outermost pixel (truncate 4)."""
    return resampled(maps, *(_smoothing(maps.device, n, sigma) for n in maps.shape[-2:]))


@kept_on_device
def _smoothing(n: int, sigma: float) -> Tensor:
    """A [n, n], on a device given before the other arguments."""
    from scipy.ndimage import gaussian_filter1d  # late: other commands need not wait for it

    return torch.from_numpy(gaussian_filter1d(np.eye(n), sigma, axis=0, mode="mirror")).float()


@kept_on_device
def _upsample_and_smooth(
    n_in: int, n_out: int, sigma: float = SIGMA, align_corners: bool = False, centres: Centres | None = None
) -> Tensor:
    """A [n_out, n_in], on a device given before the rest: the response along one axis to a unit score in each cell."""
    from scipy.ndimage import gaussian_filter1d  # late: other commands need not wait for it

    if centres is None:
        unit = torch.eye(n_in, dtype=torch.float64).unsqueeze(0)
        upsampled = F.interpolate(unit, size=n_out, mode="linear", align_corners=align_corners)[0].T
    else:
        upsampled = interpolation(centres, n_in, PIXELS, n_out)
    return torch.from_numpy(gaussian_filter1d(upsampled.numpy(), sigma, axis=0, mode="reflect")).float()
