"""model.json: what a trained model is, and all that rebuilds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch

import backbones
from datasets import ImageSizes, Reading, TableTransform, Tiling, digest_of, read_interest
from detection.decision import Thresholds
from detection.detector import Detector
from detection.precision import PRECISIONS
from errors import DataError, UsageError
from files import read_json, unreadable, write_text
from options import declared, is_of

FORMAT = 2
LARGEST = 2**16  # of whole numbers in a description that decide sizes
DESCRIPTION, WEIGHTS, MASK = "model.json", "checkpoint.safetensors", "mask_of_interest.png"
EACH = "each"  # image has a mask of interest of its own
UNSAID = {"bit_depth": 16, "oriented": False, "background": None}  # how images of older models were read


@dataclass(frozen=True)
class Description:
    """What model.json holds beside the format: every option that rebuilds the model, and what is known of it.

    Attributes:
        title, dataset, class_name: such as "mvtec_bottle", "mvtec" and "bottle".
        backbone: name, weights (pretrained, random or a file), seed, layers and normalisation.
        backbone_sha256: of the frozen backbone's weights; None where the checkpoint holds them.
        transform: resize, imagesize and resize_mode.
        reading: how image files become pixels, see datasets.Reading; of models that do not say it as they were trained.
        table: what a TableTransform is made of, where the model is of a table.
        options: keyword arguments of the detector.
        seed: of weights and noise.
        precision: that it was trained in, such as "bfloat16".
        thresholds: for decisions.
        map_range: lowest and highest pixel score of the test images; the ends of the colours in pictures. None of a
            detector that draws no maps.
        metrics: of the test images.
        detector: the command that trains such a model.
        checkpoint_sha256: of the checkpoint beside it; save fills it in.
        image_sizes: of the files that it was trained on; None of rows, and where older models do not say it.
        mask_of_interest: the SHA-256 of the one for all images, EACH where every image has its own; None where all of
            them is looked at.
        tiles: as described_tiles says; None where images are not cut.
        classes: all that the model was trained on together (--one_model), in order; None of a model of one class, and
            of a JOINT detector, whose options say it.
    """

    title: str
    dataset: str
    class_name: str
    backbone: dict[str, Any]
    backbone_sha256: str | None
    transform: dict[str, Any]
    options: dict[str, Any]
    seed: int
    precision: str
    thresholds: Thresholds
    map_range: tuple[float, float] | None
    metrics: dict[str, float | None]
    table: dict[str, Any] | None = None
    detector: str = "net"
    checkpoint_sha256: str = ""
    reading: dict[str, Any] = field(default_factory=lambda: dict(UNSAID))
    image_sizes: ImageSizes | None = None
    mask_of_interest: str | None = None
    tiles: dict[str, Any] | None = None
    classes: list[str] | None = None

    @property
    def keeps_mask(self) -> bool:
        """Whether a mask of interest lies beside it."""
        return self.mask_of_interest not in (None, EACH)

    def check_mask(self, folder: Path, given: Path | None) -> None:
        """See that masks of interest are given to the model in a folder if it needs them, and only then.

        Raises:
            UsageError: it is otherwise.
        """
        kind = self.mask_of_interest
        if kind == EACH and given is None:
            raise UsageError(
                f"'{folder}' was trained with a mask of interest per image: give --mask_of_interest FOLDER"
            )
        if kind != EACH and given is not None:
            own = "has its own, which is used" if kind else "was trained without one"
            raise UsageError(f"--mask_of_interest {given}: the model in '{folder}' {own}: leave it out")

    @property
    def tiling(self) -> Tiling:
        """How images are cut into what the detector sees."""
        whole = (self.transform["imagesize"],) * 2
        if self.tiles is None:
            return Tiling(whole, whole)
        return Tiling(whole, (self.tiles["height"], self.tiles["width"]), self.tiles["overlap"])

    @property
    def draws_maps(self) -> bool:
        """Whether there are anomaly maps."""
        return self.map_range is not None

    @property
    def dtype(self) -> torch.dtype:
        return {str(own).removeprefix("torch."): own for own in PRECISIONS.values()}[self.precision]


def described(reading: Reading) -> dict[str, Any]:
    """What a description says of a reading: all that images depend on."""
    return {name: value for name, value in asdict(reading).items() if name in UNSAID}


def kind_of_interest(path: Path) -> str:
    """What a description says of the mask of interest in a file, or of those in a folder."""
    return EACH if path.is_dir() else digest_of(read_interest(path))


def described_tiles(tiling: Tiling, skip_empty: float) -> dict[str, Any]:
    """What a description says of tiles: their width, height and overlap, and which were not trained on."""
    height, width = tiling.tile
    return {"width": width, "height": height, "overlap": tiling.overlap, "skip_empty_tiles": skip_empty}


def write_description(folder: Path, description: Description) -> None:
    """Write model.json into a folder that exists."""
    content = asdict(description)
    if description.mask_of_interest is None:
        del content["mask_of_interest"]
    write_text(folder / DESCRIPTION, json.dumps({"format": FORMAT, **content}, indent=2) + "\n")


def read_description(folder: Path, detectors: Mapping[str, type[Detector]]) -> Description:
    """What model.json says.

    Args:
        folder: of the model.
        detectors: what it may be a model of, by command.

    Raises:
        UsageError: no folder of a model; those below it are named.
        DataError: model.json is damaged, of another version, or of another detector.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        below = sorted(str(found.parent) for found in folder.glob(f"**/{DESCRIPTION}")) if folder.is_dir() else []
        found = f"; there are models in {', '.join(below)}" if below else ""
        raise UsageError(f"'{folder}' is not the folder of a model: expected {DESCRIPTION} and {WEIGHTS} in it{found}")
    kind = "a model's description"
    content = read_json(path, kind)
    try:
        version = content.pop("format")
        if version != FORMAT:
            raise DataError(f"'{path}' is of format {version}, and this version reads {FORMAT}: train the model again")
        content["backbone"].setdefault("normalisation", asdict(backbones.IMAGENET))  # of models older than it
        thresholds = Thresholds(**content["thresholds"])
        lists = {name: getattr(thresholds, name) for name in ("brightness", "scores", "tail")}
        content["thresholds"] = replace(thresholds, **{name: own and tuple(own) for name, own in lists.items()})
        content["map_range"] = content["map_range"] and tuple(content["map_range"])
        if (sizes := content.get("image_sizes")) is not None:
            content["image_sizes"] = ImageSizes.from_dict(sizes)
        description = Description(**content)
        if description.detector not in detectors:
            raise DataError(f"'{path}' is of detector {description.detector!r}, not of {' or '.join(detectors)}")
        own = detectors[description.detector]
        _check(description, own)
        return replace(description, options={**_newer_options(description, own), **description.options})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise unreadable(path, kind, error) from error


