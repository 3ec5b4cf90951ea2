"""How flows learn: Adam down the negative log-likelihood, what FastFlow and MSFlow share."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detection import Detector, EndOfPass, autocast, gradient_scaler, learn


class StepStats(NamedTuple):
    """What one step says of itself."""

    loss: Tensor


class Trainer:
    """Adam on all that a detector learns, whose weight decay is added to gradients.

    Args:
        detector: what learns.
        loss: of a batch of its embeddings; a scalar.
        lr, weight_decay: of Adam.
        longest: the length that gradients are shortened to, all together; None leaves them.
        factor: what the rate is multiplied by in a pass, counted from 0.
    """

    def __init__(
        self,
        detector: Detector,
        loss: Callable[[Sequence[Tensor]], Tensor],
        lr: float,
        weight_decay: float = 0.0,
        longest: float | None = None,
        factor: Callable[[int], float] = lambda _: 1.0,
    ) -> None:
        self.detector = detector
        self.loss = loss
        self.longest = longest
        learned = list(detector.learned().values())
        self.optimizer = torch.optim.Adam(learned, lr=lr, weight_decay=weight_decay, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.scaler = gradient_scaler(detector.device, detector.precision)

    def steps(self, batches: Iterable[Sequence[Tensor]]) -> Iterator[StepStats]:
        """A step per batch of embeddings."""
        own = self.detector
        for batch in batches:
            with autocast(own.device, own.precision):
                loss = self.loss(batch)
            learn(loss, [self.optimizer], own.precision, self.scaler, self.longest)
            yield StepStats(loss.detach())

    def end_pass(self) -> EndOfPass:
        """Follow the schedule."""
        self.schedule.step()
        return EndOfPass()

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
