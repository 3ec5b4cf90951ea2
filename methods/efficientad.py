"""EfficientAD (Batzner et al.: Accurate Visual Anomaly Detection at Millisecond-Level Latencies, WACV 2024).

A small teacher T describes patches of 33 x 33 pixels. A student S learns to give its description of normal images, of
which only the worst part counts, and is punished for describing others; an autoencoder A, which sees the whole
scene, gives it too, as blurred as a narrow code allows, and a second half S' of the student's outputs learns what it
gives. Where S differs from T, something looks strange; where S' differs from A, something is not where it should be.
The equations, as numbered here, of an image I, the same in other colours I' and one of no class P:

    T^ = (T - mu) / sigma, of every channel over the training images                                  (1)
    D = (T^(I) - S(I))^2, d = quantile 0.999 of an image's D, L_hard = mean of D where D >= d         (2)
    L = L_hard + mean S(P)^2 + mean (T^(I') - A(I'))^2 + mean (A(I') - S'(I'))^2                      (3)
    M_ST = mean_c D, M_AE = mean_c (A(I) - S'(I))^2                                                   (4)
    M^ = 0.1 (M - q_a) / (q_b - q_a), quantiles 0.9 and 0.995 over all places of held-out images      (5)
    map = upsample(pad(M^_ST + M^_AE) / 2), image score = its maximum                                 (6)

The networks are in pdn.py and scene_autoencoder.py. T and S are not padded, and (6) puts zeros where that leaves cells
out. The last term of (3) moves A too.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from backbones import Features, Masked
from datasets import normalised
from detection import Detector, EndOfPass, Normal, Passes, Prediction, autocast, gradient_scaler, learn
from detection.anomaly_map import highest
from detection.interest import cells_inside, lowest_outside, unmasked
from detection.kept_pixels import images_of, kept_pixels
from detection.light import Matching, grey, match_light, normalisation_like, unit_pixels
from errors import UsageError
from methods.efficientad_equations import Terms, channel_statistics, combined, drawn, mean_square, quantiles, terms
from methods.foreign import OFF, ForeignImages, said_of
from methods.masked_network import seeded
from methods.pdn import OUTPUTS, PDN, Size, grid_of, read_teacher, scaled
from methods.scene_autoencoder import SceneAutoencoder
from options import option

RANDOM = "random"
WEIGHT_DECAY = 1e-5
QUANTILES = 0.9, 0.995  # q_a and q_b
BORDER = 4  # cells that a network that is not padded leaves out on every side
DROP = 0.95  # of all steps, those before the learning rate falls to a tenth
CHANGE = 0.2  # of colours, at most


@dataclass(frozen=True)
class Options:
    """EfficientAD: a small student of a small teacher, and an autoencoder for what is not where it should be.

    \b
    It needs a teacher: the authors' weights, or one that is made once, for all classes, of any backbone:
      python main.py distill -b wideresnet101 -le layer2 -le layer3 --images IMAGENET --out teacher.pth
      python main.py efficientad --teacher teacher.pth dataset mvtec /path/to/mvtec
    """

    match_light: Matching = match_light()
    size: Size = option("s", "Of teacher and student: the paper's small or medium one.")
    width: float = option(1.0, "Their channels, as a share of the paper's: 0.25 is far faster.", above=0, at_most=4)
    teacher: str | None = option(
        None,
        "State dict of the teacher, .pth or .safetensors: published weights, or what distill wrote. random: an "
        "untrained one, to try the chain.",
        metavar="FILE",
        is_file=True,
    )
    penalty_images: str | None = option(
        None,
        "Folder of images that are of no class of yours, such as ImageNet's, also in folders below it; unset: "
        "photographs of scikit-image that the dataset assembly is not drawn from. off: none.",
        metavar="FOLDER",
        shown="scikit-image's",
    )
    padding: bool = option(False, "Zeros around images and maps: for images below 33 pixels, or maps up to the border.")
    lr: float = option(1e-4, "Learning rate of Adam; a tenth of it in the last twentieth of all steps.", above=0)
    epochs: int = option(
        320,
        "Passes over the training images; each is evaluated. The authors make 70,000 steps of one image.",
        at_least=1,
    )


class EfficientAD(Detector):
    """Teacher, student and autoencoder; the teacher is kept with the model.

    The feature bank keeps pixels: all three look at them, in training also in other colours.

    Args:
        backbone, layers, image_size, precision, seed, options: see Detector; the backbone is the image itself.

    Raises:
        UsageError: images too small for a patch.
    """

    Options = Options
    NEEDS_BACKBONE = False
    DATASET_DEFAULTS: ClassVar = {  # the authors'
        "batch_size": 1,
        "resize_mode": "square",
        "imagesize": 256,
        "train_val_split": 0.9,
    }

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        own = self.options
        self.channels = scaled(OUTPUTS, own.width)
        self.grid = grid_of(self.image_size, own.padding)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.teacher = PDN(own.size, own.width, self.channels, own.padding).requires_grad_(False)
            self.student = PDN(own.size, own.width, 2 * self.channels, own.padding)
            self.autoencoder = SceneAutoencoder(self.channels, self.image_size, self.grid)
        self.register_buffer("mean", torch.zeros(self.channels))  # mu
        self.register_buffer("deviation", torch.ones(self.channels))  # sigma
        self.register_buffer("quantiles", torch.tensor([[0.0, 1.0]] * 2))  # q_a and q_b of M_ST and M_AE

    @property
    def notes(self) -> list[str]:
        """As in Detector: where the penalty is from, and that a random teacher knows nothing."""
        untrained = "--teacher random knows nothing: it is there to try the chain"
        return [said_of(self.options.penalty_images), *[untrained] * (self.options.teacher == RANDOM)]

    def check(self) -> None:
        """As in Detector.

        Raises:
            UsageError: no teacher, one of other sizes, or a folder without penalty images.
            DataError: a file that is no teacher.
        """
        self._read_teacher()
        self._foreign_images()

    def _read_teacher(self) -> dict[str, Tensor] | None:
        """The tensors of the file; None of a random one."""
        own = self.options
        if own.teacher is None:
            raise UsageError(
                "efficientad needs a teacher: give --teacher FILE, published weights or those that distill makes of a "
                "backbone: main.py distill -b efficientnet_lite0 -le blocks.2 -le blocks.4 --images FOLDER --out FILE"
            )
        return None if own.teacher == RANDOM else read_teacher(Path(own.teacher), own.size, own.width)

    def _foreign_images(self) -> ForeignImages | None:
        folder = self.options.penalty_images
        return None if folder == OFF else ForeignImages(folder)

    def features(self, images: Tensor) -> Tensor:
        """Pixels [B, 3, H, W]."""
        return kept_pixels(images, self.light)

    def passes_of(self, has_held_out: bool) -> Passes:
        """One per epoch, before them one for mu and sigma; quantiles are of held-out images, if any."""
        return Passes(before=1, settling=int(not has_held_out))

    def begin(self, *classes: Normal) -> None:
        """Read the teacher; learn mu and sigma (1), over all places of all images.

        Raises:
            UsageError, DataError: as check.
            DataError: maps that are not finite.
        """
        (own,) = classes
        if (state := self._read_teacher()) is not None:
            self.teacher.load_state_dict(state)
        mean, deviation = channel_statistics(map(self._outputs, own.train))
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def _outputs(self, embeddings: Features) -> Tensor:
        features, _ = unmasked(embeddings)
        with autocast(self.device, self.precision):
            return self.teacher(self._images(features))

    def trainer(self, *classes: Normal) -> "_Trainer":
        """As in Detector."""
        (own,) = classes
        return _Trainer(self, self._foreign_images(), self.meta_epochs * len(own.train))

    def settle(self, *classes: Normal) -> Mapping[str, float]:
        """Take the quantiles (5) of held-out images; of those of training where there are none."""
        (own,) = classes
        maps = []
        for batch in own.held_out if len(own.held_out) else own.train:
            features, interest = unmasked(batch)
            with autocast(self.device, self.precision):
                found = torch.stack(self.raw_maps(features))
            inside = self._cells_inside(interest)
            maps.append(found.flatten(1) if inside is None else found[:, inside])  # [2, N]
        self.quantiles.copy_(quantiles(torch.cat(maps, dim=1), QUANTILES))
        return {}

    @property
    def border(self) -> int:
        """Cells that the maps (4) leave out on every side."""
        return 0 if self.options.padding else BORDER

    def forward(self, embeddings: Tensor, interest: Tensor | None = None) -> Prediction:
        """Maps and scores (6) of pixels."""
        found = lowest_outside(combined(*self.raw_maps(embeddings), self.quantiles), self._cells_inside(interest))
        maps = drawn(found, self.border, self.image_size)
        return Prediction(highest(maps, interest), maps)

    def learned_from(self, masked: Masked) -> Masked:
        """As in Detector: the networks learn whole images, blank where they are of no interest, quantiles the rest."""
        return masked

    def _cells_inside(self, interest: Tensor | None) -> Tensor | None:
        """The cells of the maps (4) with pixels of interest, bool [B, h, w]; None: all have."""
        if interest is None:
            return None
        height, width = self.grid
        whole = cells_inside(interest, (height + 2 * self.border, width + 2 * self.border))
        return whole[:, self.border : self.border + height, self.border : self.border + width]

    def raw_maps(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """M_ST and M_AE (4) of pixels, float32 [B, h, w] each.

        A CPU sees one image after another: what lies between convolutions then stays in its cache, and they themselves
        take as long as those of several.
        """
        if embeddings.device.type != "cpu" or torch.compiler.is_compiling():
            return self._raw_maps(embeddings)
        student, autoencoder = zip(*map(self._raw_maps, embeddings.split(1)), strict=True)
        return torch.cat(student), torch.cat(autoencoder)

    def _raw_maps(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        images = self._images(embeddings)
        first, second = self.student(images).float().chunk(2, dim=1)
        given = self.autoencoder(images).float()
        return mean_square(self.described(images) - first), mean_square(given - second)

    def described(self, images: Tensor) -> Tensor:
        """T^ (1) of images, float32 [B, C, h, w]."""
        mean, deviation = (own[:, None, None] for own in (self.mean, self.deviation))
        return (self.teacher(images).float() - mean) / deviation

    def _images(self, embeddings: Tensor) -> Tensor:
        return images_of(embeddings, self.student[0].weight.dtype)

    def terms(self, images: Tensor, changed: Tensor, foreign: Tensor | None) -> Terms:
        """The terms of L (3) of images I, the same as I', and images P, if any: [B, 3, H, W] each."""
        first, second = slice(self.channels), slice(self.channels, None)
        with torch.no_grad():
            plain, other = self.described(torch.cat([images, changed])).chunk(2)
        seen = images if foreign is None else torch.cat([images, foreign])
        given = self.student(seen, first).float()
        return terms(
            plain,
            given[: len(images)],
            None if foreign is None else given[len(images) :],
            other,
            self.autoencoder(changed).float(),
            self.student(changed, second).float(),
        )

    def half(self) -> "EfficientAD":
        """As in nn.Module, of the networks: sigma and the quantiles need more digits."""
        for own in (self.teacher, self.student, self.autoencoder):
            own.half()
        return self