def _check(description: Description, kind: type[Detector]) -> None:
    """Types and bounds of what decides how much is computed; ValueError says what is wrong."""
    backbone, transform, thresholds = description.backbone, description.transform, description.thresholds
    backbones.Normalisation.from_dict(backbone["normalisation"])
    _check_options(description.options, kind.Options)
    if (classes := description.classes) is not None and (
        kind.JOINT or not is_of(classes, list[str]) or description.class_name not in classes or len(classes) > LARGEST
    ):
        raise ValueError(f"classes are {classes!r}")
    of_maps = [] if description.map_range is None else [thresholds.pixel, *description.map_range]
    claims: list[tuple[str, Any, Any]] = [
        *((name, transform[name], int) for name in ("resize", "imagesize")),
        *((name, getattr(thresholds, name), float) for name in ("image", "quantile")),
        *(("counts", value, int) for value in (thresholds.images, thresholds.above or 0, thresholds.unseen or 0)),
        *(("a score of pixels", value, float) for value in of_maps),
        *(("brightness", value, float) for value in thresholds.brightness or ()),
        *(("a normal score", value, float) for value in (*(thresholds.scores or ()), *(thresholds.tail or ()))),
        *(("layers", value, str) for value in backbone["layers"]),
        *((name, backbone[name], str) for name in ("name", "weights")),
        *(("seed", value, int) for value in (description.seed, backbone["seed"])),
    ]
    for name, value, kind in claims:
        if not is_of(value, kind, 2**63 if name in ("seed", "counts") else LARGEST):
            raise ValueError(f"{name} is {value!r}")
    if transform["resize_mode"] not in ("aspect", "square") or len(of_maps) not in (0, 3):
        raise ValueError(f"resize_mode is {transform['resize_mode']!r}, map_range {description.map_range}")
    if description.tiles is not None:
        _check_tiles(description.tiles)
    description.tiling  # noqa: B018 - ValueError where there is no such one
    reading = description.reading
    if (
        reading.keys() != UNSAID.keys()
        or not (
            is_of(reading["bit_depth"], int, 16) and reading["bit_depth"] >= 8 and is_of(reading["oriented"], bool, 0)
        )
        or reading["background"] not in (None, "black")
    ):
        raise ValueError(f"reading is {reading}")
    if description.mask_of_interest is not None and not is_of(description.mask_of_interest, str):
        raise ValueError(f"mask_of_interest is {description.mask_of_interest!r}")
    if thresholds.brightness is not None and len(thresholds.brightness) != 4:
        raise ValueError(f"brightness is {thresholds.brightness}")
    above, unseen = thresholds.above, thresholds.unseen
    if (above is None) != (unseen is None) or (above or 0) > (unseen or 0):
        raise ValueError(f"{above} above, of {unseen} unseen")
    if not _are_scores(thresholds):
        raise ValueError("scores and tail are not those of normal images")
    if not of_maps and thresholds.pixel is not None:
        raise ValueError(f"map_range is None, and a pixel's threshold {thresholds.pixel}")
    if description.table is not None:
        widths, part = TableTransform.from_dict(description.table).widths, description.options["part"]
        if widths != description.options["columns"][part]:
            raise ValueError(f"its table has columns of widths {widths}, its model of others")
    description.dtype  # noqa: B018 - KeyError where there is no such precision


