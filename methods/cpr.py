"""CPR: cascade patch retrieval (Li et al.: Target before Shooting, IEEE TIP 2024, arXiv 2308.06748).

Normal images that are like a test image are found first, then its places are sought near the same places in them, by
features that learned to tell defects; what has no like there is anomalous, as far as it is foreground. The equations,
as numbered here, with the maps F_l of a frozen backbone, from fine to coarse:

    h_uv = histogram of the nearest of M codes of F_1 in block u, v of 5 x 5         global retrieval              (1)
    D^i = sum over the 20 smallest of the 25 KL(h_uv, h_uv^i)                        K references: smallest D^i    (2)
    A_l[r,c] = min over references k and |r'-r|, |c'-c| <= region / 2 of 1 - cos(q_l[r,c], q_l^k[r',c'])            (3)
               q_l = local branch of F_l (local_branch.py), region 1 in all layers but the first
    map = Gaussian(w * upsample(sum_l resize(A_l)))                                  sigma 4                       (4)
    w = max over the image and its K references of clip(a F_1 + b, 0, 1)             foreground; of textures 1     (5)
    L = sum_l mean+ (w+ max(0, 0.8 - cos))^3 + mean- (w- max(0, cos + 0.2))^3        over pairs of places          (6)
    w- = |F_l - F_l'|^2 of distant places, scaled to a mean of 1 per image; 1 where the query has a defect         (7)
    image score = sum of the T largest values of the map                                                           (8)

(1) to (3) are in retrieval.py, (5) in foreground.py, (6) and (7) in pairs.py, training in cascade.py. As in the
authors' program, (2) is of the test image relative to the reference, and the weights of (6) stand inside the power. The
codes are the k-means centres of cells of the training images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.float32 import full_float32
from backbones.patches import resize_to_first
from detection import Detector, Normal, Passes, Prediction, autocast
from detection.anomaly_map import align_maps, smoothed, upsampled
from detection.detector import LARGEST_EXPORT
from detection.interest import calm
from detection.light import Matching, match_light
from detection.state import Sizes
from detection.textures import Textures, texture_dir
from errors import UsageError
from methods.cascade import References, Trainer, learn_cells, read_references
from methods.foreground import foreground
from methods.local_branch import LocalBranch
from methods.retrieval import BLOCKS, codes, divergences, histograms, local_distances, nearest_images
from options import option

AT_ONCE = 8  # images that are retrieved at once
IMAGES = range(1, 2**20)
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")  # classes of MVTec AD


@dataclass(frozen=True)
class Options:
    """CPR: normal images like the test image, and patches near the same place in them, by features that learned
    defects.
    """

    align_maps: bool = align_maps()
    match_light: Matching = match_light()
    kind: Literal["auto", "object", "texture"] = option(
        "auto",
        "Of what the images are; an object has a foreground, and places of its own. auto: a texture in the classes of "
        "that kind in MVTec AD, by their names, else an object.",
    )
    texture_dir: str | None = texture_dir()
    codes: int = option(12, "Codes that cells are counted by, to find images that are alike.", at_least=2, at_most=1000)
    references: int = option(10, "Images that an image is compared with.", at_least=1, at_most=1000)
    region: int = option(
        3, "Side of the square of cells that a place is sought in, in the first layer; odd.", at_least=1, at_most=99
    )
    stem: int = option(192, "Width of the local branches' first convolution.", at_least=1, at_most=4096)
    width: int = option(64, "Width of each of the four parts of a local branch.", at_least=1, at_most=4096)
    local_dim: int = option(384, "Values that describe a place.", at_least=1, at_most=4096)
    pairs: int = option(300, "Pairs of places of every kind, for an image and step.", at_least=1, at_most=100_000)
    lr: float = option(1e-3, "Learning rate of AdamW.", above=0)
    weight_decay: float = option(1e-2, "Its weight decay.", at_least=0)
    score_pixels: int = option(512, "An image's score is the sum of so many largest values of its map.", at_least=1)
    epochs: int = option(
        80,
        "Passes over the training images; each is evaluated. The authors make 500 steps of 32 images for textures and "
        "40,000 for objects.",
        at_least=1,
    )


class CPR(Detector):
    """Frozen backbone, local branches, and what is kept of every training image: histogram, features, foreground.

    The feature bank keeps pixels: the backbone must see the defects that are made in training.

    Args:
        backbone, layers, image_size, precision, seed, options: see Detector; layers from fine to coarse.

    Raises:
        UsageError: an even region, or more codes than cells.
    """

    Options = Options
    # The authors', and images held out: in thresholds, those that are kept would be their own references.
    DATASET_DEFAULTS: ClassVar = {"batch_size": 32, "resize_mode": "square", "imagesize": 320, "train_val_split": 0.9}

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        own = self.options
        infos = self.backbone.layer_info(self.layers, self.image_size)
        grid, channels = infos[0].grid, infos[0].channels
        if own.region % 2 == 0:
            raise UsageError(f"--region {own.region} must be odd: a place is in the middle of it")
        if own.codes > grid[0] * grid[1]:
            raise UsageError(f"--codes {own.codes} are more than the {grid[0]} x {grid[1]} cells of {self.layers[0]}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.local = nn.ModuleList(LocalBranch(one.channels, own.stem, own.width, own.local_dim) for one in infos)
        self.register_buffer("centres", torch.zeros(own.codes, channels))
        self.register_buffer("foreground_weight", torch.zeros(channels))
        self.register_buffer("foreground_bias", torch.ones(()))
        self.register_buffer("histograms", torch.zeros(1, BLOCKS**2, own.codes + 1))
        self.register_buffer("foregrounds", torch.ones(1, *grid))
        for i, info in enumerate(infos):
            self.register_buffer(f"references_{i}", torch.zeros(1, own.local_dim, *info.grid, dtype=torch.float16))
        self.begun: References | None = None  # what begin leaves for the trainer

    @classmethod
    def options_of_class(cls, options: Mapping[str, Any], class_name: str) -> Mapping[str, Any]:
        """The kind, as the authors know it of every class."""
        return {} if options["kind"] != "auto" else {"kind": "texture" if class_name in TEXTURES else "object"}

    @property
    def is_object(self) -> bool:
        """Whether there is a foreground; auto is for whoever knows a class's name, and means that here."""
        return self.options.kind != "texture"

    @property
    def kept(self) -> list[str]:
        """The buffers that hold something of every training image."""
        return ["histograms", "foregrounds", *(f"references_{i}" for i in range(len(self.layers)))]

    @property
    def sized_by_data(self) -> Mapping[str, Sizes]:
        """As many images as there are."""
        return {name: (IMAGES, *getattr(self, name).shape[1:]) for name in self.kept}

    def check(self) -> None:
        """As in Detector.

        Raises:
            UsageError: a --texture_dir without images.
        """
        Textures(self.options.texture_dir)

    @property
    def not_exported(self) -> str:
        """What it keeps of the images may be more than a file of ONNX holds."""
        size = sum(4 * getattr(self, name).numel() for name in self.kept)
        if size < LARGEST_EXPORT:
            return ""
        return f"what it keeps of {len(self.histograms)} images takes {size / 2**30:.1f} GiB, and an export holds 2"

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """As in Detector.

        Raises:
            RuntimeError: as there, or parts of different numbers of images.
        """
        if len(counts := {len(state_dict[name]) for name in self.kept if name in state_dict}) > 1:
            raise RuntimeError(f"it holds {' and '.join(map(str, sorted(counts)))} images")
        return super().load_state_dict(state_dict, *args, **options)

    def features(self, images: Tensor) -> Tensor:
        """Pixels as they are, [B, 3, H, W]."""
        return images

    def passes_of(self, has_held_out: bool) -> Passes:
        """One to begin, and in every epoch one of steps and one that settles."""
        return Passes(before=1, steps=1, settling=1)

    def begin(self, *classes: Normal) -> None:
        """Learn codes and foreground, and keep the images that training refers to."""
        (own,) = classes
        pictures = read_references(self, own.train)
        learn_cells(self, pictures)
        self.begun = References.of(self, pictures)

    def trainer(self, *classes: Normal) -> Trainer:
        """As in Detector."""
        begun, self.begun = self.begun, None
        return Trainer(self, begun)

    def settle(self, *classes: Normal) -> Mapping[str, float]:
        """Keep histogram, foreground and local features of every training image."""
        (own,) = classes
        found: dict[str, list[Tensor]] = {name: [] for name in self.kept}
        with autocast(self.device, self.precision):
            for batch in own.train:
                maps = self.maps(batch)
                values = [self.histograms_of(maps[0]), self.foreground_of(maps[0]), *self.local_features(maps)]
                for name, value in zip(self.kept, values, strict=True):
                    found[name].append(value.to(getattr(self, name).dtype))
        for name in self.kept:
            setattr(self, name, torch.cat(found.pop(name)))
        return {}

    def forward(self, embeddings: Tensor, interest: Tensor | None = None) -> Prediction:
        """Maps (4) and image scores (8) of pixels [B, 3, H, W]."""
        whole = (embeddings,) if interest is None else (embeddings, interest)
        parts = [whole] if torch.compiler.is_compiling() else zip(*(own.split(AT_ONCE) for own in whole), strict=True)
        maps = torch.cat([self.anomaly_maps(*part) for part in parts])
        values = maps if interest is None else torch.where(interest, maps, 0)  # which is the least
        count = min(self.options.score_pixels, math.prod(self.image_size))
        return Prediction(values.flatten(1).topk(count).values.sum(dim=1), maps)

    def anomaly_maps(self, pixels: Tensor, interest: Tensor | None = None) -> Tensor:
        """Maps (4), float32 [B, H, W], of images of which bool [B, H, W] are of interest."""
        maps = self.maps(pixels)
        features = self.local_features(maps)
        with full_float32(pixels.device):
            found = divergences(self.histograms_of(maps[0]), self.histograms)
            chosen = nearest_images(found, min(self.options.references, len(self.histograms)))  # [B, K]
            distances = []
            for i, own in enumerate(features):
                kept = getattr(self, f"references_{i}")
                references = (F.normalize(kept[one].float(), dim=1) for one in chosen.unbind(dim=1))  # kept rounded
                distances.append(local_distances(own.float(), references, self.options.region if i == 0 else 1))
            summed = sum(resize_to_first([one.unsqueeze(1) for one in distances], self.alignment))[:, 0]
            scores = self.at_pixels(calm(summed, interest))
            if self.is_object:
                weights = self.at_pixels(self.foreground_of(maps[0]))
                for one in chosen.unbind(dim=1):
                    weights = torch.maximum(weights, self.at_pixels(self.foregrounds[one]))
                scores = scores * weights
            return smoothed(scores)

    def at_pixels(self, cells: Tensor) -> Tensor:
        """Values [B, h, w] of the first layer's cells at every pixel, [B, H, W]."""
        return upsampled(cells, self.image_size, self.alignment and self.alignment.of(0))

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """The backbone's maps F_l of normalised pixels [B, 3, H, W], float32 [B, C_l, H_l, W_l]."""
        return [one.float() for one in self.backbone(pixels, self.layers)]

    def local_features(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """q_l of maps, of unit length: [B, d, H_l, W_l]."""
        return [F.normalize(branch(own).float(), dim=1) for branch, own in zip(self.local, maps, strict=True)]

    def histograms_of(self, first: Tensor) -> Tensor:
        """h (1) of the first layer's maps [B, C, h, w]: [B, 25, M + 1]."""
        with full_float32(first.device):
            return histograms(codes(first, self.centres), len(self.centres))

    def foreground_of(self, first: Tensor) -> Tensor:
        """The image's own part of w (5) of the first layer's maps [B, C, h, w]: [B, h, w]."""
        with full_float32(first.device):
            return foreground(first, self.foreground_weight, self.foreground_bias)

    def half(self) -> "CPR":
        """As in nn.Module, of the backbone alone: cosines near 1 need more digits."""
        self.backbone.half()
        return self
