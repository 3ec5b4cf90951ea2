"""Which images or rows are trained and tested on, and how they are read."""

import re
from collections.abc import Mapping, Set
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from datasets import AUGMENT, DATASETS, RANDOM, DatasetReader, ImageTransform, RandomTransform, Reading, Tiling
from errors import UsageError
from experiment.config import check_seed
from options import WIDEST, build, declared, option


@dataclass(frozen=True)
class DatasetConfig:
    """Images or rows of dataset NAME under DATA_PATH; options stand before NAME."""

    name: str = option(MISSING, "Of the dataset.", argument=True)
    data_path: Path | None = option(None, "Where it is.", argument=True)
    subdatasets: tuple[str, ...] = option((), "Class, repeatable; none: all classes found.", "--subdatasets", "-d")
    one_model: bool = option(
        False, "Train one model on the images of all classes together; thresholds and results are still of each class."
    )
    train_val_split: float = option(
        1.0, "Share of the training images that is trained on; the rest is held out.", above=0, at_most=1
    )
    shots: int | None = option(
        None, "Training images that are left of each class, drawn by --seed: few-shot results.", at_least=1, shown="all"
    )
    contamination: float = option(
        0.0,
        "Per cent of the training images whose places anomalous test images take, unknown to the detector; these leave "
        "the test set. Drawn by --seed.",
        at_least=0,
        at_most=100,
    )
    batch_size: int = option(2, "Images per step.", at_least=1)
    num_workers: int | None = option(
        None,
        "Processes that read images; 0 reads in the main one. auto: one per core, 16 at most.",
        at_least=0,
        at_most=1000,
        empty_word="auto",
        changes_results=False,
    )
    resize: int = option(
        256,
        "Pixels of the shorter side after resizing; not used by --resize_mode square.",
        at_least=1,
        at_most=WIDEST,
    )
    imagesize: int = option(224, "Side of the square that the network sees.", at_least=1, at_most=WIDEST)
    resize_mode: Literal["aspect", "square"] | None = option(
        None,  # where only its images say what suits a dataset
        "aspect: resize to --resize and crop the centre. square: resize both sides to --imagesize and crop nothing.",
        shown="what suits the dataset: aspect; square for those whose images are not square",
    )
    mask_of_interest: Path | None = option(
        None,
        "Mask of what is looked at, white on black, of the images' size or aspect: a file for all images, or a folder "
        "with one per image, by the images' names below DATA_PATH. What is outside is neither learned nor scored.",
        metavar="FILE|FOLDER",
        shown="all is looked at",
    )
    tile: str | None = option(
        None,
        "Cut every image, once it is resized, into tiles of this size in pixels, a number or WIDTHxHEIGHT; the network "
        "sees tiles.",
        metavar="SIZE[xSIZE]",
        shown="whole images",
    )
    overlap: float = option(
        0.0,
        "Share of its width and height that a tile has in common with the next one; maps are blended there.",
        at_least=0,
        below=1,
    )
    skip_empty_tiles: float = option(
        0.0,
        "Do not train on tiles whose grey values (0 to 255) have a standard deviation below this.",
        at_least=0,
        shown="0: on all",
    )
    reading: Reading = field(default_factory=Reading)
    random: RandomTransform = field(default_factory=RandomTransform)
    augment: bool = option(
        False,
        "Small random rotations, shifts, zooms and changes of light; see their flags.",
        group=RANDOM,
        presets={True: AUGMENT},
        changes_results=False,
    )
    options: Any = None  # of the dataset itself, see DatasetReader

    def __post_init__(self) -> None:
        for own in declared(type(self.options)) if self.options is not None else ():
            if own.name.endswith("seed"):
                check_seed(f"--{own.name}", getattr(self.options, own.name))
        if self.resize_mode is None and self.name in DATASETS:
            object.__setattr__(self, "resize_mode", DATASETS[self.name].resize_mode)
        if self.resize_mode == "aspect" and self.resize < self.imagesize:
            raise UsageError(
                f"--resize {self.resize} is smaller than --imagesize {self.imagesize}, the crop taken from it"
            )
        if self.tile is not None and not re.fullmatch("[1-9][0-9]{0,6}(x[1-9][0-9]{0,6})?", self.tile):
            raise UsageError(f"--tile {self.tile}: expected a size in pixels, such as 256 or 256x128 (width x height)")
        if max(self._tile) > self.imagesize:
            raise UsageError(
                f"--tile {self.tile} is larger than the images that it is cut from, of {self.imagesize} x "
                f"{self.imagesize} pixels: choose a smaller one, or a larger --imagesize"
            )
        if self.tiling.count > 1 and self.mask_of_interest is not None:
            raise UsageError(
                "--tile and --mask_of_interest do not go together, for a tile may have nothing of interest: crop the "
                "images to what is of interest, or leave one of them out"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any], given: Set[str]) -> "DatasetConfig":
        """The configuration that a command line's values stand for.

        Args:
            values: by the names of the options, those of all datasets among them.
            given: the names of those that the user gave.

        Raises:
            UsageError: an option of another dataset, or one without effect.
        """
        name = values["name"]
        for reader in DATASETS.values():
            own = [one.name for one in declared(type(reader.options))] if reader.options is not None else []
            foreign = [one for one in own if one in given and name != reader.name]
            if foreign:
                raise UsageError(f"--{foreign[0]} is an option of dataset {reader.name}, not of '{name}': leave it out")
            drawn = [one for one in own if one in given and reader.default_root is not None]
            if drawn and values["data_path"] is not None:
                raise UsageError(f"--{drawn[0]} says what to draw, but DATA_PATH is given: leave one of them out")
        base = DATASETS.get(name)
        options = None if base is None or base.options is None else build(type(base.options), values)
        return build(cls, values, options=options)

    def absolute(self) -> "DatasetConfig":
        """The same with paths that do not depend on the working directory."""
        own = {} if self.options is None else vars(self.options)
        paths = {name: value.absolute() for name, value in own.items() if isinstance(value, Path)}
        return replace(
            self,
            data_path=self.data_path and self.data_path.absolute(),
            mask_of_interest=self.mask_of_interest and self.mask_of_interest.absolute(),
            options=replace(self.options, **paths) if paths else self.options,
        )

    @property
    def is_drawn(self) -> bool:
        """Whether its training images are drawn by the seed."""
        return self.shots is not None or self.contamination > 0

    @property
    def reader(self) -> DatasetReader:
        """What reads the dataset of this name; KeyError where there is none."""
        base = DATASETS[self.name]
        return base if self.options is None else base.of(self.options)

    @property
    def _tile(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        width, *height = map(int, (self.tile or str(self.imagesize)).split("x"))
        return (*height, width)[0], width

    @property
    def tiling(self) -> Tiling:
        """How images are cut; without --tile into one tile, the whole image."""
        return Tiling((self.imagesize, self.imagesize), self._tile, self.overlap)

    @property
    def train_transform(self) -> ImageTransform:
        return ImageTransform(self.resize, self.imagesize, self.random, self.resize_mode, self.reading)

    @property
    def test_transform(self) -> ImageTransform:
        return replace(self.train_transform, random=RandomTransform())
