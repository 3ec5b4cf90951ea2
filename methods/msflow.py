"""MSFlow (Zhou et al.: MSFlow, Multi-Scale Flow-based Framework for Unsupervised Anomaly Detection, TNNLS 2024).

Flows bring a frozen backbone's maps of normal images to independent Gaussians, as FastFlow's, but the coarser a layer,
the deeper its flow; they know where in the image they are, and a last one lets layers see each other (fusion.py). The
equations, as numbered here, of layers' maps F_l; steps are (1) to (5) of couplings.py with alpha = 1.9:

    y_l = average of 3 x 3 cells of F_l, every second one, zeros around                                      (7)
    p: channels k and k + 1 are sin and cos of w_k column, D/2 + k and D/2 + k + 1 of w_k row,
       for even k < D/2, w_k = 10000^(-k / (D/2))                                                            (8)
    subnet = Conv 3 x 3 of [x, p], LayerNorm over channels, ReLU, Conv 3 x 3                                 (9)
    z = fusion(flow_1(y_1), flow_2(y_2), ...)                                                                (10)
    L = mean over images of sum_l 1/2 |z_l|^2 - sum of all log-determinants                                  (11)
    lp_l(h, w) = -1/2 mean over c of z_l(c, h, w)^2                                                          (12)
    A_mul = 1 - exp(q - max q),  q = sum_l upsample(lp_l)                                                    (13)
    image score = mean of the 3 % largest values of A_mul                                                    (14)
    anomaly map = max P - P,  P = sum_l upsample(exp(lp_l - max lp_l))                                       (15)

Maxima are over one image, and upsampling is bilinear, corners on corners. The map says where in an image it is least
like the rest, and its values of different images are alike only as far as these are.

p is the same for all images, so that its part of the first convolution is made once for a batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection import Detector, Normal, Prediction
from detection.anomaly_map import align_maps, mean_of_highest, upsampled
from detection.interest import calm
from detection.light import Matching, match_light
from errors import UsageError
from methods.couplings import Flow, Step, Subnet, log_density, require_channels
from methods.flow_training import Trainer
from methods.fusion import Fusion, corners, over_channels
from options import option

CLAMP = 1.9
LONGEST = 2.0  # gradient
WARM_UP, LOWERED, LOWER = 0.12, (0.7, 0.9), 0.33  # of the passes, and of the rate
FIRST_RATE = 0.1  # of the rate, in the first pass of the warm-up


@dataclass(frozen=True)
class Options:
    """MSFlow: normalising flows of layers, given from fine to coarse, that see where they are and each other."""

    align_maps: bool = align_maps()
    match_light: Matching = match_light()
    steps: int = option(2, "Steps of the first layer's flow.", at_least=1, at_most=100, counts=True)
    more_steps: int = option(3, "Steps more from each layer to the next.", at_least=0, at_most=100)
    position_dim: int = option(64, "Channels that say where a cell is, a multiple of 4.", at_least=4, at_most=4096)
    score_share: float = option(
        0.03, "An image's score is the mean of this share of its largest values.", above=0, at_most=1
    )
    lr: float = option(1e-4, "Learning rate of Adam, after the warm-up.", above=0)
    epochs: int = option(100, "Passes over the training images; each is evaluated, see --eval_every.", at_least=1)


class MSFlow(Detector):
    """Frozen backbone, a flow of every layer, and one of all.

    The feature bank keeps averages of the layers' maps, about a quarter of sum C_l H_l W_l values an image.

    Args:
        backbone, layers, image_size, precision, seed, options: see Detector. Of a reduced precision are features and
            the convolutions of subnets; all else is float32.

    Raises:
        UsageError: a layer with an odd number of channels, or a position_dim that is no multiple of 4.
    """

    Options = Options
    DATASET_DEFAULTS: ClassVar = {"batch_size": 8, "resize_mode": "square", "imagesize": 512}  # the paper's

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        own = self.options
        if own.position_dim % 4:
            raise UsageError(f"--position_dim {own.position_dim} must be a multiple of 4: sin and cos of two axes")
        infos = self.backbone.layer_info(self.layers, self.image_size)
        require_channels(infos, multiple=2)
        channels = [info.channels for info in infos]
        grids = [tuple(-(-cells // 2) for cells in info.grid) for info in infos]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.flows = nn.ModuleList(
                self._flow(count, own.steps + layer * own.more_steps, position_code(own.position_dim, grid))
                for layer, (count, grid) in enumerate(zip(channels, grids, strict=True))
            )
            self.fusion = Fusion(channels, grids)

    def _flow(self, channels: int, steps: int, code: Tensor) -> Flow:
        def subnet(inputs: int, outputs: int) -> Subnet:
            return Placed(inputs, code), nn.Conv2d(inputs + len(code), outputs, 3, padding=1)

        return Flow(Step(channels, subnet, CLAMP) for _ in range(steps))

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """y_l (7), [B, C_l, h_l, w_l]."""
        return tuple(F.avg_pool2d(own, 3, stride=2, padding=1) for own in self.backbone(images, self.layers))

    def trainer(self, *classes: Normal) -> Trainer:
        """As in Detector."""
        factor = partial(rate_factor, passes=self.options.epochs)
        return Trainer(self, self.loss, self.options.lr, longest=LONGEST, factor=factor)

    def loss(self, embeddings: Sequence[Tensor]) -> Tensor:
        """L (11) of a batch of training images; a scalar."""
        z, logdet = self.latent(embeddings)
        return (sum(own.square().sum(dim=(1, 2, 3)) / 2 for own in z) - logdet).mean()

    def forward(self, embeddings: Sequence[Tensor], interest: Tensor | None = None) -> Prediction:
        """Maps (15) and scores (14); the share is of the pixels of interest."""
        z, _ = self.latent(embeddings)
        densities = [-calm(-log_density(own), interest) for own in z]
        product, total = self.product_map(densities), self.sum_map(densities)
        share, pixels = self.options.score_share, math.prod(self.image_size)
        if interest is None:
            return Prediction(mean_of_highest(product, max(1, int(share * pixels))), total)
        counts = (share * interest.flatten(1).sum(dim=1)).long().clamp(min=1)
        return Prediction(mean_of_highest(product, max(1, int(share * pixels)), interest, counts), total)

    def latent(self, embeddings: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """z (10), float32 [B, C_l, h_l, w_l] each, and the sum of all log-determinants, [B]."""
        flown = [flow(own.float()) for flow, own in zip(self.flows, embeddings, strict=True)]
        z, logdet = self.fusion([own for own, _ in flown])
        return z, logdet + sum(own for _, own in flown)

    def product_map(self, densities: Sequence[Tensor]) -> Tensor:
        """A_mul (13) of lp_l [B, h_l, w_l]: [B, H, W] from 0 to 1."""
        logs = sum(self._upsampled(own, layer) for layer, own in enumerate(densities))
        return 1 - (logs - logs.amax(dim=(1, 2), keepdim=True)).exp()

    def sum_map(self, densities: Sequence[Tensor]) -> Tensor:
        """The anomaly map (15) of lp_l [B, h_l, w_l]: [B, H, W], 0 or more."""
        shares = [(own - own.amax(dim=(1, 2), keepdim=True)).exp() for own in densities]
        total = sum(self._upsampled(own, layer) for layer, own in enumerate(shares))
        return total.amax(dim=(1, 2), keepdim=True) - total

    def _upsampled(self, values: Tensor, layer: int) -> Tensor:
        if self.alignment is not None:
            rows, columns = (own.within(0, 2) for own in self.alignment.of(layer))
        else:
            rows, columns = map(corners, values.shape[1:], self.image_size)
        return upsampled(values, self.image_size, (rows, columns))

    def half(self) -> "MSFlow":
        """As in nn.Module, of the backbone alone: sums over maps have no room in float16."""
        self.backbone.half()
        return self


class Placed(nn.Module):
    """All of the subnet (9) but its last convolution.

    Args:
        inputs: channels of x.
        code: p (8), [D, h, w].
    """

    def __init__(self, inputs: int, code: Tensor) -> None:
        super().__init__()
        self.register_buffer("code", code, persistent=False)
        self.conv = nn.Conv2d(inputs + len(code), inputs + len(code), 3, padding=1)
        self.norm = nn.LayerNorm(inputs + len(code))

    def forward(self, x: Tensor) -> Tensor:
        """[B, n + D, h, w] of x [B, n, h, w]."""
        of_x, of_code = self.conv.weight.split([x.shape[1], len(self.code)], dim=1)
        code = self.code.unsqueeze(0).contiguous(memory_format=torch.channels_last)  # as x is, and LayerNorm wants
        place = F.conv2d(code, of_code, self.conv.bias, padding=1)
        return over_channels(self.norm, F.conv2d(x, of_x, padding=1) + place).relu_()


def position_code(channels: int, grid: tuple[int, int]) -> Tensor:
    """p (8), float32 [D, h, w]."""
    half = channels // 2
    waves = 10000.0 ** -(torch.arange(0, half, 2, dtype=torch.float64) / half)
    rows, columns = (
        torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1)  # [D / 2, n]
        for angles in (waves.unsqueeze(1) * torch.arange(count, dtype=torch.float64) for count in grid)
    )
    return torch.cat([columns.unsqueeze(1).expand(half, *grid), rows.unsqueeze(2).expand(half, *grid)]).float()


def rate_factor(index: int, passes: int) -> float:
    """What the rate is multiplied by in a pass from 0, of so many: it rises at first, and falls twice in the end."""
    warm_up = round(WARM_UP * passes)
    rise = min(1.0, FIRST_RATE + (1 - FIRST_RATE) * index / warm_up) if warm_up else 1.0
    return rise * LOWER ** sum(index >= round(share * passes) for share in LOWERED)
