"""What is said of maps, images or weights where there are none is refused: who gives a flag expects something of it."""

import backbones
from detection import TrainedModel
from errors import UsageError
from experiment.model_config import OF_IMAGES, PredictConfig


def refuse_unused(config: PredictConfig) -> None:
    """Refuse what is said of maps that are not written, of regions that are not looked for, or of many images at once.

    Raises:
        UsageError: it is.
    """
    if config.watch is not None:
        _refuse_beside_watch(config)
    chosen = config.map or OF_IMAGES["map"]
    if config.raw_format is not None and chosen not in ("raw", "both"):
        raise UsageError(f"--raw_format is of raw maps, and --map {chosen} writes none: give --map raw or both")
    if config.full_size and chosen == "none":
        raise UsageError("--full_size is of maps, and --map none writes none: leave one of them out")
    if not config.regions and (given := _of_regions(config)):
        raise UsageError(f"{', '.join(given)} is of regions: give --regions too, or leave it out")


def _refuse_beside_watch(config: PredictConfig) -> None:
    if config.paths:
        raise UsageError(f"--watch stands in the place of PATH: leave out it or '{config.paths[0]}'")
    if given := [f"--{name}" for name in ("batch_size", "num_workers") if getattr(config, name) is not None]:
        raise UsageError(f"{' and '.join(given)} is of many images, and --watch scores each as it comes: leave it out")
    if config.contours == "coco":
        raise UsageError("--contours coco is one file of all images, and --watch knows no last one: give geojson")


def _of_regions(config: PredictConfig) -> list[str]:
    """What is said of regions but that they are wanted."""
    names = ("min_area", "pixel_threshold", "region_masks", "contours")
    return [f"--{name}" for name in names if getattr(config, name) not in (None, False)]


def refuse_of_images(config: PredictConfig) -> None:
    """Refuse what is said of images where a table's model predicts rows.

    Raises:
        UsageError: something is.
    """
    given = [
        name
        for name in (*OF_IMAGES, "max_pixels", "watch", "stream", "mask_of_interest")
        if getattr(config, name) is not None
    ]
    given += [name for name in ("full_size", "regions", "latency", "warm_up") if getattr(config, name)]
    if given:
        flags = ", ".join(f"--{name}" for name in given)
        raise UsageError(f"'{config.model_dir}' is a model of a table, and {flags} is of images: leave it out")


def refuse_of_maps(config: PredictConfig) -> None:
    """Refuse what is said of maps where a model draws none; pictures are drawn without.

    Raises:
        UsageError: something is.
    """
    given = [f"--map {config.map}"] * (config.map in ("raw", "both")) + ["--full_size"] * config.full_size
    given += ["--regions"] * config.regions
    if given:
        raise UsageError(f"'{config.model_dir}' draws no maps, and {' and '.join(given)} asks for some: leave it out")


def refuse_unused_weights(model: TrainedModel, backbone_weights: str | None) -> None:
    """Refuse a file with a backbone's weights for a model that needs none.

    Raises:
        UsageError: there is one.
    """
    if backbone_weights is None:
        return
    if model.description.backbone_sha256 is None:
        raise UsageError("--backbone_weights: the model holds those of its backbone, which was trained: leave it out")
    if model.description.backbone["name"] == backbones.PIXELS:
        raise UsageError("--backbone_weights: the model has no backbone: leave it out")
