"""The loop of a detector's training: meta epochs that can be saved and taken up again."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from backbones import Features
from backbones.float32 import full_float32
from errors import DataError


class EpochStats(NamedTuple):
    """One meta epoch: its number from 1, the mean loss (NaN without steps), and what else the detector says of it."""

    meta_epoch: int
    loss: float
    details: dict[str, float]

    @property
    def row(self) -> dict[str, float]:
        """Number, loss and details side by side."""
        return {"meta_epoch": self.meta_epoch, "loss": self.loss, **self.details}


class EndOfPass(NamedTuple):
    """What a trainer found after a pass: values to watch by name, and whether more passes would not help."""

    details: Mapping[str, float] = MappingProxyType({})
    finished: bool = False


class Batches(Protocol):
    """Batches of training samples' embeddings, in a new order at every pass."""

    def __len__(self) -> int:
        """Of a pass."""

    def __iter__(self) -> Iterator[Features]:
        """A pass."""

    def pass_over(self) -> None:
        """Let a pass go by unread, so that those that follow stay the same."""


class Normal(NamedTuple):
    """Embeddings of a class's normal samples in batches: of those to train on, and of those that are held out."""

    train: Batches
    held_out: Collection[Features] = ()


class Mapped:
    """A function's results over batches that can be iterated more than once, as many as these are."""

    def __init__(self, function: Callable[[Any], Features], batches: Iterable[Any]) -> None:
        self.function = function
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Features]:
        return map(self.function, self.batches)

    def pass_over(self) -> None:
        """As of Batches, where these are some."""
        self.batches.pass_over()


class Passes(NamedTuple):
    """How often training goes over the training samples of a class.

    Attributes:
        before: in all, to begin.
        steps: in every meta epoch, to make steps; 0 where there are none.
        settling: after every meta epoch, to settle.
    """

    before: int = 0
    steps: int = 1
    settling: int = 0

    def after(self, meta_epochs: int) -> int:
        """How often in all by then."""
        return self.before + meta_epochs * (self.steps + self.settling)


class Trainer(Protocol):
    """What makes the steps: optimisers, schedules and random state of one training run."""

    def steps(self, batches: Iterable[Any]) -> Iterator[NamedTuple]:
        """One pass over Detector.batches; of each step its scalar tensors by name, one of them `loss`.

        NaN stands for what a step does not have.
        """

    def end_pass(self) -> EndOfPass:
        """Advance what moves once per pass."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on but the detector's own state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what state_dict returned."""