def _check_tiles(tiles: Mapping[str, Any]) -> None:
    kinds = {"width": int, "height": int, "overlap": float, "skip_empty_tiles": float}
    if tiles.keys() != kinds.keys() or not all(is_of(tiles[name], kind, LARGEST) for name, kind in kinds.items()):
        raise ValueError(f"tiles is {tiles}")


def _are_scores(thresholds: Thresholds) -> bool:
    """Whether what is kept of normal scores, finite numbers, is ascending and a tail of theirs, or not kept at all."""
    scores, tail = thresholds.scores, thresholds.tail
    if scores is None:
        return tail is None
    is_kept = 0 < len(scores) <= min(thresholds.images, LARGEST) and list(scores) == sorted(scores)
    if tail is None or not is_kept:
        return is_kept
    return len(tail) == 3 and tail[0] <= scores[-1] and tail[1] > 0 and 0 <= tail[2] < 1


def _check_options(options: Mapping[str, Any], kind: type) -> None:
    """See that what a description says of a detector's options are values of theirs; ValueError says what is wrong."""
    types, flags = get_type_hints(kind), {own.name: own for own in declared(kind)}
    if unknown := [name for name in options if name not in types]:
        raise ValueError(f"it holds options that do not exist: {', '.join(unknown)}")
    for name, value in options.items():
        is_one = flags[name].is_one(value) if name in flags else is_of(value, types[name], LARGEST)
        if not is_one or (isinstance(value, int) and value > LARGEST):
            raise ValueError(f"{name} is {value!r}")


def _newer_options(description: Description, kind: type[Detector]) -> dict[str, Any]:
    """What options that a description lacks, since its model is older than they are, were before there were any."""
    idle = {own.name for own in declared(kind.Options) if not own.option.changes_results}
    own = (one for one in fields(kind.Options) if one.name not in {*description.options, *idle})
    return {one.name: kind.BEFORE.get(one.name, one.default) for one in own}
