"""Training the adaptor and the discriminator on patch features (SimpleNet, section 3.5 and Algorithm 1)."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from simplenet.anomalous_features import GaussianNoise
from simplenet.model import Adaptor, Discriminator

ADAPTOR_LR = 1e-4
BACKBONE_LR = 1e-3
DISCRIMINATOR_WEIGHT_DECAY = 1e-5


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
    true, fake = _discriminate(discriminator, adaptor(features), noise)
    return _truncated_l1(true, fake, margin)


class StepStats(NamedTuple):
    """What one step says of itself: the loss, and the shares of normal and anomalous patches beyond the margin."""

    loss: Tensor
    p_true: Tensor
    p_fake: Tensor


class Trainer:
    """Optimisers, schedule and random state of one training run.

    AdamW(adaptor, 1e-4), Adam(discriminator, dsc_lr, weight decay 1e-5) and, where a backbone is trained,
    AdamW(backbone, 1e-3).

    Args:
        adaptor, discriminator: the networks to train.
        noise: the anomalous feature generator.
        margin: th of the loss.
        dsc_lr: the discriminator's learning rate.
        cosine_epochs: T_max of a cosine schedule down to 0.4 * dsc_lr, one step per gan epoch; 0 keeps the rate.
        seed: of the noise.
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
        backbone_parameters: Iterable[nn.Parameter] = (),
    ) -> None:
        self.adaptor = adaptor
        self.discriminator = discriminator
        self.noise = noise
        self.margin = margin
        discriminator_optimizer = torch.optim.Adam(
            discriminator.parameters(), lr=dsc_lr, weight_decay=DISCRIMINATOR_WEIGHT_DECAY
        )
        self.optimizers: list[torch.optim.Optimizer] = [discriminator_optimizer]
        for parameters, lr in ((adaptor.parameters(), ADAPTOR_LR), (backbone_parameters, BACKBONE_LR)):
            if parameters := list(parameters):
                self.optimizers.append(torch.optim.AdamW(parameters, lr=lr))
        self.schedule = (
            torch.optim.lr_scheduler.CosineAnnealingLR(discriminator_optimizer, cosine_epochs, eta_min=0.4 * dsc_lr)
            if cosine_epochs
            else None
        )
        self.generator = torch.Generator(next(discriminator.parameters()).device).manual_seed(seed)

    def step(self, features: Tensor, noise: Tensor | None = None) -> StepStats:
        """One optimisation step on patch embeddings [N, D]; noise [N, D] replaces the drawn one where it is given."""
        adapted = self.adaptor(features)
        if noise is None:
            noise = self.noise.sample(adapted.detach(), self.generator)
        true, fake = _discriminate(self.discriminator, adapted, noise)
        loss = _truncated_l1(true, fake, self.margin)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return StepStats(
            loss.detach(),
            (true.detach() >= self.margin).float().mean(),
            (fake.detach() < -self.margin).float().mean(),
        )

    def end_gan_epoch(self) -> None:
        """Advance the learning-rate schedule by one pass over the training images."""
        if self.schedule is not None:
            self.schedule.step()


def _discriminate(discriminator: nn.Module, adapted: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [N, 1] of normal and anomalous features as ONE batch, so that they share BatchNorm's statistics."""
    true, fake = discriminator(torch.cat([adapted, adapted + noise])).chunk(2)
    return true, fake


def _truncated_l1(true: Tensor, fake: Tensor, margin: float) -> Tensor:
    return (margin - true).clamp(min=0).mean() + (margin + fake).clamp(min=0).mean()
