"""Images of which only parts are of interest, as detectors have them: what is outside is neither learned nor scored.

Outside, images are blank before anything reads them, so that nothing inside depends on what is there. A cell of a map
is inside where any of its pixels is. Scores of cells outside are set to the lowest inside before a map is drawn, and do
not shine into it. Image scores are of what is inside, and pixels outside have none: NaN.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from backbones.features import Features, Masked
from backbones.resizing import averaged
from datasets import normalised
from datasets.transforms import IMAGENET_MEAN
from detection.training import Mapped

BLANK = tuple(round(255 * mean) for mean in IMAGENET_MEAN)  # of 255: about 0 once normalised, as what pads maps is


def blanked(images: Tensor, interest: Tensor) -> Tensor:
    """Normalised images [B, 3, H, W], blank where bool [B, H, W] says that they are of no interest."""
    blank = normalised(torch.tensor(BLANK, dtype=torch.uint8, device=images.device).view(3, 1, 1))
    return torch.where(interest.unsqueeze(1), images, blank.to(images.dtype))


def unmasked(features: Features) -> tuple[Features, Tensor | None]:
    """Features without their mask of interest, and that, bool [B, H, W]; None where there is none."""
    return (features.features, features.interest) if isinstance(features, Masked) else (features, None)


class Learner(Protocol):
    """A detector, as far as it says what it learns from."""

    learned_from: Callable[[Masked], Features]


def of_interest(learner: Learner, batches: Iterable[Features]) -> Mapped:
    """Batches of training samples' features as a detector learns from them."""
    return Mapped(lambda own: learner.learned_from(own) if isinstance(own, Masked) else own, batches)


def cells_inside(interest: Tensor | None, grid: Sequence[int]) -> Tensor | None:
    """The cells of a grid [h, w] over images that have pixels of interest, bool [B, h, w]; None: all have."""
    return None if interest is None else averaged(interest.float(), grid) > 0


def rows_inside(features: Tensor, interest: Tensor) -> Tensor:
    """Patches [B, h, w, D] of cells inside, as of so many images of one patch: [N, 1, 1, D]."""
    return features[cells_inside(interest, features.shape[1:3])][:, None, None]


def lowest_outside(scores: Tensor, inside: Tensor | None) -> Tensor:
    """Scores [B, ...], outside of bool [B, ...] the lowest of each image's inside; as they are where that is None."""
    if inside is None:
        return scores
    lowest = scores.masked_fill(~inside, torch.inf).flatten(1).amin(dim=1)
    return torch.where(inside, scores, lowest.view(-1, *[1] * (scores.ndim - 1)))


def calm(scores: Tensor, interest: Tensor | None) -> Tensor:
    """Scores [B, h, w] of the cells of a map, those outside the lowest inside."""
    return lowest_outside(scores, cells_inside(interest, scores.shape[1:]))