class StepStats(NamedTuple):
    """What one step says of itself: L and its terms."""

    loss: Tensor
    hard: Tensor
    penalty: Tensor
    autoencoder: Tensor
    agreement: Tensor


class _Trainer:
    """Adam on student and autoencoder.

    Args:
        detector: that has begun.
        foreign: where P are from; None leaves their term out.
        steps: in all.
    """

    def __init__(self, detector: EfficientAD, foreign: ForeignImages | None, steps: int) -> None:
        self.detector = detector
        self.foreign = foreign
        self.drop = int(DROP * steps)
        learned = [*detector.student.parameters(), *detector.autoencoder.parameters()]
        self.optimizer = torch.optim.Adam(learned, lr=detector.options.lr, weight_decay=WEIGHT_DECAY, fused=True)
        self.scaler = gradient_scaler(detector.device, detector.precision)
        self.step = 0  # seeds what is random in the next, and decides its rate

    def steps(self, batches: Iterable[Features]) -> Iterator[StepStats]:
        """A step per batch of pixels."""
        own = self.detector
        for batch in batches:
            rng = np.random.default_rng([own.seed, self.step])
            images = images_of(unmasked(batch)[0], torch.float32)
            changed = torch.stack([recoloured(one, rng) for one in images])
            with seeded(own.device, int(rng.integers(2**62))), autocast(own.device, own.precision):
                found = own.terms(images, changed, self._foreign(len(images), rng))
            for group in self.optimizer.param_groups:
                group["lr"] = own.options.lr * (0.1 if self.step >= self.drop else 1.0)
            loss = found.loss
            learn(loss, [self.optimizer], own.precision, self.scaler)
            self.step += 1
            yield StepStats(*(one.detach() for one in (loss, *found)))

    def _foreign(self, count: int, rng: np.random.Generator) -> Tensor | None:
        """P, as many as images."""
        if self.foreign is None:
            return None
        drawn = np.stack([self.foreign.draw(self.detector.image_size, rng) for _ in range(count)])
        return normalised(torch.from_numpy(drawn).permute(0, 3, 1, 2).to(self.detector.device))

    def end_pass(self) -> EndOfPass:
        """The rate goes by steps."""
        return EndOfPass()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]


def recoloured(image: Tensor, rng: np.random.Generator) -> Tensor:
    """I' of a normalised image [3, H, W]: one of brightness, contrast and saturation by 0.8 to 1.2 times."""
    pixels = unit_pixels(image)
    own = grey(image.unsqueeze(0))  # [1, H, W]
    kind, factor = int(rng.integers(3)), float(rng.uniform(1 - CHANGE, 1 + CHANGE))
    towards = (torch.zeros_like(own), own.mean().expand_as(own), own)[kind]
    mean, std = normalisation_like(image)
    return ((factor * pixels + (1 - factor) * towards).clamp(0, 1) - mean) / std
