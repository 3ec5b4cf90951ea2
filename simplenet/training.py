"""Training adaptor and discriminator by the loss (5) of detector.py (the paper's section 3.5 and Algorithm 1)."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from detection import EndOfPass, MovingAverage, autocast, gradient_scaler, learn
from detection.neighbours import closest
from simplenet.anomalous_features import FeatureNoise, Noise, NoiseSource
from simplenet.memory import Memory
from simplenet.model import Member, compose

ADAPTOR_LR = 1e-4
BACKBONE_LR = 1e-3
DISCRIMINATOR_WEIGHT_DECAY = 1e-5
WARM_UP_STEPS = 30
POOL = 8  # batches that members draw theirs from: enough for orders of their own, few enough for memory


def discrimination_loss(
    adaptor: nn.Module,
    discriminator: nn.Module,
    features: Tensor,
    noise: Tensor | Noise,
    margin: float,
    watched: list[tuple[Tensor, Tensor]] | None = None,
    memory: Memory | None = None,
) -> Tensor:
    """L (5) of normal features and their noisy copies; every training step is a step down its gradient.

    Args:
        adaptor, discriminator: modules on [N, D].
        features: patch embeddings o, float [N, D].
        noise: epsilon (3), [N, D], or how it is drawn.
        margin: th, the score that normal patches should exceed and anomalous ones stay below the negative of.
        watched: takes in the scores of normal and of anomalous patches, [N, 1] each, without gradient.
        memory: u_1 ... u_K (10), for a discriminator that compares; features are u (9) then.

    Returns:
        A scalar, float32 at least.

    Raises:
        ValueError: features and noise differ in shape.
    """
    if isinstance(noise, Tensor):
        if features.ndim != 2 or features.shape != noise.shape:
            raise ValueError(f"features {list(features.shape)} and noise {list(noise.shape)} must both be [N, D]")
        noise = Noise(noise)
    true, fake = discriminate(adaptor, discriminator, features, noise, memory)  # [N, 1] each
    if watched is not None:
        watched.append((true.detach(), fake.detach()))
    true, fake = (scores.to(torch.promote_types(scores.dtype, torch.float32)) for scores in (true, fake))
    return (margin - true).clamp(min=0).mean() + (margin + fake).clamp(min=0).mean()


def discriminate(
    adaptor: nn.Module, discriminator: nn.Module, features: Tensor, noise: Noise, memory: Memory | None = None
) -> tuple[Tensor, Tensor]:
    """D(q) and D(q-) (4), [N, 1] each, of features [N, D]: as ONE batch, so that they share BatchNorm's statistics.

    By (8) where the networks allow it: the same with four products of N x D x H, forwards and backwards, in place of
    nine (at the paper's sizes). With a memory q and q- are made, to be compared with it.
    """
    composed = compose(adaptor, discriminator) if memory is None else None
    if composed is None:
        adapted = adaptor(features)  # q (2): [N, D]
        both = torch.cat([adapted, adapted + noise.values(adapted)])  # q and q- (3): [2 N, D]
        if memory is None:
            scores = discriminator(both)
        else:
            known = adaptor(memory.compared)  # m: [K, D]
            nearest = torch.cat([memory.nearest(features), closest(both[len(features) :], known)])  # k (11): [2 N]
            scores = discriminator(both, known, nearest)
        true, fake = scores.chunk(2)
        return true, fake
    hidden = F.linear(features, *composed)  # h (8): [N, H]
    shift = noise.mapped(hidden, lambda unit: F.linear(unit, discriminator.first.weight * noise.column))  # W1 epsilon
    true, fake = discriminator.after_first(torch.cat([hidden, hidden + shift])).chunk(2)  # of h and h-: [2 N, H]
    return true, fake


class StepStats(NamedTuple):
    """What one step says of itself: the loss, and the shares of normal and anomalous patches beyond the margin."""

    loss: Tensor
    p_true: Tensor
    p_fake: Tensor


class Trainer:
    """Optimisers, schedule and random state of one training run.

    AdamW(adaptor, 1e-4), Adam(discriminator, dsc_lr, weight decay 1e-5) and, where a backbone is trained,
    AdamW(backbone, 1e-3). Of several members, each learns from random quarters of the patches of batches of its
    own, which are drawn from a pool of POOL batches (subagging, Buehlmann and Yu: Analyzing bagging, 2002): members
    that saw the same images in the same order would share what that order does to them, and their mean would keep it.

    Args:
        members: the networks to train.
        noise: the anomalous feature generator.
        margin: th of the loss.
        dsc_lr: the discriminator's learning rate.
        adaptor_lr: the adaptor's.
        cosine_epochs: T_max of a cosine schedule down to 0.4 * dsc_lr, one step per gan epoch; 0 keeps the rate.
        warm_up_cosine: number of all steps of a schedule that raises all rates linearly over the first 30 and lets them
            fall to zero at the last along a cosine (Loshchilov and Hutter, SGDR, 2017); 0 is none.
        seed: of the noise.
        precision: of features, noise and products; weights, statistics of weights and losses are float32.
        backbone_parameters: what else learns; none when the backbone is frozen.
        average: of the members, taken after every step.
        memory: u_1 ... u_K (10), that all members compare with.
    """

    def __init__(
        self,
        members: Sequence[Member],
        noise: FeatureNoise,
        margin: float,
        dsc_lr: float,
        adaptor_lr: float = ADAPTOR_LR,
        cosine_epochs: int = 0,
        warm_up_cosine: int = 0,
        seed: int = 0,
        precision: torch.dtype = torch.float32,
        backbone_parameters: Iterable[nn.Parameter] = (),
        average: MovingAverage | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.members = members
        self.memory = memory
        self.average = average
        self.noise = noise
        self.margin = margin
        adaptors = [parameter for member in members for parameter in member.adaptor.parameters()]
        discriminators = [parameter for member in members for parameter in member.discriminator.parameters()]
        discriminator_optimizer = torch.optim.Adam(
            discriminators, lr=dsc_lr, weight_decay=DISCRIMINATOR_WEIGHT_DECAY, fused=True
        )
        self.optimizers: list[torch.optim.Optimizer] = [discriminator_optimizer]
        for parameters, lr in ((adaptors, adaptor_lr), (backbone_parameters, BACKBONE_LR)):
            if parameters := list(parameters):
                self.optimizers.append(torch.optim.AdamW(parameters, lr=lr, fused=True))
        self.epoch_schedule = (
            CosineAnnealingLR(discriminator_optimizer, cosine_epochs, eta_min=0.4 * dsc_lr) if cosine_epochs else None
        )
        factor = partial(warm_up_cosine_factor, steps=warm_up_cosine)
        self.step_schedules = [LambdaLR(one, factor) for one in self.optimizers] if warm_up_cosine else []
        self.device = discriminators[0].device
        self.precision = precision
        self.scaler = gradient_scaler(self.device, precision)
        self.source = NoiseSource(self.device, seed)

    def steps(self, batches: Iterable[Tensor]) -> Iterator[StepStats]:
        """As many optimisation steps as there are batches of patch embeddings [B, H1, W1, D]."""
        for shares in self._all_shares(batches):
            stats = self.step(shares)
            if self.average is not None:
                self.average.update()
            yield stats

    def _all_shares(self, batches: Iterable[Tensor]) -> Iterator[Sequence[Tensor]]:
        """For every step, the patches of every member."""
        if len(self.members) == 1:
            for batch in batches:
                patches = batch.flatten(0, 2)
                shuffled = self.noise.difference > 0
                yield [patches[self.source.permutation(len(patches))] if shuffled else patches]
            return
        batches = iter(batches)
        while pool := list(islice(batches, POOL)):
            images = torch.cat(pool)
            yield from zip(*(self._shares(images, len(pool)) for _ in self.members), strict=True)

    def _shares(self, images: Tensor, count: int) -> Iterator[Tensor]:
        """Random quarters of the patches of so many disjoint random batches of images [n, H1, W1, D]: [N, D] each."""
        patches, per_image = images.flatten(0, 2), images.shape[1] * images.shape[2]
        for chosen in self.source.permutation(len(images)).tensor_split(count):
            picks = self.source.permutation(len(chosen) * per_image)[: -(-len(chosen) * per_image // 4)]
            yield patches.index_select(0, chosen[picks // per_image] * per_image + picks % per_image)

    def step(self, shares: Sequence[Tensor], noise: Noise | None = None) -> StepStats:
        """One optimisation step.

        Args:
            shares: patch embeddings [N, D] for every member, in random order where the noise needs it.
            noise: replaces the drawn one.
        """
        losses: list[Tensor] = []
        watched: list[tuple[Tensor, Tensor]] = []
        with autocast(self.device, self.precision):
            for member, share in zip(self.members, shares, strict=True):
                if self.memory is not None:
                    share = self.memory.seen(share)
                features = share.to(self.precision)  # [N, D]
                own = self._sample(member, share) if noise is None else noise
                losses.append(
                    discrimination_loss(
                        member.adaptor, member.discriminator, features, own, self.margin, watched, self.memory
                    )
                )
        loss = torch.stack(losses).sum()
        learn(loss, self.optimizers, self.precision, self.scaler)
        for schedule in self.step_schedules:
            schedule.step()
        true, fake = (torch.cat(scores) for scores in zip(*watched, strict=True))  # [members N, 1] each
        return StepStats(
            loss.detach() / len(losses),
            (true >= self.margin).float().mean(),
            (fake < -self.margin).float().mean(),
        )

    @torch.no_grad()
    def _sample(self, member: Member, features: Tensor) -> Noise:
        adapted = member.adaptor(features) if self.noise.relative > 0 else None
        return self.noise.sample(features.to(self.precision), adapted, self.source)

    def end_pass(self) -> EndOfPass:
        """Advance the learning-rate schedule by one pass over the training images."""
        if self.epoch_schedule is not None:
            self.epoch_schedule.step()
        return EndOfPass()

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on but the memory and a trained backbone's weights."""
        return {
            "members": [member.state_dict() for member in self.members],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "schedules": [schedule.state_dict() for schedule in self._schedules()],
            "generators": [generator.get_state() for generator in self.source.generators],
            "averaged_steps": self.average.steps if self.average is not None else 0,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what state_dict returned."""
        for key, owners in (
            ("members", self.members),
            ("optimizers", self.optimizers),
            ("schedules", self._schedules()),
        ):
            for owner, own in zip(owners, state[key], strict=True):
                owner.load_state_dict(own)
        self.scaler.load_state_dict(state.get("scaler", {}))  # none of earlier versions
        for generator, own in zip(self.source.generators, state["generators"], strict=True):
            generator.set_state(own)
        if self.average is not None:
            self.average.steps = state["averaged_steps"]

    def _schedules(self) -> list[CosineAnnealingLR | LambdaLR]:
        return [*([self.epoch_schedule] if self.epoch_schedule is not None else []), *self.step_schedules]


def warm_up_cosine_factor(step: int, steps: int) -> float:
    """What a learning rate is multiplied by at a step from 0: it rises over the first 30 and is 0 after `steps`."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2
