"""SimpleNet: a discriminator of normal patch features and noisy copies (Liu et al., CVPR 2023, arXiv 2303.15140).

Features of a frozen backbone are adapted to normal images, and a small network learns to tell them from copies with
Gaussian noise; a patch that it takes for such a copy is anomalous. The equations, as numbered here (the paper's in
brackets):

    o = pool([patches(F_1), resize(patches(F_2)), ...])                 patch features of D dimensions     (1) [1-4]
    q = G(o) = W o + b                                                  feature adaptor                    (2) [5]
    q- = q + epsilon, epsilon ~ N(0, sigma^2)                           anomalous features                 (3) [6]
    D(q) = w leaky(BatchNorm(W1 q + b1))                                discriminator, high where normal   (4)
    L = mean max(0, th - D(q)) + mean max(0, th + D(q-))                loss, over all patches             (5) [7-8]
    s = -D(q)                                                           patch score                        (6) [9-10]
    S = max of s, anomaly map = Gaussian(upsample(s))                   image score, and where             (7) [11]

G and the discriminator's first layer are both affine, so that one product makes the latter of the features:

    h = W1 q + b1 = (W1 W) o + (W1 b + b1),  h- = W1 q- + b1 = h + W1 epsilon                              (8)

Of options that the paper lacks (`--memory`), a discriminator compares every patch with a few normal ones, as memory
banks do, and sees the difference to the nearest of them and its length beside the patch itself:

    u = V o + v                                                         o, whitened (`--whiten`), or o itself    (9)
    u_1 ... u_K = coreset(u of normal images), m_k = G(u_k)             memory                             (10)
    k = argmin_k |u - u_k|                                              the nearest, for all members       (11)
    D(q) = w leaky(BatchNorm(h)), h = W1 [q, q - m_k, |q - m_k|] + b1   with q = G(u), in place of (4)     (12)

V and v are learned once and stay; G starts as the identity, where without a memory it starts as the whitening itself.

A fake has its own nearest, argmin_k |q- - m_k|: with that of the patch that it is made of, fakes would lie farther from
the memory than what they stand for. Which k it is makes h no affine function of u, but of q it is one for every k: with
W1 = [W_a, W_b, w_c]

    h = (W_a + W_b) q - W_b m_k + w_c |q - m_k| + b1                    W_b m_k of every k, once a step   (13)

How far it is may count by itself too (`--distance`), as the score of a memory bank: what lies far from all that is
known is anomalous, whatever a discriminator that has seen fakes alone makes of it. The bank may be larger than the
memory (`--bank_size`), whose patches are the first of it, being those that a coreset takes first:

    s = -D(q) + c min_n |u - u_n|, n = 1 ... N                          patch score, in place of (6)      (14)

(1) is computed in detection/patch_features.py, (2) and (4) in model.py, (3) in anomalous_features.py, (5) in
training.py, (9) to (13) and the distance of (14) in memory.py.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backbones import Features
from detection import MovingAverage, Normal, Passes, Prediction
from detection.anomaly_map import mean_of_highest
from detection.interest import cells_inside, lowest_outside, unmasked
from detection.memory_bank import owners_of, with_own
from detection.patch_features import PatchDetector, PatchOptions
from detection.whitening import whitening
from errors import UsageError
from options import WIDEST, option
from simplenet.anomalous_features import FeatureNoise
from simplenet.memory import Memory
from simplenet.model import Adaptor, Discriminator, Member
from simplenet.recipes import RECIPES
from simplenet.training import ADAPTOR_LR, Trainer


@dataclass(frozen=True)
class Options(PatchOptions):
    """SimpleNet: a discriminator of patch features and their noisy copies."""

    embedding_size: int = option(
        1024, "No effect; accepted because the original has it.", at_least=1, changes_results=False
    )
    meta_epochs: int = option(1, "Evaluations; each comes after --gan_epochs passes.", at_least=1)
    aed_meta_epochs: int = option(1, "Meta epochs that --cos_lr does not count.", at_least=0)
    gan_epochs: int = option(1, "Passes over the training images per meta epoch.", at_least=1)
    dsc_layers: int = option(2, "Linear layers of the discriminator.", at_least=1, at_most=100, counts=True)
    dsc_hidden: int | None = option(
        None, "Hidden width of the discriminator; unset: each block divides by 1.5.", at_least=1, at_most=WIDEST
    )
    noise_std: float = option(0.05, "Standard deviation of the noise on features.", at_least=0)
    dsc_margin: float = option(0.8, "Margin of the loss.", at_least=0)
    dsc_lr: float = option(0.0002, "The discriminator's learning rate.", above=0)
    auto_noise: float = option(
        0.0,
        "Above 0: noise of this share of every feature's own standard deviation, in place of --noise_std.",
        at_least=0,
    )
    train_backbone: bool = option(False, "Train the backbone too.")
    cos_lr: bool = option(False, "Cosine schedule of the discriminator's learning rate.")
    pre_proj: int = option(0, "Linear layers of the feature adaptor; 0 is none.", at_least=0, at_most=100, counts=True)
    proj_layer_type: int = option(0, "Above 1: LeakyReLU between the adaptor's layers.", at_least=0)
    mix_noise: int = option(1, "Noise scales; scale k is 1.1^k times --noise_std.", at_least=1, at_most=100)
    difference_noise: float = option(
        0.0,
        "Share of the patches whose noise is the difference of two other patches, over sqrt(2), times --noise_std.",
        at_least=0,
        at_most=1,
    )
    whiten: float = option(
        0.0, "Above 0: the adaptor starts as a whitening of this shrinkage; 0.1 shrinks well.", at_least=0
    )
    adaptor_lr: float = option(ADAPTOR_LR, "The adaptor's learning rate, in units of its weights' size.", above=0)
    ensemble: int = option(
        1,
        "Adaptors and discriminators; of several, each trains on random quarters of the patches.",
        at_least=1,
        at_most=100,
        counts=True,
    )
    memory: int = option(
        0,
        "Above 0: keep so many normal patches; discriminators also see how a patch differs from the nearest of them.",
        at_least=0,
        at_most=50_000,
    )
    distance: float = option(
        0.0,
        "Above 0: with --memory, so many times a patch's distance to the nearest normal one is added to its score.",
        at_least=0,
    )
    bank_size: int = option(
        0,
        "With --distance: to so many patches, of which those of --memory are the first; 0: to those of --memory.",
        at_least=0,
        at_most=50_000,
    )
    ema: float = option(
        0.0,
        "Above 0: evaluate and keep a moving average of the weights, of this decay.",
        at_least=0,
        below=1,
    )
    warm_up_cosine: bool = option(
        False,
        "Raise all learning rates over 30 steps, then lower them to zero.",
        "--warm_up_cosine",
        "--no_warm_up_cosine",
    )
    score_top_k: int = option(1, "An image's score is the mean of its k highest patch scores.", at_least=1)


class SimpleNet(PatchDetector):
    """Frozen backbone, patch embedding, feature adaptor, and a discriminator trained on features with noise.

    Args:
        backbone, layers, image_size, precision, seed, options: see Detector. The adaptor's rate is for weights of the
            size that they have by default (RMS 1 / sqrt(D)); whitening weights of another size learn proportionally
            faster or slower, so that the scale of features is no matter. Whitening costs a pass over the images.

    Raises:
        UsageError: cos_lr without meta epochs left for the schedule or beside warm_up_cosine, a discriminator that
            shrinks to nothing, whiten without an adaptor or a memory, a distance without a memory, a bank_size without
            a distance, or ema or a memory of a backbone that is trained.
    """

    Options = Options
    RECIPES: ClassVar = RECIPES

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        own = self.options
        if own.cos_lr and own.meta_epochs <= own.aed_meta_epochs:
            raise UsageError(
                f"cos_lr needs more meta_epochs than aed_meta_epochs, not {own.meta_epochs} and {own.aed_meta_epochs}"
            )
        if own.cos_lr and own.warm_up_cosine:
            raise UsageError("cos_lr and warm_up_cosine are two schedules of the learning rate: choose one")
        if own.whiten > 0 and own.pre_proj == 0 and own.memory == 0:
            raise UsageError("whiten sets the feature adaptor's weights: pre_proj must be 1 or more, not 0")
        if own.ema > 0 and own.train_backbone:
            raise UsageError("ema averages no backbone: set it to 0 where the backbone is trained")
        if own.memory > 0 and own.train_backbone:
            raise UsageError("memory keeps features as they were: set it to 0 where the backbone is trained")
        if own.distance > 0 and own.memory == 0:
            raise UsageError("distance is that to the patches of a memory: set memory above 0, or distance to 0")
        if own.bank_size > 0 and own.distance == 0:
            raise UsageError("bank_size is of the patches that distance is to: set distance above 0, or bank_size to 0")
        dimension = own.target_embed_dimension
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.members = nn.ModuleList(
                Member(
                    Adaptor(dimension, own.pre_proj, own.proj_layer_type),
                    Discriminator(dimension, own.dsc_layers, own.dsc_hidden, own.memory > 0),
                )
                for _ in range(own.ensemble)
            )
        self.memory = Memory(own.memory, dimension, own.whiten > 0, own.bank_size) if own.memory > 0 else None
        self._own: list[Tensor] | None = None  # see scored_as_new
        self.noise = FeatureNoise(own.noise_std, own.mix_noise, own.auto_noise, own.difference_noise)

    @property
    def meta_epochs(self) -> int:
        return self.options.meta_epochs

    @property
    def train_backbone(self) -> bool:
        return self.options.train_backbone

    def passes_of(self, has_held_out: bool) -> Passes:
        """gan_epochs in every meta epoch, and before them one for whitening and one for the memory."""
        own = self.options
        return Passes((own.whiten > 0) + (own.memory > 0), own.gan_epochs)

    def begin(self, *classes: Normal) -> None:
        """Whiten, and choose the memory."""
        (own,) = classes
        if self.options.whiten > 0:
            self._whiten(own.train)
        if self.memory is not None:
            self.memory.choose(own.train, self.seed)

    def _whiten(self, embeddings: Collection[Tensor]) -> None:
        """Whiten what adaptors see, which then start as the identity; without a memory they start as the whitening."""
        if self.memory is None:
            weight, bias = whitening(embeddings, self.options.whiten)
        else:
            self.memory.whiten(embeddings, self.options.whiten)
            weight, bias = torch.eye(len(self.memory.bias)), torch.zeros_like(self.memory.bias)
        for member in self.members if self.options.pre_proj > 0 else ():
            member.adaptor.layers[0].load_state_dict({"weight": weight, "bias": bias})

    def trainer(self, *classes: Normal) -> Trainer:
        """As in Detector."""
        own = self.options
        adaptor_lr = own.adaptor_lr
        if own.whiten > 0 and own.pre_proj > 0:
            weight = self.members[0].adaptor.layers[0].weight.detach()
            adaptor_lr *= (weight.square().mean() * len(weight)).sqrt().item()
        trained = copy.deepcopy(self.members).train() if own.ema > 0 else self.members
        steps = own.meta_epochs * own.gan_epochs * len(classes[0].train) if own.warm_up_cosine else 0
        return Trainer(
            trained,
            self.noise,
            own.dsc_margin,
            own.dsc_lr,
            adaptor_lr,
            cosine_epochs=(own.meta_epochs - own.aed_meta_epochs) * own.gan_epochs if own.cos_lr else 0,
            warm_up_cosine=steps,
            seed=self.seed,
            precision=self.precision,
            backbone_parameters=self._backbone_parameters(),
            average=MovingAverage(self.members, trained, own.ema) if own.ema > 0 else None,
            memory=self.memory,
        )

    def forward(self, embeddings: Tensor, interest: Tensor | None = None) -> Prediction:
        """Image scores [B] and anomaly maps [B, H, W] (7)."""
        patch_scores = self.patch_scores(embeddings).float()
        inside = cells_inside(interest, patch_scores.shape[1:])
        drawn = self.drawn(lowest_outside(patch_scores, inside))
        return Prediction(self.image_scores(patch_scores, inside), drawn)

    @property
    def forgets(self) -> bool:
        """As in Forgetful: with a memory."""
        return self.memory is not None

    def scored_as_new(self, batches: Callable[[], Iterable[Features]]) -> Iterator[Prediction]:
        """As in Forgetful: by the patches of the memory that are of other images; weights stay what they are."""
        seen = (self.memory.seen(unmasked(own)[0].flatten(1, 2)).float() for own in batches())
        owners = owners_of(self.memory.patches, seen)
        for batch, self._own in with_own(batches(), owners):
            try:
                found = self.score(batch)
            finally:
                self._own = None
            yield found

    def patch_scores(self, embeddings: Tensor) -> Tensor:
        """s (6) or (14) of patch features [B, H1, W1, D], D(q) the mean over the members: [B, H1, W1]."""
        if self._own is None:
            return self._patch_scores(embeddings)
        return torch.cat([self._patch_scores(*one) for one in zip(embeddings.split(1), self._own, strict=True)])

    def _patch_scores(self, embeddings: Tensor, own: Tensor | None = None) -> Tensor:
        features, compared, far = embeddings.flatten(0, 2), (), 0.0  # [N, D]
        if self.memory is not None:
            seen = self.memory.seen(features)
            if self.options.distance > 0:
                nearest, distance = self.memory.nearest_and_distance(seen, own)
                far = self.options.distance * distance.unsqueeze(1)
            else:
                nearest = self.memory.nearest(seen, own)
            features, patches = (one.to(features.dtype) for one in (seen, self.memory.compared))
            compared = patches, nearest
        scores = torch.stack([member(features, *compared) for member in self.members])  # [members, N, 1]
        return (far - scores.mean(dim=0)).view(embeddings.shape[:3])

    def image_scores(self, patch_scores: Tensor, inside: Tensor | None = None) -> Tensor:
        """S (7) of patch scores [B, H1, W1]: the mean of the score_top_k highest, of all where there are fewer; [B].

        Of those inside, bool [B, H1, W1], where that is given.
        """
        return mean_of_highest(patch_scores, self.options.score_top_k, inside)

    def half(self) -> "SimpleNet":
        """As in nn.Module, but for what scores are made by: the few digits of float16 would tie patches."""
        super().half()
        for member in self.members:
            member.discriminator.tail.float()
        if self.memory is not None:
            self.memory.float()
        return self

    def _backbone_parameters(self) -> list[nn.Parameter]:
        if not self.train_backbone:
            return []
        network = self.backbone.build(self.layers, self.image_size, self.device)
        return list(network.requires_grad_(True).parameters())