class Training:
    """The meta epochs of a detector: iterating trains one after another and yields what each says of itself.

    Between two of them, the detector is in eval mode, and the state can be saved and taken up again in another process:
    on the same machine the epochs that follow are the same. How often predictions are wanted changes no step: where the
    detector need not settle, the passes that it would have made go by unread.

    Args:
        detector: what is trained, a Detector.
        classes: of each what it learns from.
        state: of an earlier Training of such a detector, to go on from; without one the detector has begun.

    Attributes:
        eval_every: predictions are wanted after every so many meta epochs, and after the last.
    """

    def __init__(self, detector: nn.Module, classes: Sequence[Normal], state: dict[str, Any] | None = None) -> None:
        self.detector = detector
        self.classes = classes
        self.passes = [detector.passes_of(len(own.held_out) > 0) for own in classes]
        self.trainer: Trainer | None = detector.trainer(*classes) if self.passes[0].steps else None
        self.meta_epoch = 0
        self.stopped = False
        self.eval_every = 1
        if state is not None:
            self.load_state_dict(state)

    @property
    def is_evaluated(self) -> bool:
        """Whether the detector may predict after the last meta epoch that was done."""
        return self.finished or self.meta_epoch % self.eval_every == 0

    @property
    def finished(self) -> bool:
        """Whether no meta epochs are left."""
        return self.stopped or self.meta_epoch >= self.detector.meta_epochs

    def __iter__(self) -> Iterator[EpochStats]:
        """The meta epochs that are left.

        Raises:
            DataError: the loss is not finite any more, found at the end of a pass.
        """
        while not self.finished:
            values = {} if self.trainer is None else self._make_steps(self.trainer)
            self.detector.eval()
            self.meta_epoch += 1
            values |= self._settle()
            yield EpochStats(self.meta_epoch, values.pop("loss", math.nan), values)

    def _make_steps(self, trainer: Trainer) -> dict[str, float]:
        """The passes of a meta epoch; the means of what their steps watch, and what the last pass found."""
        self.detector.train()
        steps: list[Any] = []
        for _ in range(self.passes[0].steps):
            with plain_attention(self.detector.device):
                steps.extend(trainer.steps(self.detector.batches(*self.classes)))
            _check_finite([stats.loss for stats in steps], self.meta_epoch + 1)
            end = trainer.end_pass()
        self.stopped = end.finished
        means = [torch.stack(part).nanmean().item() for part in zip(*steps, strict=True)]
        known = {name: mean for name, mean in zip(steps[0]._fields, means, strict=True) if mean == mean}
        return {**known, **end.details}

    @torch.no_grad()
    def _settle(self) -> Mapping[str, float]:
        if self.is_evaluated:
            return self.detector.settle(*self.classes)
        for own, passes in zip(self.classes, self.passes, strict=True):
            for _ in range(passes.settling):
                own.train.pass_over()
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that the next meta epoch depends on but the embeddings' order: tensors, numbers, lists and dicts."""
        return {
            "meta_epoch": self.meta_epoch,
            "stopped": self.stopped,
            "detector": self.detector.state_dict(),
            "trainer": {} if self.trainer is None else self.trainer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what state_dict returned."""
        self.meta_epoch, self.stopped = state["meta_epoch"], state["stopped"]
        self.detector.load_state_dict(state["detector"])
        if self.trainer is not None:
            self.trainer.load_state_dict(state["trainer"])
        self.detector.eval()


class MovingAverage:
    """Exponential moving average of networks while others like them are trained (Polyak and Juditsky 1992).

    Weights and BatchNorm's running statistics are averaged alike, so that they fit each other. The decay grows as
    n / (n + 9) over the first n steps, or the average would remember weights from before training.

    Args:
        averaged: the networks that become the average.
        trained: the networks that are trained, with the same initial weights.
        decay: what the average keeps of itself at every step (`--ema`).
    """

    def __init__(self, averaged: nn.Module, trained: nn.Module, decay: float) -> None:
        self.averaged, self.trained = (
            [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
            for network in (averaged, trained)
        )
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the trained networks as they are now."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 9))
        torch._foreach_lerp_(self.averaged, self.trained, 1 - decay)


def plain_attention(device: torch.device) -> AbstractContextManager[None]:
    """Attention whose gradients are the same every time.

    Those of CUDA's fast kernels are added up in any order, of which PyTorch only warns where other operations may.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else nullcontext()


def gradient_scaler(device: torch.device, precision: torch.dtype) -> torch.amp.GradScaler:
    """What keeps gradients of fp16 above its smallest number (Micikevicius et al., Mixed precision training, 2018).

    Its scale grows while gradients are finite, and halves where they are not; that is part of a training's state. Of
    other precisions it does nothing, and its state is empty.
    """
    return torch.amp.GradScaler(device.type, enabled=precision == torch.float16)


def learn(
    loss: Tensor,
    optimizers: Iterable[torch.optim.Optimizer],
    precision: torch.dtype,
    scaler: torch.amp.GradScaler | None = None,
    longest: float | None = None,
) -> None:
    """One step of every optimizer down the loss's gradient; fp16 makes none where a gradient is not finite.

    Args:
        loss: a scalar.
        optimizers: of what the loss depends on.
        precision: that the loss was computed in; another than fp16 needs no scale.
        scaler: of all steps in fp16; None is a fresh one.
        longest: the length that gradients are shortened to, all together; None leaves them.
    """
    optimizers = list(optimizers)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    if precision != torch.float16:
        with full_float32(loss.device) if precision == torch.float32 else nullcontext():
            loss.backward()
        _shorten(optimizers, longest)
        for optimizer in optimizers:
            optimizer.step()
        return
    scaler = scaler or gradient_scaler(loss.device, precision)
    scaler.scale(loss).backward()
    if longest is not None:
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        _shorten(optimizers, longest)
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()


def _shorten(optimizers: Iterable[torch.optim.Optimizer], longest: float | None) -> None:
    if longest is not None:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        nn.utils.clip_grad_norm_([weight for group in groups for weight in group["params"]], longest)


def _check_finite(losses: Sequence[Tensor], meta_epoch: int) -> None:
    finite = torch.isfinite(torch.stack(losses))
    if not finite.all():
        step = int(finite.logical_not().nonzero()[0]) + 1
        raise DataError(
            f"training diverged: the loss is not finite from meta epoch {meta_epoch}, step {step} on; "
            "lower the learning rate or the noise, or look for extreme images"
        )
