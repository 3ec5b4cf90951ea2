"""The mask of interest of an image that is predicted: the model's own, or one of a folder."""

from pathlib import Path

from datasets import InterestMasks, read_interest
from datasets.interest import Interest
from detection import TrainedModel
from detection.description import EACH, MASK
from errors import DataError
from experiment.use.inputs import Item, MaskOf


def masks_for(model: TrainedModel, folder: Path, path: Path | None) -> MaskOf | None:
    """What gives the masks of images to a model in a folder; None of one that looks at all of them.

    Raises:
        UsageError: a path where the model wants none, or none where it does.
        DataError: as InterestMasks.at.
    """
    kind = model.description.mask_of_interest
    model.description.check_mask(folder, path)
    if kind != EACH:
        return None if kind is None else lambda _: (model.mask, folder / MASK)
    masks = InterestMasks.at(path)

    def of(item: Item) -> tuple[Interest, Path]:
        found = masks.of(item.relative)
        if found is None:
            raise masks.missing([item.path], item.relative)
        if masks.by_name is not None and item.name != item.relative.with_suffix(""):
            raise DataError(f"'{item.path}' has the name of another image, so that '{found}' would be the mask of both")
        return read_interest(found), found

    return of
