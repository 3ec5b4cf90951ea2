"""What work costs: seconds, with all that a device still does, and the highest memory of host and device."""

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

T = TypeVar("T")
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


class Stopwatch:
    """Seconds of what is done in its contexts, all together.

    Args:
        device: whose work is waited for.
        seconds: that were counted before.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self.device = device
        self.seconds = seconds
        self._started = 0.0

    def __enter__(self) -> "Stopwatch":
        self._wait()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._wait()
        self.seconds += time.perf_counter() - self._started

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """The items, each made in this context."""
        iterator, end = iter(items), object()
        while True:
            with self:
                item = next(iterator, end)
            if item is end:
                return
            yield item

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Peak(NamedTuple):
    """The most bytes of host memory that this process had at once, and of its tensors on the device; None: unknown."""

    host: int | None = None
    device: int | None = None

    def __or__(self, other: "Peak") -> "Peak":
        """Of one thing after another."""
        known = ([one for one in both if one is not None] for both in zip(self, other, strict=True))
        return Peak(*(max(both, default=None) for both in known))


class PeakMemory:
    """The highest memory from when this is made; where the system does not say it anew, that of the host is not known.

    Args:
        device: whose memory counts beside the host's; a CPU has none of its own.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.knows_host = False
        with suppress(OSError):
            RESET.write_text("5")  # the peak, see proc(5)
            self.knows_host = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def so_far(self) -> Peak:
        """The peak."""
        host = None
        if self.knows_host:
            lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
            host = int(lines["VmHWM"].split()[0]) * 1024
        on_device = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        return Peak(host, on_device)
