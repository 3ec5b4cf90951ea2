"""Which tiles of its images a detector is trained on."""

import click
import numpy as np
from numpy.typing import NDArray

from datasets import BatchLoader, ClassSamples, ImageDataset, Kept, spread
from experiment.dataset_config import DatasetConfig
from experiment.machine.progress import progress


def tiles_to_train_on(
    title: str, samples: ClassSamples, data: DatasetConfig, kept: Kept | None = None
) -> NDArray[np.bool_] | None:
    """Which tiles of every training image are trained on, [N, tiles]; None: all. Says how many are not.

    Empty are tiles whose grey values, without random changes, have a standard deviation below --skip_empty_tiles.

    Args:
        title: names the class in messages.
        samples, data: its images and how they are read.
        kept: images that were read before, for other features.

    Raises:
        DataError: an image that cannot be used.
    """
    tiling, least = data.tiling, data.skip_empty_tiles
    if not least or tiling.count == 1:
        return None
    loader = BatchLoader(ImageDataset(samples.train, data.test_transform), 1, data.num_workers, kept=kept)
    spreads = np.array(
        [
            [spread(tiling.cut(image, number)) for number in range(tiling.count)]
            for batch in progress(f"{title} tiles", loader)
            for image in batch.images
        ]
    )
    chosen = spreads >= least
    click.echo(
        f"{title}: {chosen.size - chosen.sum()} of {chosen.size} tiles to train on are empty and left out "
        f"(--skip_empty_tiles {least:g})",
        err=True,
    )
    return chosen
