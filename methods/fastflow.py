"""FastFlow (Yu et al.: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows, arXiv 2111.07677).

Flows learn to bring a frozen backbone's maps of normal images to independent Gaussians, whose likelihood is known: what
is not normal is unlikely. The equations, as numbered here, of layers' maps F_l, each with a flow of its own; steps and
their log-determinants are (1) to (6) of couplings.py with alpha = 2:

    z_l, log|det J_l| = flow_l(norm_l(F_l))             LayerNorm over the whole map                         (7)
    subnet = Conv k x k, ReLU, Conv k x k               k = 3 and 1 in turn, or 3 throughout                 (8)
    L = sum_l mean over images of 1/2 |z_l|^2 - log|det J_l|                                                 (9)
    M_l(h, w) = -exp(-1/2 mean over c of z_l(c, h, w)^2)                                                     (10)
    anomaly map = mean over l of upsample(M_l), from -1 to 0; image score = mean of its k largest values     (11)

The authors published no program. The norm of (7) and the mean in place of the paper's sum in (10), without which every
value would be 0, are those of the programs that others wrote, and so is k = 1 in (11).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection import Detector, Normal, Prediction
from detection.anomaly_map import align_maps, mean_of_highest, upsampled
from detection.interest import calm
from detection.light import Matching, match_light
from methods.couplings import Conv, Flow, Step, Subnet, log_density, negative_log_likelihood, require_channels
from methods.flow_training import Trainer
from options import option

CLAMP = 2.0


@dataclass(frozen=True)
class Options:
    """FastFlow: normalising flows of the backbone's layers, by which places are more or less likely."""

    align_maps: bool = align_maps()
    match_light: Matching = match_light()
    steps: int = option(
        8, "Steps of every flow; the paper's 20 for transformers.", at_least=1, at_most=100, counts=True
    )
    conv3x3_only: bool = option(False, "Subnets of 3 x 3 convolutions throughout, not of 3 x 3 and 1 x 1 in turn.")
    hidden_ratio: float = option(
        1.0, "Width of subnets, in widths of their inputs; the paper's 0.16 for transformers.", above=0, at_most=100
    )
    norm: Literal["map", "cell"] = option(
        "map",
        "map: before a flow, LayerNorm over the whole map, with weights of every value; cell: over the channels of "
        "each cell, without weights, for transformers.",
    )
    score_top_k: int = option(1, "An image's score is the mean of the k largest values of its map.", at_least=1)
    lr: float = option(1e-3, "Learning rate of Adam.", above=0)
    weight_decay: float = option(1e-5, "Its weight decay, which is added to gradients.", at_least=0)
    epochs: int = option(500, "Passes over the training images; each is evaluated, see --eval_every.", at_least=1)


class FastFlow(Detector):
    """Frozen backbone, and a flow of every layer.

    The feature bank keeps the layers' maps, sum C_l H_l W_l values an image.

    Args:
        backbone, layers, image_size, precision, seed, options: see Detector. Of a reduced precision are features and
            the convolutions of subnets; all else is float32.

    Raises:
        UsageError: a layer with one channel.
    """

    Options = Options
    DATASET_DEFAULTS: ClassVar = {"batch_size": 32, "resize_mode": "square", "imagesize": 256}  # the paper's

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        own = self.options
        infos = self.backbone.layer_info(self.layers, self.image_size)
        require_channels(infos)
        shapes = [(info.channels, *info.grid) for info in infos] if own.norm == "map" else []
        self.norms = nn.ModuleList(nn.LayerNorm(shape) for shape in shapes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.flows = nn.ModuleList(self._flow(info.channels) for info in infos)

    def _flow(self, channels: int) -> Flow:
        def subnet(kernel: int, inputs: int, outputs: int) -> Subnet:
            width = max(1, int(inputs * self.options.hidden_ratio))
            first, last = Conv(inputs, width, kernel), Conv(width, outputs, kernel)
            return nn.Sequential(first, nn.ReLU(inplace=True)), last

        kernels = [1 if i % 2 and not self.options.conv3x3_only else 3 for i in range(self.options.steps)]
        return Flow(Step(channels, partial(subnet, kernel), CLAMP) for kernel in kernels)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """The layers' maps [B, C_l, H_l, W_l]."""
        return tuple(self.backbone(images, self.layers))

    def trainer(self, *classes: Normal) -> Trainer:
        """As in Detector."""
        return Trainer(self, self.loss, self.options.lr, self.options.weight_decay)

    def loss(self, embeddings: Sequence[Tensor]) -> Tensor:
        """L (9) of a batch of training images; a scalar."""
        return sum(
            negative_log_likelihood(*flow(own)) for flow, own in zip(self.flows, self.normed(embeddings), strict=True)
        )

    def forward(self, embeddings: Sequence[Tensor], interest: Tensor | None = None) -> Prediction:
        """Maps and scores (11)."""
        latent = [flow(own)[0] for flow, own in zip(self.flows, self.normed(embeddings), strict=True)]
        maps = torch.stack(
            [
                upsampled(
                    calm(-log_density(z).exp(), interest),
                    self.image_size,
                    self.alignment and self.alignment.of(layer),
                )
                for layer, z in enumerate(latent)
            ]
        ).mean(dim=0)
        return Prediction(mean_of_highest(maps, self.options.score_top_k, interest), maps)

    def normed(self, embeddings: Sequence[Tensor]) -> list[Tensor]:
        """norm_l(F_l) (7), float32 [B, C_l, H_l, W_l]."""
        maps = [own.float() for own in embeddings]
        if self.options.norm == "map":
            return [norm(own) for norm, own in zip(self.norms, maps, strict=True)]
        return [F.layer_norm(own.movedim(1, -1), own.shape[1:2]).movedim(-1, 1).contiguous() for own in maps]

    def half(self) -> "FastFlow":
        """As in nn.Module, of the backbone alone: sums over maps have no room in float16."""
        self.backbone.half()
        return self
