"""What detectors of patch features share: the options that decide the features, and the half that embeds.

Detectors whose options of these agree read the same features, and so the same feature bank.
"""

from dataclasses import dataclass

from torch import Tensor

from backbones import Masked, embed_patches
from backbones.patches import patch_grid
from detection.anomaly_map import align_maps
from detection.detector import Detector
from detection.interest import rows_inside
from detection.light import Matching, match_light
from errors import UsageError
from options import WIDEST, option


@dataclass(frozen=True)
class PatchOptions:
    """Options of patch features, the base of a detector's own."""

    align_maps: bool = align_maps(decides_features=True)
    match_light: Matching = match_light()
    pretrain_embed_dimension: int = option(
        1024, "Values per patch and layer.", at_least=1, at_most=WIDEST, decides_features=True
    )
    target_embed_dimension: int = option(
        1024, "Values per patch, all layers together.", at_least=1, at_most=WIDEST, decides_features=True
    )
    patchsize: int = option(
        3, "Side of a patch's neighbourhood, in cells of a layer map.", at_least=1, decides_features=True
    )


class PatchDetector(Detector):
    """A detector of patch features, whose Options are PatchOptions and more."""

    @property
    def cell_shift(self) -> float:
        """Patches of even sides lie between cells."""
        return 0.0 if self.options.patchsize % 2 else 0.5

    def features(self, images: Tensor) -> Tensor:
        """Patch features of images [B, 3, H, W]: [B, H1, W1, D]."""
        maps = self.backbone(images, self.layers)  # one [B, C_l, H_l, W_l] per layer
        own = self.options
        embeddings = embed_patches(  # [B, H1 W1, D]
            maps, own.pretrain_embed_dimension, own.target_embed_dimension, own.patchsize, self.alignment
        )
        return embeddings.unflatten(1, patch_grid((maps[0].shape[-2], maps[0].shape[-1]), own.patchsize))

    def learned_from(self, masked: Masked) -> Tensor:
        """As in Detector, the patches of interest alone, as of so many images of one patch: [N, 1, 1, D]."""
        return rows_inside(*masked)

    def check(self) -> None:
        """Raises UsageError where the patches do not fit a layer."""
        for info in self.backbone.layer_info(self.layers, self.image_size):
            if min(patch_grid(info.grid, self.options.patchsize)) < 1:
                size = f"{info.grid[0]} x {info.grid[1]}"
                raise UsageError(
                    f"--patchsize {self.options.patchsize} does not fit layer {info.name}, which is {size}"
                )
