"""One Transformer for images and tables, trained on normal samples of all of them together.

Every sample is a row of tokens: cells of a backbone's maps or patches of pixels, or the columns of a table. The network
sees some of them and a class token, says what the hidden ones are, and whether the sample was tampered with:

    x_hat, y = network(x where not m, m), L = mean over m of |x - x_hat|^2 + w BCE(y)                     (1)
    e_i = mean over the masks that hide token i of the root mean square of x_i - x_hat_i                   (2)
    r = mean of a row's e_i, of the TOP highest of an image;  p = mean over all masks of sigmoid(y)        (3)
    score = z(r) + z(p), z standardised on normal samples;  anomaly map = Gaussian(upsample(e))            (4)

Masks are drawn anew for every sample in training (He et al.: Masked Autoencoders Are Scalable Vision Learners, CVPR
2022) and fixed in (2) and (3). Anomalies are never seen: y learns 1 for copies in which a part of an image or some
columns of a row come from another sample, and 0 for samples as they are; see methods/tokens.py, and for w. The network
is methods/masked_network.py, and the order in which it learns from several data sets methods/schedules.py.
"""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones import PIXELS
from backbones.patches import resize_to_first
from backbones.resizing import resized
from detection import Detector, EndOfPass, MovingAverage, Normal, Passes, Prediction, autocast, gradient_scaler, learn
from detection.anomaly_map import align_maps
from detection.light import Matching, match_light
from errors import UsageError
from methods.masked_network import Network, seeded
from methods.schedules import Scheduled
from methods.tokens import ImageTokens, TableTokens
from options import option

AVERAGE = 0.995  # decay of the weights' moving average
WEIGHT_DECAY = 0.01
TOP = 5
MOST = 4096  # tokens of an image and values of a row: every token looks at all others
TERMS = "reconstruction_score", "tampered_score"  # z(r) and z(p)
DRAWS = 4  # of masks and copies for the held-out loss
LEAST_STD = 0.01  # of r and p: what hardly moves among a few normal samples must not rule the score


@dataclass(frozen=True)
class Options:
    """One Transformer for images and rows of tables, which learns what is hidden of normal ones and tells copies that
    were tampered with.

    \b
    dataset may stand several times: all classes and tables of them train one model.
      python main.py multimodal -b efficientnet_lite0 -le blocks.4 -le blocks.2 \\
        dataset -d mono elpv dataset --label sick table records.csv
    What is held out decides when training ends and where the threshold lies. Tables alone need no backbone.
    """

    align_maps: bool = align_maps(decides_features=True)
    match_light: Matching = match_light()
    image_tokens: Literal["backbone", "pixels"] = option(
        "backbone",
        "What an image is cut into: cells of a backbone's maps, or patches of its pixels.",
        decides_features=True,
    )
    token_size: int = option(16, "Pixels: side of a patch.", at_least=1, decides_features=True)
    dim: int = option(64, "Values of a token in the Transformer.", at_least=1, at_most=4096)
    depth: int = option(2, "Layers of the Transformer.", at_least=1, at_most=100, counts=True)
    heads: int = option(4, "Attention heads; they divide --dim.", at_least=1, at_most=100)
    dropout: float = option(0.0, "Share of values dropped in training.", at_least=0, below=1)
    schedule: Literal["alternate", "interleave"] = option(
        "alternate",
        "Batches of several data sets: in turn while each has any, or every one spread evenly over an epoch.",
    )
    lr: float = option(0.001, "Learning rate of AdamW.", above=0)
    epochs: int = option(60, "Passes over the training data at most; each is evaluated.", at_least=1)
    patience: int = option(
        15,
        "Stop after so many epochs without a lower loss of held-out data; 0: never. The best epoch is kept.",
        at_least=0,
    )
    columns: list[list[int]] = ((),)  # of every part, a class or a table, the widths of its columns; none for images
    part: int = 0  # which of them this detector predicts


