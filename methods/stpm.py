"""Student-teacher feature pyramid matching (Wang et al.: Student-Teacher Feature Pyramid Matching, BMVC 2021).

A student of the teacher's own architecture learns, from random weights, to give the frozen teacher's maps of normal
images; where an image is not normal, it fails. The equations, as numbered here, with the teacher's maps F_l and the
student's S_l:

    t_l = F_l / |F_l|, s_l = S_l / |S_l|, over the channels                              (1)
    D_l(h, w) = |t_l - s_l|^2                                                            (2)
    L = sum_l mean over images and places of D_l                                         (3)
    anomaly map = upsample(prod_l resize(D_l)), image score = its maximum                (4)

The paper halves (2); the authors' program does not, and its learning rate goes with that. In (4) all levels are brought
to the grid of the first, and only the product to the image's size, as in that program.
"""

import copy
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import backbones
from backbones import Alignment, FeatureExtractor, Features, Masked
from backbones.features import parts
from backbones.patches import resize_to_first
from detection import Detector, EndOfPass, Normal, Prediction, autocast, gradient_scaler, learn
from detection.anomaly_map import align_maps, highest, upsampled
from detection.interest import calm, cells_inside, unmasked
from detection.kept_pixels import images_of, kept_pixels
from detection.light import Matching, match_light
from errors import UsageError
from options import option

MOMENTUM = 0.9
SEEDS = 2**32  # that random weights are of


@dataclass(frozen=True)
class Options:
    """STPM: a student of the backbone's architecture, learned from random weights, that errs where an image is not
    normal.
    """

    align_maps: bool = align_maps()
    match_light: Matching = match_light()
    weight_decay: float = option(1e-4, "Weight decay of SGD.", at_least=0)
    lr: float = option(0.4, "Its learning rate.", above=0)
    epochs: int = option(
        100,
        "Passes over the training images; each is evaluated, see --eval_every. The student is kept of the one with the "
        "lowest loss of held-out images.",
        at_least=1,
    )


class STPM(Detector):
    """Frozen teacher, and a student of its architecture, cut behind the last of the layers.

    The feature bank keeps an image's pixels, which the student looks at, and the teacher's maps.

    Args:
        backbone, layers, image_size, precision, seed, options: see Detector; the first layer's grid is that of maps.

    Raises:
        UsageError: a layer of a single cell, whose batch statistics may be of one value.
    """

    Options = Options
    DATASET_DEFAULTS: ClassVar = {  # the authors'
        "batch_size": 32,
        "resize_mode": "square",
        "imagesize": 256,
        "train_val_split": 0.8,
    }

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for info in self.backbone.layer_info(self.layers, self.image_size):
            if info.grid == (1, 1):
                raise UsageError(
                    f"layer {info.name} has a single cell, too few for a student's batch statistics: raise "
                    "--imagesize, or leave the layer out"
                )
        self.student = self._fresh_student()

    def _fresh_student(self) -> FeatureExtractor:
        own, another = self.backbone, (self.seed + 1) % SEEDS  # a teacher of random weights has the run's seed
        student = backbones.load(own.name, "random", another, own.normalisation)
        student.build(self.layers, self.image_size, self.device).requires_grad_(True)
        return student

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Pixels [B, 3, H, W], and the teacher's maps, channels last: [B, H_l, W_l, C_l]."""
        maps = self.backbone(images, self.layers)
        return kept_pixels(images, self.light), *(own.permute(0, 2, 3, 1) for own in maps)

    def trainer(self, *classes: Normal) -> "_Trainer":
        """As in Detector."""
        (own,) = classes
        return _Trainer(self, own.held_out)

    def forward(self, embeddings: Sequence[Tensor], interest: Tensor | None = None) -> Prediction:
        """Maps and image scores (4)."""
        found = [calm(own[:, 0], interest).unsqueeze(1) for own in self.differences(self.student, embeddings)]
        maps = upsampled(product(found, self.alignment), self.image_size, self.alignment and self.alignment.of(0))
        return Prediction(highest(maps, interest), maps)

    def learned_from(self, masked: Masked) -> Masked:
        """As in Detector: the loss leaves out what is of no interest."""
        return masked

    def loss(self, student: FeatureExtractor, embeddings: Features) -> Tensor:
        """L (3) of what embed gave, a scalar."""
        features, interest = unmasked(embeddings)
        found = self.differences(student, features)
        if interest is None:
            return sum(own.mean() for own in found)
        return sum(own[:, 0][cells_inside(interest, own.shape[2:])].mean() for own in found)

    def differences(self, student: FeatureExtractor, embeddings: Sequence[Tensor]) -> list[Tensor]:
        """D_l (2) of a student, float32 [B, 1, H_l, W_l]."""
        pixels, *maps = embeddings
        teacher = [own.permute(0, 3, 1, 2) for own in maps]
        found = student(images_of(pixels, next(student.parameters()).dtype), self.layers)
        return [difference(own, other) for own, other in zip(teacher, found, strict=True)]


class StepStats(NamedTuple):
    """What one step says of itself."""

    loss: Tensor


class _Trainer:
    """SGD on a copy of the student, which is taken over where its loss of held-out images is the lowest so far."""

    def __init__(self, detector: STPM, held_out: Collection[Features]) -> None:
        self.detector = detector
        self.held_out = held_out
        self.trained = copy.deepcopy(detector.student)
        self.optimizer = torch.optim.SGD(
            self.trained.parameters(),
            lr=detector.options.lr,
            momentum=MOMENTUM,
            weight_decay=detector.options.weight_decay,
            fused=True,
        )
        self.scaler = gradient_scaler(detector.device, detector.precision)
        self.lowest = float("inf")

    def steps(self, batches: Iterable[Features]) -> Iterator[StepStats]:
        """A step per batch of pixels and the teacher's maps."""
        self.trained.train()
        for batch in batches:
            loss = self._loss(batch)
            learn(loss, [self.optimizer], self.detector.precision, self.scaler)
            yield StepStats(loss.detach())

    def end_pass(self) -> EndOfPass:
        """Take over the student if it is the best so far; without held-out images the last is."""
        details = {}
        if len(self.held_out):
            details["held_out_loss"] = loss = self._held_out_loss()
            if loss >= self.lowest:
                return EndOfPass(details)
            self.lowest = loss
        self.detector.student.load_state_dict(self.trained.state_dict())
        return EndOfPass(details)

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """L (3) of the held-out images, with the statistics that the student has learned."""
        self.trained.eval()
        losses = [(len(parts(batch)[0]), self._loss(batch).item()) for batch in self.held_out]
        return sum(count * loss for count, loss in losses) / sum(count for count, _ in losses)

    def _loss(self, batch: Features) -> Tensor:
        with autocast(self.detector.device, self.detector.precision):
            return self.detector.loss(self.trained, batch)

    def state_dict(self) -> dict[str, Any]:
        return {
            "trained": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "lowest": self.lowest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trained.load_state_dict(state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.lowest = state["lowest"]


def difference(teacher: Tensor, student: Tensor) -> Tensor:
    """D (2) of maps [B, C, H, W], float32 [B, 1, H, W]; a vector of length 0 differs from any other by 1."""
    unit, other = (F.normalize(own.float(), dim=1) for own in (teacher, student))
    return (unit - other).square().sum(dim=1, keepdim=True)


def product(differences: Sequence[Tensor], alignment: Alignment | None = None) -> Tensor:
    """The product in (4) of D_l [B, 1, H_l, W_l] on the grid of the first, [B, H_1, W_1]."""
    return math.prod(resize_to_first(differences, alignment))[:, 0]
