"""When memory runs out: smaller batches where that helps, else one clear line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
import torch
from torch import Tensor

from errors import DataError

ADVICE = "lower --batch_size or --imagesize, or choose another --feature_bank"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the host has no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def one_line_when_full() -> Iterator[None]:
    """Turn what PyTorch raises when memory runs out into a DataError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DataError(f"out of memory: {ADVICE}") from error


class Halving:
    """A function of batches that takes them in halves, quarters and so on once one does not fit into memory.

    Args:
        function: of batches [B, ...], into [B, ...].
        title: names what is done in the one warning.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], title: str) -> None:
        self.function = function
        self.title = title
        self.size: int | None = None

    def __call__(self, batch: Tensor) -> Tensor:
        """The function's result.

        Raises:
            DataError: a single item does not fit.
        """
        while True:
            try:
                return torch.cat([self.function(part) for part in batch.split(self.size or len(batch))])
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            tried = min(self.size or len(batch), len(batch))
            if tried == 1:
                raise DataError(f"out of memory at {self.title} of a single image: {ADVICE}")
            if self.size is None:
                click.echo(f"Out of memory at {self.title} of {tried} images at once: going on with fewer", err=True)
            self.size = tried // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
