"""Single tiles of images from disk, for passes that take them in any order."""

from collections.abc import Sequence

from torch import Tensor

from datasets.images import ImageDataset
from datasets.sample import Sample
from datasets.tiles import Tiling
from datasets.transforms import ImageTransform


class TileDataset(ImageDataset):
    """Tiles as (image, mask) pairs; every one reads its whole image.

    Args:
        samples, transform: see ImageDataset; the transform is of whole images.
        tiling: how they are cut.
        chosen: the places of the tiles among those of all images.
    """

    def __init__(
        self, samples: Sequence[Sample], transform: ImageTransform, tiling: Tiling, chosen: Sequence[int]
    ) -> None:
        super().__init__(samples, transform)
        self.tiling = tiling
        self.chosen = chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """The pixels, uint8 [3, h, w], and mask [h, w] of a tile, the one at this index of those chosen.

        Raises:
            DataError: as ImageDataset.
        """
        image, number = divmod(int(self.chosen[index]), self.tiling.count)
        return tuple(self.tiling.cut(own, number) for own in super().read(image))
