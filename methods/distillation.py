"""A teacher for EfficientAD: a patch description network learns what a backbone says of patches of any images.

Once, for all classes. The equations, with F the patch embeddings of a backbone's layers as PatchCore's, at twice the
side:

    F^ = (F(I at 512 pixels) - mu) / sigma, of every channel over many images            (1)
    L = mean (F^ - T(I at 256 pixels))^2                                                 (2)
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import FeatureExtractor, embed_patches
from backbones.resizing import resized
from detection import autocast, gradient_scaler, learn
from methods.efficientad_equations import channel_statistics
from methods.pdn import OUTPUTS, PDN, Size, grid_of, scaled

SIDE = 256  # pixels that T sees; the backbone sees twice as many
POOLED = 1024  # values of a patch and layer
WEIGHT_DECAY = 1e-5  # of Adam


class Distillation(nn.Module):
    """T, and what it learns from.

    Args:
        backbone, layers: F; the first layer gives its grid, which is brought to T's.
        size, width: of T; see PDN.
        precision: of convolutions and products.
        seed: of T's first weights.
    """

    def __init__(
        self,
        backbone: FeatureExtractor,
        layers: Sequence[str],
        size: Size,
        width: float,
        precision: torch.dtype,
        seed: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = list(layers)
        self.precision = precision
        self.channels = scaled(OUTPUTS, width)
        self.grid = grid_of((SIDE, SIDE), padded=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.teacher = PDN(size, width, self.channels, padded=True)
        self.register_buffer("mean", torch.zeros(self.channels))  # mu
        self.register_buffer("deviation", torch.ones(self.channels))  # sigma

    @torch.no_grad()
    def described(self, images: Tensor) -> Tensor:
        """F of normalised images [B, 3, 512, 512] on T's grid, float32 [B, C, h, w]."""
        with autocast(images.device, self.precision):
            maps = self.backbone(images, self.layers)
            patches = embed_patches(maps, POOLED, self.channels)
        return resized(patches.float().transpose(1, 2).unflatten(2, maps[0].shape[-2:]), self.grid)

    @torch.no_grad()
    def learn_scale(self, batches: Iterable[Tensor]) -> None:
        """Learn mu and sigma (1) of batches as described takes them."""
        mean, deviation = channel_statistics(self.described(own) for own in batches)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def loss(self, large: Tensor, small: Tensor) -> Tensor:
        """L (2) of the same images at both sizes, a scalar."""
        mean, deviation = (own[:, None, None] for own in (self.mean, self.deviation))
        wanted = (self.described(large) - mean) / deviation
        with autocast(small.device, self.precision):
            found = self.teacher(small)
        return F.mse_loss(found.float(), wanted)


class Steps:
    """Adam on T, with a learning rate."""

    def __init__(self, distillation: Distillation, lr: float) -> None:
        self.distillation = distillation
        learned = distillation.teacher.parameters()
        self.optimizer = torch.optim.Adam(learned, lr=lr, weight_decay=WEIGHT_DECAY, fused=True)
        self.scaler = gradient_scaler(distillation.mean.device, distillation.precision)

    def step(self, large: Tensor, small: Tensor) -> Tensor:
        """One step; L before it."""
        loss = self.distillation.loss(large, small)
        learn(loss, [self.optimizer], self.distillation.precision, self.scaler)
        return loss.detach()
