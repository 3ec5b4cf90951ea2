"""What detectors of patches of layer maps share: the maps are kept, and patches made of them when they are needed.

Maps take much less room than patches: coarse layers are not repeated on the finest grid, and of pixels (`-b pixels`)
the windows overlap.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones import PIXELS, Features, Masked
from backbones.centres import Centres, middle
from backbones.float32 import full_float32
from backbones.patches import patch_grid, resize_to_first
from detection.anomaly_map import align_maps, anomaly_maps, highest
from detection.coreset import random_rows
from detection.detector import Detector
from detection.interest import cells_inside, lowest_outside, unmasked
from detection.light import Matching, match_light
from detection.prediction import Prediction
from detection.training import Passes
from detection.variance import require_finite
from errors import UsageError
from options import option

WINDOW = 8  # pixels along a window's side, where nothing else is asked for
CELLS = 3  # of a layer map, likewise
BLOCK = 2**26  # values of patches that are made at once


def patchsize(cells: int = CELLS) -> Any:
    """The option of this name, with so many cells of layer maps where it is not given."""
    text = (
        "Side of a patch: of a neighbourhood whose mean it is, in cells of a layer map; with -b pixels of a window "
        "whose pixels it is."
    )
    return option(None, text, shown=f"{cells}; with -b pixels {WINDOW}", at_least=1)


@dataclass(frozen=True)
class MapOptions:
    """Options of patches of layer maps, the base of a detector's own."""

    align_maps: bool = align_maps()
    match_light: Matching = match_light()
    patchsize: int | None = patchsize()
    stride: int | None = option(
        None,
        "From one patch to the next, in cells of the first layer; with -b pixels in pixels.",
        shown="1; with -b pixels half of --patchsize",
        at_least=1,
    )