class Multimodal(Detector):
    """The network above, over images and rows of several data sets.

    The feature bank keeps tokens: of a backbone's maps the values of all layers, brought to the grid of the first, or
    patches of pixels; rows as they are.

    Args:
        backbone, layers, image_size, precision, seed, options: see Detector; rows are computed in float32. The layer of
            patches of pixels is the image itself, and its cells are always drawn where they look.

    Raises:
        UsageError: options that contradict each other or do not fit the images.
    """

    Options = Options
    DATASET_DEFAULTS: ClassVar = {"batch_size": 8, "resize_mode": "square", "imagesize": 256, "train_val_split": 0.9}
    JOINT: ClassVar = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        own = self.options
        if own.dim % own.heads:
            raise UsageError(f"--dim {own.dim} must be a multiple of --heads {own.heads}")
        self.part = own.part
        self.columns = [list(widths) for widths in own.columns]
        if not own.part < len(self.columns):
            raise UsageError(f"no part {own.part} of {len(self.columns)}")
        for widths in self.columns:
            if not all(widths) or sum(widths) > MOST:
                raise UsageError(f"a table with {sum(widths)} values in a row: expected at most {MOST}")
        self.token_size = own.token_size if own.image_tokens == "pixels" else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            tokens = [TableTokens(widths, own.dim) if widths else self._image_tokens() for widths in self.columns]
            self.network = Network(tokens, own.dim, own.depth, own.heads, own.dropout)
        normal = torch.tensor([0.0, 1.0]).expand(len(self.columns), 2, 2)
        self.register_buffer("normal_scores", normal.clone())  # by part: mean and std of r and p

    @classmethod
    def backbones_of(
        cls, options: Mapping[str, Any], names: tuple[str, ...], layers: tuple[str, ...]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """As in Detector: patches of pixels and tables need none, which is the image itself."""
        if options["image_tokens"] == "pixels" and (names or layers):
            raise UsageError("--image_tokens pixels reads no backbone: leave out -b and -le")
        return (names, layers) if names or layers else ((PIXELS,), ("input",))

    @property
    def draws_aligned(self) -> bool:
        """Of maps of a backbone alone."""
        return self.options.align_maps and self.backbone.name != PIXELS

    def _image_tokens(self) -> ImageTokens:
        if self.token_size is None and self.backbone.name == PIXELS:
            raise UsageError("images need a backbone, such as -b wideresnet50 -le layer2, or --image_tokens pixels")
        infos = self.backbone.layer_info(self.layers, self.image_size)
        channels, grid = sum(info.channels for info in infos), infos[0].grid
        if self.token_size is not None:
            if any(side % self.token_size for side in self.image_size):
                raise UsageError(
                    f"--token_size {self.token_size} does not divide --imagesize {self.image_size[0]}: choose another"
                )
            channels *= self.token_size**2
            grid = tuple(side // self.token_size for side in self.image_size)
        if grid[0] * grid[1] > MOST:
            raise UsageError(
                f"{grid[0]} x {grid[1]} tokens of an image are more than {MOST}: read a deeper layer first, or choose "
                "a larger --token_size or a smaller --imagesize"
            )
        return ImageTokens(channels, grid, self.options.dim)

    @property
    def not_masked(self) -> str:
        """As in Detector: parts of one image stand in for those of another, wherever they are."""
        return "what was tampered with is told by whole images: crop them, or choose another detector"

    def for_part(self, part: int) -> "Multimodal":
        """As in Detector."""
        view = copy.copy(self)
        view.part = part
        return view

    def half(self) -> "Multimodal":
        """As in nn.Module, of the backbone alone: the Transformer is small, and its errors need more digits."""
        self.backbone.half()
        return self

    @property
    def is_table(self) -> bool:
        """Whether the part is a table."""
        return bool(self.columns[self.part])

    @property
    def input_shape(self) -> tuple[int, ...]:
        """As in Detector; of rows [F]."""
        return (sum(self.columns[self.part]),) if self.is_table else super().input_shape

    @property
    def feature_type(self) -> torch.dtype:
        """float32 for rows, whose digits count and whose batches are small."""
        return torch.float32 if self.is_table else self.precision

    def passes_of(self, has_held_out: bool) -> Passes:
        """One per epoch, before them one for the scale of the features; scores are of held-out samples, if any."""
        return Passes(before=1, settling=int(not has_held_out))

    def features(self, images: Tensor) -> Tensor:
        """Tokens [B, H1, W1, C] of images; rows [B, F] as they are."""
        if self.is_table:
            return images
        maps = self.backbone(images, self.layers)
        first, *others = maps
        if self.token_size is not None:
            return F.pixel_unshuffle(first, self.token_size).permute(0, 2, 3, 1)
        if self.alignment is not None:
            return torch.cat(resize_to_first(maps, self.alignment), dim=1).permute(0, 2, 3, 1)
        fitted = [resized(own.float(), first.shape[-2:]).to(first.dtype) for own in others]
        return torch.cat([first, *fitted], dim=1).permute(0, 2, 3, 1)

    def begin(self, *classes: Normal) -> None:
        """Learn the scale of the features."""
        for part, own in zip(self.network.parts, classes, strict=True):
            part.learn_scale(own.train)

    def trainer(self, *classes: Normal) -> "_Trainer":
        """As in Detector."""
        return _Trainer(self, [own.held_out for own in classes])

    def batches(self, *classes: Normal) -> Scheduled:
        """Of all parts, in the order of the schedule."""
        return Scheduled([own.train for own in classes], self.options.schedule)

    def forward(self, embeddings: Tensor) -> Prediction:
        """Scores and maps (4); of rows the errors (2) of their columns, [B, 1, n]."""
        errors, terms = self._errors_and_terms(embeddings)
        mean, std = self.normal_scores[self.part].unsqueeze(-1).unbind(1)
        terms = (terms - mean) / std
        maps = errors.unsqueeze(1)
        if not self.is_table:
            maps = self.drawn(errors.unflatten(1, self.network.parts[self.part].grid))
        return Prediction(terms.sum(dim=0), maps, dict(zip(TERMS, terms, strict=True)))

    def _errors_and_terms(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """e (2) [B, n], and r and p (3) [2, B]."""
        own = self.network.parts[self.part]
        errors, probabilities = self.network.evaluate(self.part, own.prepare(embeddings))
        counted = errors if self.is_table else errors.topk(min(TOP, errors.shape[1]), dim=1).values
        return errors, torch.stack([counted.mean(dim=1), probabilities])

    def settle(self, *classes: Normal) -> Mapping[str, float]:
        """Take mean and standard deviation of r and p over the held-out samples of a part; of those of training
        where there are none."""
        for part, (train, held_out) in enumerate(classes):
            own = self.for_part(part)
            with autocast(own.device, own.feature_type):
                terms = [own._errors_and_terms(batch)[1] for batch in (held_out if len(held_out) else train)]
            joined = torch.cat(terms, dim=1)
            std = joined.std(1, unbiased=False).clamp(min=LEAST_STD)
            self.normal_scores[part] = torch.stack([joined.mean(1), std], dim=1)
        return {}


class StepStats(NamedTuple):
    """The loss of a step, again under its modality; NaN under the other."""

    loss: Tensor
    image_loss: Tensor
    table_loss: Tensor


class _Trainer:
    """AdamW on a copy of the network, whose moving average is kept where its held-out loss is the lowest so far."""

    def __init__(self, detector: Multimodal, held_out: Sequence[Collection[Tensor]]) -> None:
        self.detector = detector
        self.held_out = held_out
        self.trained, self.averaged = copy.deepcopy(detector.network), copy.deepcopy(detector.network).eval()
        self.average = MovingAverage(self.averaged, self.trained, AVERAGE)
        self.optimizer = torch.optim.AdamW(
            self.trained.parameters(), lr=detector.options.lr, weight_decay=WEIGHT_DECAY, fused=True
        )
        self.scaler = gradient_scaler(detector.device, detector.precision)
        self.generator = torch.Generator().manual_seed(detector.seed)
        self.lowest = float("inf")
        self.waited = 0  # epochs since then

    def steps(self, batches: Iterable[tuple[int, Tensor]]) -> Iterator[StepStats]:
        """A step per batch of a part."""
        own, none = self.detector, torch.tensor(float("nan"), device=self.detector.device)
        self.trained.train()
        with seeded(own.device, int(torch.randint(2**62, (), generator=self.generator))):
            for part, batch in batches:
                loss = self._loss(self.trained, part, batch)
                learn(loss, [self.optimizer], own.for_part(part).feature_type, self.scaler)
                self.average.update()
                loss = loss.detach()
                yield StepStats(loss, none, loss) if own.columns[part] else StepStats(loss, loss, none)

    def end_pass(self) -> EndOfPass:
        """Keep the average if it is the best so far; without held-out samples the last is."""
        own, details = self.detector, {}
        if any(len(samples) for samples in self.held_out):
            details["held_out_loss"] = loss = self._held_out_loss()
            self.waited = 0 if loss < self.lowest else self.waited + 1
            self.lowest = min(loss, self.lowest)
        if not self.waited:
            own.network.load_state_dict(self.averaged.state_dict())
        return EndOfPass(details, finished=0 < own.options.patience <= self.waited)

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """L of held-out samples, the mean over the parts that have some; the same masks and copies every time."""
        losses = []
        with seeded(self.detector.device, self.detector.seed):
            for part, samples in enumerate(self.held_out):
                drawn = [self._loss(self.averaged, part, batch) for _ in range(DRAWS) for batch in samples]
                if drawn:
                    losses.append(torch.stack(drawn).mean())
        return torch.stack(losses).mean().item()

    def _loss(self, network: Network, part: int, batch: Tensor) -> Tensor:
        own = self.detector.for_part(part)
        with autocast(own.device, own.feature_type):
            return network.loss(part, network.parts[part].prepare(batch))

    def state_dict(self) -> dict[str, Any]:
        return {
            "trained": self.trained.state_dict(),
            "averaged": self.averaged.state_dict(),
            "averaged_steps": self.average.steps,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generator": self.generator.get_state(),
            "lowest": self.lowest,
            "waited": self.waited,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trained.load_state_dict(state["trained"])
        self.averaged.load_state_dict(state["averaged"])
        self.average.steps = state["averaged_steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state.get("scaler", {}))  # none of earlier versions
        self.generator.set_state(state["generator"])
        self.lowest, self.waited = state["lowest"], state["waited"]
