"""The loop of a detector's training: meta epochs that can be saved and taken up again."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from backbones.float32 import full_float32
from errors import DataError


class EpochStats(NamedTuple):
    """One meta epoch: its number from 1, the mean loss, and the means of what else the detector watches."""

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
    """Batches of training images' embeddings, in a new order at every pass."""

    def __iter__(self) -> Iterator[Tensor]:
        """A pass."""

    def pass_over(self) -> None:
        """Let a pass go by unread, so that those that follow stay the same."""


class Trainer(Protocol):
    """What makes the steps: optimisers, schedules and random state of one training run."""

    def steps(self, batches: Iterable[Tensor]) -> Iterator[NamedTuple]:
        """One pass, a step per batch of embeddings; of each its scalar tensors by name, one of them `loss`.

        NaN stands for what a step does not have.
        """

    def end_pass(self) -> EndOfPass:
        """Advance what moves once per pass."""

    def settle(self, is_evaluated: bool) -> None:
        """After a meta epoch, learn what predictions alone need, such as statistics of normal images, if any follow."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on but the detector's own state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what state_dict returned."""


class Training:
    """The meta epochs of a detector: iterating trains one after another and yields what each says of itself.

    Between two of them, the detector is in eval mode, and the state can be saved and taken up again in another process:
    on the same machine the epochs that follow are the same.

    Args:
        detector: what is trained; it says by train() and eval() what happens.
        trainer: makes the steps.
        embeddings: batches of what the detector embeds; iterated `passes` times in every meta epoch.
        meta_epochs, passes: how long.
        state: of an earlier Training of such a detector, to go on from.

    Attributes:
        eval_every: predictions are wanted after every so many meta epochs, and after the last.
    """

    def __init__(
        self,
        detector: nn.Module,
        trainer: Trainer,
        embeddings: Iterable[Tensor],
        meta_epochs: int,
        passes: int = 1,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.detector = detector
        self.trainer = trainer
        self.embeddings = embeddings
        self.meta_epochs = meta_epochs
        self.passes = passes
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
        return self.stopped or self.meta_epoch >= self.meta_epochs

    def __iter__(self) -> Iterator[EpochStats]:
        """The meta epochs that are left.

        Raises:
            DataError: the loss is not finite any more, found at the end of a pass.
        """
        while not self.finished:
            self.detector.train()
            steps: list[Any] = []
            for _ in range(self.passes):
                with plain_attention(self.detector.device):
                    steps.extend(self.trainer.steps(self.embeddings))
                _check_finite([stats.loss for stats in steps], self.meta_epoch + 1)
                end = self.trainer.end_pass()
            self.detector.eval()
            self.meta_epoch += 1
            self.stopped = end.finished
            self.trainer.settle(self.is_evaluated)
            means = [torch.stack(part).nanmean().item() for part in zip(*steps, strict=True)]
            values = {name: mean for name, mean in zip(steps[0]._fields, means, strict=True) if mean == mean}
            yield EpochStats(self.meta_epoch, values.pop("loss"), {**values, **end.details})

    def state_dict(self) -> dict[str, Any]:
        """All that the next meta epoch depends on but the embeddings' order: tensors, numbers, lists and dicts."""
        return {
            "meta_epoch": self.meta_epoch,
            "stopped": self.stopped,
            "detector": self.detector.state_dict(),
            "trainer": self.trainer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what state_dict returned."""
        self.meta_epoch, self.stopped = state["meta_epoch"], state["stopped"]
        self.detector.load_state_dict(state["detector"])
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
) -> None:
    """One step of every optimizer down the loss's gradient; fp16 makes none where a gradient is not finite.

    Args:
        loss: a scalar.
        optimizers: of what the loss depends on.
        precision: that the loss was computed in; another than fp16 needs no scale.
        scaler: of all steps in fp16; None is a fresh one.
    """
    optimizers = list(optimizers)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    if precision != torch.float16:
        with full_float32(loss.device) if precision == torch.float32 else nullcontext():
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return
    scaler = scaler or gradient_scaler(loss.device, precision)
    scaler.scale(loss).backward()
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()


def _check_finite(losses: Sequence[Tensor], meta_epoch: int) -> None:
    finite = torch.isfinite(torch.stack(losses))
    if not finite.all():
        step = int(finite.logical_not().nonzero()[0]) + 1
        raise DataError(
            f"training diverged: the loss is not finite from meta epoch {meta_epoch}, step {step} on; "
            "lower the learning rate or the noise, or look for extreme images"
        )
