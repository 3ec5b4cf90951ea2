"""Training the adaptor and the discriminator on patch features (SimpleNet, section 3.5 and Algorithm 1)."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simplenet.anomalous_features import GaussianNoise, Noise, NoiseSource
from simplenet.model import Adaptor, Discriminator, compose

ADAPTOR_LR = 1e-4
BACKBONE_LR = 1e-3
DISCRIMINATOR_WEIGHT_DECAY = 1e-5
FP16_LOSS_SCALE = 1024.0


def discrimination_loss(
    adaptor: nn.Module, discriminator: nn.Module, features: Tensor, noise: Tensor, margin: float
) -> Tensor:
    """Truncated l1 loss of normal features and their noisy copies (Eqs. 5-8).

    Args:
        adaptor, discriminator: modules on [N, D].
        features: patch embeddings [N, D].
        noise: what turns adapted features into anomalous ones [N, D].
        margin: th, the score that normal patches should exceed and anomalous ones stay below the negative of.

    Returns:
        Scalar mean(max(0, th - D(q))) + mean(max(0, th + D(q + noise))), q = G(features).

    Raises:
        ValueError: features and noise differ in shape.
    """
    if features.ndim != 2 or features.shape != noise.shape:
        raise ValueError(f"features {list(features.shape)} and noise {list(noise.shape)} must both be [N, D]")
    adapted = adaptor(features)
    true, fake = discriminator(torch.cat([adapted, adapted + noise])).chunk(2)
    return truncated_l1(true, fake, margin)


class StepStats(NamedTuple):
    """What one step says of itself: the loss, and the shares of normal and anomalous patches beyond the margin."""

    loss: Tensor
    p_true: Tensor
    p_fake: Tensor


class Trainer:
    """Optimisers, schedule and random state of one training run.

    AdamW(adaptor, 1e-4), Adam(discriminator, dsc_lr, weight decay 1e-5) and, where a backbone is trained,
    AdamW(backbone, 1e-3).

    The adaptor's layers and the discriminator's first are all affine unless --proj_layer_type puts activations between
    them, so they are composed: h = W o + b with W = W1 Wp, and h- = h + W1 epsilon. The step is the same, with four
    products of N x D x H in place of nine (at the paper's sizes).

    Args:
        adaptor, discriminator: the networks to train.
        noise: the anomalous feature generator.
        margin: th of the loss.
        dsc_lr: the discriminator's learning rate.
        cosine_epochs: T_max of a cosine schedule down to 0.4 * dsc_lr, one step per gan epoch; 0 keeps the rate.
        seed: of the noise.
        precision: of features, noise and products; weights, statistics of weights and losses are float32.
        backbone_parameters: what else learns; none when the backbone is frozen.
    """

    def __init__(
        self,
        adaptor: Adaptor,
        discriminator: Discriminator,
        noise: GaussianNoise,
        margin: float,
        dsc_lr: float,
        cosine_epochs: int = 0,
        seed: int = 0,
        precision: torch.dtype = torch.float32,
        backbone_parameters: Iterable[nn.Parameter] = (),
    ) -> None:
        self.adaptor = adaptor
        self.discriminator = discriminator
        self.noise = noise
        self.margin = margin
        discriminator_optimizer = torch.optim.Adam(
            discriminator.parameters(), lr=dsc_lr, weight_decay=DISCRIMINATOR_WEIGHT_DECAY, fused=True
        )
        self.optimizers: list[torch.optim.Optimizer] = [discriminator_optimizer]
        for parameters, lr in ((adaptor.parameters(), ADAPTOR_LR), (backbone_parameters, BACKBONE_LR)):
            if parameters := list(parameters):
                self.optimizers.append(torch.optim.AdamW(parameters, lr=lr, fused=True))
        self.schedule = (
            torch.optim.lr_scheduler.CosineAnnealingLR(discriminator_optimizer, cosine_epochs, eta_min=0.4 * dsc_lr)
            if cosine_epochs
            else None
        )
        self.device = next(discriminator.parameters()).device
        self.precision = precision
        self.source = NoiseSource(self.device, seed)

    def step(self, features: Tensor, noise: Noise | None = None) -> StepStats:
        """One optimisation step on patch embeddings [N, D]; `noise` replaces the drawn one where it is given."""
        with autocast(self.device, self.precision):
            if noise is None:
                noise = self._sample(features)
            true, fake = _discriminate(self.adaptor, self.discriminator, features.to(self.precision), noise)
        loss = truncated_l1(true.float(), fake.float(), self.margin)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._backward(loss)
        for optimizer in self.optimizers:
            optimizer.step()
        return StepStats(
            loss.detach(),
            (true.detach() >= self.margin).float().mean(),
            (fake.detach() < -self.margin).float().mean(),
        )

    @torch.no_grad()
    def _sample(self, features: Tensor) -> Noise:
        adapted = self.adaptor(features) if self.noise.relative > 0 else None
        return self.noise.sample(features.to(self.precision), adapted, self.source)

    def _backward(self, loss: Tensor) -> None:
        """Gradients of the loss; fp16 needs a scale that keeps those of single patches above its smallest number."""
        if self.precision != torch.float16:
            loss.backward()
            return
        (loss * FP16_LOSS_SCALE).backward()
        gradients = [p.grad for o in self.optimizers for g in o.param_groups for p in g["params"] if p.grad is not None]
        torch._foreach_mul_(gradients, 1 / FP16_LOSS_SCALE)

    def end_gan_epoch(self) -> None:
        """Advance the learning-rate schedule by one pass over the training images."""
        if self.schedule is not None:
            self.schedule.step()


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Matrix products and convolutions in a precision; in float32, nothing changes."""
    reduced = precision if precision != torch.float32 else torch.bfloat16
    return torch.autocast(device.type, reduced, enabled=precision != torch.float32)


def _discriminate(
    adaptor: Adaptor, discriminator: Discriminator, features: Tensor, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Scores [N, 1] of normal and anomalous features as ONE batch, so that they share BatchNorm's statistics."""
    composed = compose(adaptor, discriminator)
    if composed is None:
        adapted = adaptor(features)
        true, fake = discriminator(torch.cat([adapted, adapted + noise.values])).chunk(2)
        return true, fake
    hidden = F.linear(features, *composed)
    shift = noise.row * F.linear(noise.unit, discriminator.first.weight * noise.column)
    true, fake = discriminator.after_first(torch.cat([hidden, hidden + shift])).chunk(2)
    return true, fake


def truncated_l1(true: Tensor, fake: Tensor, margin: float) -> Tensor:
    """mean(max(0, th - true)) + mean(max(0, th + fake)) (Eq. 7)."""
    return (margin - true).clamp(min=0).mean() + (margin + fake).clamp(min=0).mean()