class MapDetector(Detector):
    """A detector of patches of layer maps, whose Options are MapOptions and more.

    The feature bank keeps the maps, sum C_l H_l W_l values an image, those of pixels in float32.

    Attributes:
        grid: rows and columns of patches.
        width: values of a patch, D.

    Raises:
        UsageError: patches that do not fit the maps.
    """

    CELLS: ClassVar[int] = CELLS
    NEAREST: ClassVar[bool] = False  # deeper layers are repeated on the finest grid, not interpolated

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        infos, side = self.backbone.layer_info(self.layers, self.image_size), self.patchsize
        for info in reversed(infos):
            cells = _windows(info.grid, side) if self.of_pixels else patch_grid(info.grid, side)
            if min(cells) < 1:
                size = f"{info.grid[0]} x {info.grid[1]}"
                raise UsageError(f"--patchsize {side} does not fit layer {info.name}, which is {size}")
        self.grid = -(-cells[0] // self.stride), -(-cells[1] // self.stride)
        self.width = sum(info.channels for info in infos) * (side**2 if self.of_pixels else 1)

    @property
    def of_pixels(self) -> bool:
        """Whether patches are windows of the images."""
        return self.backbone.name == PIXELS

    @property
    def patchsize(self) -> int:
        """The side of a patch."""
        return self.options.patchsize or (WINDOW if self.of_pixels else self.CELLS)

    @property
    def stride(self) -> int:
        """From one patch to the next."""
        return self.options.stride or (max(1, self.patchsize // 2) if self.of_pixels else 1)

    @property
    def cell_shift(self) -> float:
        """Patches of even sides lie between cells."""
        return 0.0 if self.patchsize % 2 else 0.5

    @property
    def draws_aligned(self) -> bool:
        """Of maps of a backbone alone: windows are always drawn where they are."""
        return self.options.align_maps and not self.of_pixels

    @property
    def feature_type(self) -> torch.dtype:
        """Pixels differ by little from their neighbours."""
        return torch.float32 if self.of_pixels else self.precision

    def passes_of(self, has_held_out: bool) -> Passes:
        """One, to draw patches."""
        return Passes(steps=0, settling=1)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """The layers' maps, channels last: [B, H_l, W_l, C_l]."""
        return tuple(own.permute(0, 2, 3, 1) for own in self.backbone(images, self.layers))

    def patches(self, maps: Sequence[Tensor]) -> Tensor:
        """Patches of what features gives, float32 [B, h, w, D]; of a window by channel, row and column."""
        planes = [own.permute(0, 3, 1, 2).float() for own in maps]
        if self.of_pixels:
            windows = F.unfold(torch.cat(planes, dim=1), self.patchsize, stride=self.stride)  # [B, D, h w]
            return windows.transpose(1, 2).unflatten(1, self.grid)
        if self.patchsize > 1:
            planes = [F.avg_pool2d(own, self.patchsize, 1, (self.patchsize - 1) // 2) for own in planes]
        if self.NEAREST and self.alignment is None:
            planes = [repeated(own, planes[0].shape[2:]) for own in planes]
        else:
            planes = resize_to_first(planes, self.alignment)
        every = slice(None, None, self.stride)
        return torch.cat([own[:, :, every, every] for own in planes], dim=1).permute(0, 2, 3, 1)

    def in_parts(self, maps: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Maps of few images at a time, whose patches are at most BLOCK values; a traced graph takes all at once."""
        if torch.compiler.is_compiling():
            yield tuple(maps)
            return
        images = max(1, BLOCK // (self.grid[0] * self.grid[1] * self.width * self.stride**2))
        yield from zip(*(own.split(images) for own in maps), strict=True)

    def cells_inside(self, interest: Tensor | None) -> Tensor | None:
        """The patches that have pixels of interest, bool [B, h, w], by a mask, bool [B, H, W]; None: all have."""
        if interest is None:
            return None
        if self.of_pixels:
            return F.max_pool2d(interest.float().unsqueeze(1), self.patchsize, self.stride)[:, 0] > 0
        (info, *_) = self.backbone.layer_info(self.layers, self.image_size)
        every = slice(None, None, self.stride)
        return cells_inside(interest, patch_grid(info.grid, self.patchsize))[:, every, every]

    def forward(self, embeddings: tuple[Tensor, ...], interest: Tensor | None = None) -> Prediction:
        """Anomaly maps [B, H, W] and their maxima, in float32."""
        with full_float32(self.device):
            scores = torch.cat([self.scored(self.patches(part)) for part in self.in_parts(embeddings)])
            maps = self.drawn(lowest_outside(scores, self.cells_inside(interest)))
        return Prediction(highest(maps, interest), maps)

    def scored(self, patches: Tensor) -> Tensor:
        """Scores [B, h, w] of what patches gives."""
        raise NotImplementedError

    def learned_from(self, masked: Masked) -> Masked:
        """As in Detector: patches of no interest are left out where patches are made."""
        return masked

    def patches_and_cells(self, batches: Iterable[Features]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The patches [b, h, w, D] of batches of maps, few images at a time, and which are inside, bool [b, h, w]."""
        for batch in batches:
            maps, interest = unmasked(batch)
            if interest is None:
                yield from ((self.patches(part), None) for part in self.in_parts(maps))
                continue
            for *part, inside in self.in_parts((*maps, self.cells_inside(interest))):
                yield self.patches(part), inside

    def all_patches(self, batches: Iterable[Features]) -> Iterator[Tensor]:
        """The patches [b, h, w, D] of batches of maps, few images at a time; of masked ones those inside, [N, D]."""
        return (own if inside is None else own[inside] for own, inside in self.patches_and_cells(batches))

    def sample(self, patches: Iterable[Tensor], count: int) -> Tensor:
        """At most so many of all patches [..., D], read once, each as likely as any other, in random order: [N, D].

        Raises:
            DataError: patches that are not finite.
        """
        rows = random_rows(patches, count, self.seed)
        require_finite(rows)
        return rows

    @property
    def middles(self) -> tuple[Centres, Centres] | None:
        """Where the rows and columns of patches are; None where they share the image evenly."""
        if self.of_pixels:
            return (Centres((self.patchsize - 1) / 2, self.stride),) * 2
        if self.alignment is None and self.stride == 1:
            return None
        (info, *_) = self.backbone.layer_info(self.layers, self.image_size)
        cells = patch_grid(info.grid, self.patchsize)
        rows, columns = self.alignment.of(0) if self.alignment else map(middle, cells, self.image_size)
        return rows.within(0, self.stride), columns.within(0, self.stride)

    def drawn(self, scores: Tensor) -> Tensor:
        """Scores [B, h, w] of patches as anomaly maps [B, H, W]; see anomaly_maps."""
        return anomaly_maps(scores, self.image_size, centres=self.middles)

    def half(self) -> "MapDetector":
        """As in nn.Module, of the backbone alone: distances need more digits."""
        self.backbone.half()
        return self


def repeated(planes: Tensor, grid: Sequence[int]) -> Tensor:
    """Planes [B, C, h, w] on a finer grid, each cell the one that it lies in: [B, C, *grid]."""
    for axis, count in zip((2, 3), grid, strict=True):
        if count != planes.shape[axis]:
            cells = torch.arange(count, device=planes.device) * planes.shape[axis] // count
            planes = planes.index_select(axis, cells)
    return planes


def _windows(size: Sequence[int], side: int) -> tuple[int, int]:
    """Rows and columns of all windows of a side within a size."""
    return size[0] - side + 1, size[1] - side + 1
