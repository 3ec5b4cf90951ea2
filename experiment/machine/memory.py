"""When memory runs out: smaller batches where that helps, else one clear line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import torch
from torch import Tensor

from errors import DataError

ADVICE = "lower --batch_size or --imagesize, or choose another --feature_bank"
SIGNS = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "Insufficient memory", "Failed to allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the host has no memory left, be it PyTorch's or another library's."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)


@contextmanager
def one_line_when_full(advice: str = ADVICE) -> Iterator[None]:
    """Turn what is raised when memory runs out into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DataError(f"out of memory: {advice}") from error


class Halving:
    """A function of batches that takes them in halves, quarters and so on once one does not fit into memory.

    Args:
        function: of batches [B, ...], into [B, ...] or what else `join` makes one of.
        title: names what is done in the one warning.
        join: the results of parts into one.
        advice: to a user for whom a single item does not fit.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Any],
        title: str,
        join: Callable[[list[Any]], Any] = torch.cat,
        advice: str = ADVICE,
    ) -> None:
        self.function = function
        self.title = title
        self.join = join
        self.advice = advice
        self.size: int | None = None

    def __call__(self, batch: Tensor) -> Any:
        """The function's result.

        Raises:
            DataError: a single item does not fit.
        """
        while True:
            try:
                return self.join(list(map(self.function, batch.split(self.size or len(batch)))))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            tried = min(self.size or len(batch), len(batch))
            if tried == 1:
                raise DataError(f"out of memory at {self.title} of a single image: {self.advice}")
            if self.size is None:
                click.echo(f"Out of memory at {self.title} of {tried} images at once: going on with fewer", err=True)
            self.size = tried // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
