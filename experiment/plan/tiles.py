"""What is said of the size of images where the network sees their tiles."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from errors import UsageError
from experiment.dataset_config import DatasetConfig


@contextmanager
def in_words_of_tiles(datasets: Sequence[DatasetConfig]) -> Iterator[None]:
    """Let what is said of --imagesize be understood where the network sees tiles."""
    try:
        yield
    except UsageError as error:
        if not any(data.tile for data in datasets):
            raise
        raise UsageError(f"{error}; here the network sees tiles, whose size is --tile") from error
