"""Reverse distillation (Deng and Li: Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022).

A student decodes the maps of a frozen teacher from a narrow embedding of them, learned on normal images: what is not
normal is lost on the way, and there the maps differ. The equations, as numbered here, with the teacher's maps F_l and
the student's S_l:

    S = decoder(bottleneck(F))                                                           (1)
    L = sum_l 1 - cos(F_l, S_l), each map of an image taken as one vector                (2)
    M_l(h, w) = 1 - cos(F_l(h, w), S_l(h, w)), over the channels                         (3)
    anomaly map = Gaussian(sum_l upsample(M_l)), image score = its maximum               (4)

The paper's Eq. 2 averages (3) over a map; (2) is what the authors' program trains, and so is upsampling with aligned
corners in (4).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones import Alignment, Features, Masked
from detection import Detector, EndOfPass, Normal, Prediction, autocast, gradient_scaler, learn
from detection.anomaly_map import align_maps, anomaly_maps, highest
from detection.interest import calm, cells_inside, unmasked
from detection.light import Matching, match_light
from methods.student import Student
from options import option

BETAS = (0.5, 0.999)


@dataclass(frozen=True)
class Options:
    """Reverse distillation: a student that decodes the backbone's layers, given from fine to coarse, and errs where
    an image is not normal.
    """

    align_maps: bool = align_maps()
    match_light: Matching = match_light()
    blocks: int = option(
        3, "Residual blocks of the bottleneck and of every decoder stage.", at_least=1, at_most=100, counts=True
    )
    relu: Literal["exit", "entrance"] = option(
        "exit",
        "Where a residual block has its ReLU: at its exit, as the authors', but for a last one where the layer has "
        "values below 0; or at its entrance, where half of such a layer is lost.",
    )
    lr: float = option(0.005, "Learning rate of Adam.", above=0)
    epochs: int = option(200, "Passes over the training images; each is evaluated, see --eval_every.", at_least=1)


class ReverseDistillation(Detector):
    """Frozen teacher, and a student that decodes its maps.

    The feature bank keeps the teacher's maps, sum C_l H_l W_l values an image: at 256 pixels 1.8 million of
    WideResNet50's layer1 to layer3 and 0.17 million of EfficientNet-Lite0's blocks.1, blocks.2 and blocks.4.

    Args:
        backbone, layers, image_size, precision, seed, options: see Detector; layers from fine to coarse.

    Raises:
        UsageError: layers in another order, or too small a grid.
    """

    Options = Options
    BEFORE: ClassVar = {"relu": "entrance"}
    DATASET_DEFAULTS: ClassVar = {"batch_size": 16, "resize_mode": "square", "imagesize": 256}  # the paper's

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        infos = self.backbone.layer_info(self.layers, self.image_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.student = Student(infos, self.options.blocks, self.options.relu)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """The teacher's maps, channels last: [B, H_l, W_l, C_l]."""
        return tuple(own.permute(0, 2, 3, 1) for own in self.backbone(images, self.layers))

    def trainer(self, *classes: Normal) -> "_Trainer":
        """As in Detector."""
        return _Trainer(self)

    def forward(self, embeddings: Sequence[Tensor], interest: Tensor | None = None) -> Prediction:
        """Maps (4) and their maxima."""
        teacher = teacher_maps(embeddings)
        maps = difference_maps(teacher, self.student(teacher), self.image_size, self.alignment, interest)
        return Prediction(highest(maps, interest), maps)

    def learned_from(self, masked: Masked) -> Masked:
        """As in Detector: the loss leaves out what is of no interest."""
        return masked

    def loss(self, embeddings: Features, generator: torch.Generator) -> Tensor:
        """L (2) of a batch of training images; what is random in it is drawn from the generator."""
        maps, interest = unmasked(embeddings)
        teacher = teacher_maps(maps)
        return distillation_loss(teacher, self.student(teacher), interest)


class StepStats(NamedTuple):
    """What one step says of itself."""

    loss: Tensor


class _Trainer:
    """Adam on all but the teacher."""

    def __init__(self, detector: ReverseDistillation) -> None:
        self.detector = detector
        if detector.device.type == "cuda":  # as the maps are; on a CPU it would change how convolutions round
            for weight in detector.student.parameters():
                if weight.ndim == 4:
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        learned = detector.learned().values()
        self.optimizer = torch.optim.Adam(learned, lr=detector.options.lr, betas=BETAS, fused=True)
        self.scaler = gradient_scaler(detector.device, detector.precision)
        self.generator = torch.Generator(detector.device).manual_seed(detector.seed)

    def steps(self, batches: Iterable[Features]) -> Iterator[StepStats]:
        """A step per batch of the teacher's maps."""
        own = self.detector
        for batch in batches:
            with autocast(own.device, own.precision):
                loss = own.loss(batch, self.generator)
            learn(loss, [self.optimizer], own.precision, self.scaler)
            yield StepStats(loss.detach())

    def end_pass(self) -> EndOfPass:
        """The learning rate stays."""
        return EndOfPass()

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state.get("scaler", {}))  # none of earlier versions
        self.generator.set_state(state["generator"])


def teacher_maps(embeddings: Sequence[Tensor]) -> list[Tensor]:
    """The maps [B, C_l, H_l, W_l] that are kept with their channels last."""
    return [own.permute(0, 3, 1, 2) for own in embeddings]


def distillation_loss(teacher: Sequence[Tensor], student: Sequence[Tensor], interest: Tensor | None = None) -> Tensor:
    """L (2), the mean over the images, of maps [B, C_l, H_l, W_l]; a scalar.

    Of the cells with pixels of interest where these are given, bool [B, H, W].
    """
    if interest is not None:
        weights = [cells_inside(interest, own.shape[2:]).unsqueeze(1) for own in teacher]
        teacher, student = ([own * one for own, one in zip(maps, weights, strict=True)] for maps in (teacher, student))
    similarities = [
        F.cosine_similarity(own.float().flatten(1), other.float().flatten(1), dim=1)
        for own, other in zip(teacher, student, strict=True)
    ]
    return sum((1 - one).mean() for one in similarities)


def difference_maps(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    size: tuple[int, int],
    alignment: Alignment | None = None,
    interest: Tensor | None = None,
) -> Tensor:
    """Anomaly maps (4) of maps [B, C_l, H_l, W_l]: float32 [B, H, W]; by an alignment each drawn where it looks.

    What is not of interest, bool [B, H, W], does not shine into the rest.
    """
    return sum(
        anomaly_maps(
            calm(1 - F.cosine_similarity(own.float(), other.float(), dim=1), interest),
            size,
            align_corners=True,
            centres=alignment and alignment.of(layer),
        )
        for layer, (own, other) in enumerate(zip(teacher, student, strict=True))
    )
