"""What a detector says of whole images, from what it says of their tiles."""

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from datasets import Stitch, Tiling
from detection.prediction import Prediction


def predicted(predict: Callable[[Tensor], Prediction], images: Tensor, tiling: Tiling, size: int) -> Prediction:
    """Of images [B, ..., H, W], at least one, of which `size` tiles are predicted at once.

    Raises:
        ValueError: images of another size than that which is cut.
    """
    return Prediction.joined(list(stitched(map(predict, tiling.batches(images, size)), tiling)))


def stitched(tiles: Iterable[Prediction], tiling: Tiling) -> Iterator[Prediction]:
    """Predictions of images from those of their tiles, one after another.

    An image's score is the highest of its tiles', and the terms are those of that tile; its map is made by Stitch.

    Args:
        tiles: of all tiles of one image, then of the next, in batches of any size.
        tiling: how the images are cut.

    Returns:
        Of images that are not cut the batches as they come; else of one image at a time, its map on the CPU.
    """
    return iter(tiles) if tiling.count == 1 else _stitched(tiles, tiling)


def _stitched(tiles: Iterable[Prediction], tiling: Tiling) -> Iterator[Prediction]:
    """The same of images that are cut."""
    scored: list[Prediction] = []  # of the image that is under way, without maps
    stitch = None
    done = 0
    for batch in tiles:
        maps = None if batch.maps is None else batch.maps.cpu()
        start = 0
        while start < len(batch.scores):
            end = min(start + tiling.count - done, len(batch.scores))
            terms = {name: own[start:end] for name, own in batch.terms.items()}
            scored.append(Prediction(batch.scores[start:end], terms=terms))
            if maps is not None:
                stitch = stitch or Stitch(tiling)
                for number, own in enumerate(maps[start:end], start=done):
                    stitch.lay(number, own)
            done, start = done + end - start, end
            if done == tiling.count:
                whole = Prediction.joined(scored)
                highest = whole.scores.argmax().view(1)
                yield Prediction(
                    whole.scores[highest],
                    stitch and stitch.map[None],
                    {name: own[highest] for name, own in whole.terms.items()},
                )
                scored, stitch, done = [], None, 0
