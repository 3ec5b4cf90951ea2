"""Between the host's memory and a device: what is copied once, and what is copied while both go on."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from backbones.features import Features, each, parts

KEPT = 64  # tensors of each function; of one run there are a few
HOST = torch.device("cpu")


def kept_on_device(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a function of hashable arguments be called with a device before them; it is made and copied there once."""
    kept: dict[tuple[Any, ...], Tensor] = {}

    @wraps(make)
    def on(device: torch.device, *arguments: Any) -> Tensor:
        if (key := (device, *arguments)) in kept:
            return kept[key]
        with torch.inference_mode(False):  # what is made within can never be trained with
            tensor = make(*arguments) if device == HOST else on(HOST, *arguments).to(device)
        if type(tensor) is Tensor:  # one that holds nothing, as in a trace, is no other's
            if len(kept) >= KEPT:
                kept.clear()
            kept[key] = tensor
        return tensor

    return on


def is_on_processor(values: Tensor) -> bool:
    """Whether a processor computes this; a traced graph may run anywhere."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def takes_pinned(device: torch.device) -> bool:
    """Whether copies to a device go on beside the host's work; fake ones, without a GPU, have no such memory."""
    return device.type == "cuda" and torch.cuda.is_available()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; to a GPU through pinned memory, so that nobody waits for the copy."""
    if tensor.device.type != "cpu" or not takes_pinned(device):
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def sent_ahead(batches: Iterable[Features], device: torch.device) -> Iterator[Features]:
    """Batches of host memory on a GPU, each copied beside the work on the one before it."""
    beside = torch.cuda.Stream(device)
    arriving: tuple[Features, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(beside):
            following = each(partial(to_device, device=device), batch), beside.record_event()
        if arriving is not None:
            yield _arrived(*arriving)
        arriving = following
    if arriving is not None:
        yield _arrived(*arriving)


def _arrived(batch: Features, copied: torch.cuda.Event) -> Features:
    """A batch that work from here on waits for, and whose memory nothing else takes before that is done."""
    for tensor in parts(batch):
        own = torch.cuda.current_stream(tensor.device)
        own.wait_event(copied)
        tensor.record_stream(own)
    return batch
