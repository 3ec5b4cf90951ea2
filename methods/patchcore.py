"""PatchCore: distances to a memory bank of normal patches (Roth et al., CVPR 2022, arXiv 2106.08265).

Nothing is trained: patch features of normal images are kept, thinned to few that lie near all, and a patch that is far
from them is anomalous. The equations, as numbered here (the paper's in brackets):

    o = pool([patches(F_1), resize(patches(F_2)), ...])                 patch features of D dimensions      (1) [1-3]
    M = union of o over all normal images                               memory bank                         (2) [4]
    M_C = argmin_{M_C in M} max_{m in M} min_{n in M_C} |m - n|         its coreset, found greedily         (3) [5]
    s_t = mean of the k smallest |o_t - m|^2, m in M_C                  patch score                         (4)
    S = max_t s_t, anomaly map = Gaussian(upsample(s))                  image score, and where              (5) [6]

That is the authors' program, whose distances are squared. With `--reweight B` it is the paper's own reading: distances
are not squared, and an image's score is less where the bank itself is sparse. Of its most distant patch o*, the nearest
m* of the bank and N_B(m*), the B patches of the bank that are nearest to m*, itself among them:

    S = (1 - exp|o* - m*| / sum_{m in N_B(m*)} exp|o* - m|) max_t s_t   image score                         (6) [7]

With `--whiten` all distances are those of whitened features, W o + b in place of o (detection/whitening.py).

With `--ensemble` there are (1) to (6) of each of several backbones. Their scores and their maps, of other scales, are
averaged as shares of what normal images have:

    S = mean over backbones of (S_b - min S_b) / (max S_b - min S_b), maps likewise, min and max over normal images  (7)

These are held-out images or, without any, the training images; the authors' program takes the test images.

(1) is computed in detection/patch_features.py; (3) in detection/coreset.py, of more than 256 dimensions in 128 random
ones; (4) and (6) in detection/memory_bank.py.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import Features, Masked
from backbones.float32 import full_float32
from detection import Detector, Mapped, Normal, Passes, Prediction
from detection.interest import cells_inside, of_interest, unmasked
from detection.memory_bank import BankOptions, MemoryBank, owners_of, with_own
from detection.patch_features import PatchDetector, PatchOptions
from detection.whitening import whitening
from errors import DataError
from options import option


@dataclass(frozen=True)
class MemoryOptions(BankOptions, PatchOptions):
    """Options of a bank of one backbone's patches, the base of a detector's own."""

    whiten: float = option(
        0.0, "Above 0: distances are of features whitened with this shrinkage; 0.1 shrinks well.", at_least=0
    )


@dataclass(frozen=True)
class Options(MemoryOptions):
    """PatchCore: distances to a memory bank of normal patches; nothing is trained."""

    ensemble: bool = option(
        False,
        "One model of all backbones that -b names, with a bank of each: the mean of their scores, on the scale of "
        "normal images.",
    )


class PatchCore(PatchDetector):
    """Frozen backbone, patch features, and a memory bank of them.

    Args:
        backbone, layers, image_size, precision, seed, options: see Detector. Distances are computed in float32 always.
            Whitening costs a pass over the images.

    Raises:
        UsageError: options of the bank that do not go together.
    """

    Options = Options

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        dimension = self.options.target_embed_dimension
        self.bank = MemoryBank(self.options, dimension, self.seed)
        whitens = self.options.whiten > 0
        self.register_buffer("weight", torch.zeros(dimension, dimension) if whitens else None)
        self.register_buffer("bias", torch.zeros(dimension) if whitens else None)

    @classmethod
    def variant(cls, options: Mapping[str, Any]) -> type[Detector]:
        """One of several backbones, where that is asked for."""
        return Ensemble if options.get("ensemble") else cls

    @property
    def sized_by_data(self) -> Mapping[str, Sequence[int | range]]:
        """The bank."""
        return {"bank.memory": self.bank.shape}

    def passes_of(self, has_held_out: bool) -> Passes:
        """One for the bank, and before it one for whitening."""
        return Passes(steps=0, settling=1 + (self.options.whiten > 0))

    def settle(self, *classes: Normal) -> Mapping[str, float]:
        """Whiten, and fill the bank."""
        (own,) = classes
        self.whiten(own.train)
        with full_float32(self.device):
            return self.bank.fill(own.train, self.compared)

    def whiten(self, embeddings: Collection[Tensor]) -> None:
        """Learn to whiten embeddings, where that is asked for; they are read once then."""
        if self.options.whiten > 0:
            weight, bias = whitening(embeddings, self.options.whiten)
            self.weight.copy_(weight)
            self.bias.copy_(bias)

    def extend(self, embeddings: Collection[Tensor]) -> None:
        """As in Extensible; the whitening stays."""
        with full_float32(self.device):
            self.bank.extend(of_interest(self, embeddings), self.compared)

    def forward(self, embeddings: Tensor, interest: Tensor | None = None) -> Prediction:
        """Image scores [B] and anomaly maps [B, H, W]."""
        inside = cells_inside(interest, embeddings.shape[1:3])
        with full_float32(embeddings.device):
            scores = self.bank(self.compared(embeddings).flatten(1, 2), inside)
            return Prediction(scores.images, self.drawn(scores.patches.view(embeddings.shape[:3])))

    @property
    def forgets(self) -> bool:
        """As in Forgetful."""
        return True

    def scored_as_new(self, batches: Callable[[], Iterable[Features]]) -> Iterator[Prediction]:
        """As in Forgetful: by the patches of the bank that are of other images."""
        with full_float32(self.device):
            images = (self.compared(unmasked(own)[0]).flatten(1, 2) for own in batches())
            owners = owners_of(self.bank.memory, images)
        for batch, own in with_own(batches(), owners):
            with self.bank.without_own(own):
                found = self.score(batch)
            yield found

    def compared(self, features: Tensor) -> Tensor:
        """What distances are of, of features [..., D]: float32 [..., D]."""
        return self.whitened(features)

    def whitened(self, features: Tensor) -> Tensor:
        """Features [..., D] in float32, whitened where that is asked for."""
        features = features.float()
        return features if self.weight is None else F.linear(features, self.weight, self.bias)

    def half(self) -> "PatchCore":
        """As in nn.Module, of the backbone alone: distances between close features need more digits."""
        self.backbone.half()
        return self


class Ensemble(Detector):
    """A PatchCore of each of several backbones, and the mean of what they say, on one scale.

    Args:
        backbone: a backbones.Several.
        layers, image_size, precision, seed, options: see PatchCore; the options are those of each.

    Attributes:
        members: the PatchCores.
        score_scale: smallest and largest score [M, 2] of normal images by each; map_scale: likewise of their maps.
    """

    Options = Options
    READS_SEVERAL = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        alone = {**asdict(self.options), "ensemble": False, "match_light": "off"}
        known = {"precision": self.precision, "seed": self.seed}
        self.members = nn.ModuleList(
            PatchCore(one, own, self.image_size, **known, **alone) for one, own in self.backbone.split(self.layers)
        )
        self.register_buffer("score_scale", torch.tensor([[0.0, 1.0]]).repeat(len(self.members), 1))
        self.register_buffer("map_scale", self.score_scale.clone())

    @property
    def draws_aligned(self) -> bool:
        """The members draw."""
        return False

    @property
    def sized_by_data(self) -> Mapping[str, Sequence[int | range]]:
        """The members' banks."""
        return {
            f"members.{i}.{name}": sizes
            for i, member in enumerate(self.members)
            for name, sizes in member.sized_by_data.items()
        }

    def check(self) -> None:
        """As in PatchCore, of every member."""
        for member in self.members:
            member.check()

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Patch features [B, H1, W1, D] of every member."""
        return tuple(member.features(images) for member in self.members)

    def passes_of(self, has_held_out: bool) -> Passes:
        """Those of the members, one after another, and one for the scales, if training images say them."""
        own = sum(member.passes_of(has_held_out).settling for member in self.members)
        return Passes(steps=0, settling=own + (not has_held_out))

    def settle(self, *classes: Normal) -> Mapping[str, float]:
        """Fill the banks, and see how normal images are scored.

        Raises:
            DataError: scores of normal images that are all alike, as of those whose patches are all kept.
        """
        (own,) = classes
        if not len(own.held_out) and self.options.sampler == "identity":
            raise _without_scale("by no backbone, for --sampler identity keeps their own patches")
        details = {}
        for i in range(len(self.members)):
            said = self.members[i].settle(Normal(self._of_member(i, own.train)))
            details |= {f"{name}_{i}": value for name, value in said.items()}
        self.learn_scales(own.held_out if len(own.held_out) else own.train)
        return details

    def learn_scales(self, normal: Collection[tuple[Tensor, ...]]) -> None:
        """Take the range of each member's scores of normal images, and that of its maps, for its scale."""
        for kept in (self.score_scale, self.map_scale):
            kept.copy_(torch.tensor([math.inf, -math.inf]))
        for batch in normal:
            for kept, values in zip((self.score_scale, self.map_scale), self.said(*unmasked(batch)), strict=True):
                least, most = values.flatten(1).aminmax(dim=1)
                kept[:, 0], kept[:, 1] = torch.minimum(kept[:, 0], least), torch.maximum(kept[:, 1], most)
        for member, *ranges in zip(self.members, self.score_scale, self.map_scale, strict=True):
            if not all(least < most for least, most in ranges):
                raise _without_scale(f"by backbone {member.backbone.name}, for all are the same")

    def extend(self, embeddings: Collection[tuple[Tensor, ...]]) -> None:
        """As in Extensible; whitening and scales stay."""
        for i, member in enumerate(self.members):
            member.extend(self._of_member(i, embeddings))

    def learned_from(self, masked: Masked) -> Masked:
        """As in Detector: the members leave out what is of no interest."""
        return masked

    def _of_member(self, index: int, embeddings: Collection[Features]) -> Mapped:
        """What one of the members learns from of all members' embeddings."""

        def own(batch: Features) -> Features:
            features, interest = unmasked(batch)
            return features[index] if interest is None else Masked(features[index], interest)

        return of_interest(self.members[index], Mapped(own, embeddings))

    def forward(self, embeddings: tuple[Tensor, ...], interest: Tensor | None = None) -> Prediction:
        """Image scores [B] and anomaly maps [B, H, W]."""
        scores, maps = self.said(embeddings, interest)
        return Prediction(averaged(scores, self.score_scale), averaged(maps, self.map_scale))

    def said(self, embeddings: tuple[Tensor, ...], interest: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores [M, B] and maps [M, B, H, W] of the members, as they are."""
        found = [member(own, interest) for member, own in zip(self.members, embeddings, strict=True)]
        return torch.stack([one.scores for one in found]), torch.stack([one.maps for one in found])

    def half(self) -> "Ensemble":
        """As in PatchCore."""
        self.backbone.half()
        return self


def averaged(values: Tensor, scale: Tensor) -> Tensor:
    """The mean (7) of M members' values [M, ...], as shares of their ranges [M, 2]: [...]."""
    least, most = scale.view(-1, 2, *[1] * (values.ndim - 1)).unbind(dim=1)
    return ((values - least) / (most - least)).mean(dim=0)


def _without_scale(why: str) -> DataError:
    return DataError(
        f"--ensemble: scores of normal images have no range {why}: hold at least two out, such as by "
        "--train_val_split 0.9"
    )
