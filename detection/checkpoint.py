"""A trained model on disk: checkpoint.safetensors, and model.json with all that is needed to rebuild and use it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

import backbones
from datasets import ImageTransform, Reading, TableTransform, read_image, read_table, refuse_video
from detection.detector import Detector, Prediction
from detection.precision import PRECISIONS
from errors import DataError, UsageError
from files import read_json, unreadable, write_bytes, write_text
from late import pandas as pd
from options import declared, is_of

FORMAT = 2
LARGEST = 2**16  # of whole numbers in a description that decide sizes
WEIGHTS, DESCRIPTION = "checkpoint.safetensors", "model.json"
BATCH = 8  # images scored at once where nobody says otherwise
ROWS = 256  # of a table
UNSAID = {"bit_depth": 16, "oriented": False, "background": None}  # how images of older models were read


@dataclass(frozen=True)
class Thresholds:
    """Scores above which an image or a pixel is called anomalous, and where they come from.

    Attributes:
        image, pixel: the scores.
        quantile: the share of normal images, and of their pixels, that stays at or below them.
        source: "held-out normal images" or "training images"; of a table rows.
        images: how many of them.
    """

    image: float
    pixel: float
    quantile: float
    source: str
    images: int


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
        map_range: lowest and highest pixel score of the test images; the ends of the colours in pictures.
        metrics: of the test images.
        detector: the command that trains such a model.
        checkpoint_sha256: of the checkpoint beside it; save fills it in.
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
    map_range: tuple[float, float]
    metrics: dict[str, float | None]
    table: dict[str, Any] | None = None
    detector: str = "net"
    checkpoint_sha256: str = ""
    reading: dict[str, Any] = field(default_factory=lambda: dict(UNSAID))

    @property
    def dtype(self) -> torch.dtype:
        return {str(own).removeprefix("torch."): own for own in PRECISIONS.values()}[self.precision]


@dataclass(frozen=True)
class TrainedModel:
    """A detector that was trained, with the transform and the thresholds that belong to it."""

    detector: Detector
    transform: ImageTransform
    description: Description

    @property
    def thresholds(self) -> Thresholds:
        return self.description.thresholds

    @cached_property
    def table(self) -> TableTransform | None:
        """What encodes rows, where the model is of a table."""
        return self.description.table and TableTransform.from_dict(self.description.table)

    def predict(
        self,
        images: Tensor | NDArray[np.uint8] | pd.DataFrame | str | Path | Sequence[str | Path | NDArray[np.uint8]],
    ) -> Prediction:
        """Image scores and anomaly maps.

        Args:
            images: a normalised float32 tensor [B, 3, H, W] of the model's size; RGB pixels [H, W, 3] or [B, H, W, 3]
                of any size, uint8; the path of an image; or several paths or pixels [H, W, 3], each of its own size.
                Of a table encoded rows [B, F], a frame, or the path of a file.

        Returns:
            Scores [B] and maps [B, H, W] of the model's size, higher is more anomalous; of a table's n columns
            [B, 1, n].

        Raises:
            ValueError: a tensor or array of another shape or type, something else, or nothing to predict.
            DataError: an image or table that cannot be read.
        """
        if isinstance(images, Tensor):
            return self.detector.predict(images)
        tensors = self._tensors(images) if self.table is None else self._rows(images)
        batches = tensors.split(BATCH if self.table is None else ROWS)
        scores, maps = zip(*(self.detector.predict(batch) for batch in batches), strict=True)
        return Prediction(torch.cat(scores), torch.cat(maps))

    def _rows(self, table: pd.DataFrame | str | Path) -> Tensor:
        if isinstance(table, pd.DataFrame):
            return torch.from_numpy(self.table.encode(table, "the table"))
        if not isinstance(table, str | Path):
            raise ValueError("expected a frame or the path of a table")
        return torch.from_numpy(self.table.encode(read_table(Path(table)), str(table)))

    def _tensors(self, images: NDArray[np.uint8] | str | Path | Sequence[str | Path | NDArray[np.uint8]]) -> Tensor:
        is_one = isinstance(images, np.ndarray) and images.dtype.kind not in "OU" and images.ndim != 4
        if isinstance(images, str | Path) or is_one:
            images = [images]
        if not isinstance(images, Iterable) or hasattr(images, "keys"):
            raise ValueError(f"expected images or their paths, not {type(images).__name__}")
        pictures = [_picture(one, self.transform.reading) for one in images]
        if not pictures:
            raise ValueError("no images to predict")
        return torch.stack([self.transform.image(picture) for picture in pictures])


def described(reading: Reading) -> dict[str, Any]:
    """What a description says of a reading: all that images depend on."""
    return {name: value for name, value in asdict(reading).items() if name in UNSAID}


def _picture(image: str | Path | NDArray[np.uint8], reading: Reading) -> Image.Image:
    """An image of a path, or of pixels [H, W, 3]."""
    if isinstance(image, str | Path):
        refuse_video(Path(image))
        return read_image(Path(image), reading)
    if not isinstance(image, np.ndarray):
        raise ValueError(f"expected uint8 pixels [H, W, 3] or the path of an image, not {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        shape = list(image.shape)
        raise ValueError(f"expected uint8 [H, W, 3], several of them or [B, H, W, 3], not {image.dtype} {shape}")
    return Image.fromarray(image)


def save(folder: Path, detector: Detector, description: Description) -> None:
    """Write a model into a folder that exists."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in detector.state_dict().items()}
    weights = write_tensors(tensors)
    write_bytes(folder / WEIGHTS, weights)
    description = replace(description, checkpoint_sha256=hashlib.sha256(weights).hexdigest())
    written = {"format": FORMAT, **asdict(description)}
    write_text(folder / DESCRIPTION, json.dumps(written, indent=2) + "\n")


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
        content["thresholds"] = Thresholds(**content["thresholds"])
        content["map_range"] = tuple(content["map_range"])
        description = Description(**content)
        if description.detector not in detectors:
            raise DataError(f"'{path}' is of detector {description.detector!r}, not of {' or '.join(detectors)}")
        own = detectors[description.detector]
        _check(description, own)
        return replace(description, options={**_newer_options(description, own), **description.options})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise unreadable(path, kind, error) from error


def load(
    detectors: Mapping[str, type[Detector]],
    folder: str | Path,
    device: torch.device | str = "cpu",
    backbone_weights: str | None = None,
) -> TrainedModel:
    """Read a trained model.

    Args:
        detectors: what it may be a model of, by command.
        folder: models/0/DATASET_CLASS of a run.
        device: where to compute.
        backbone_weights: a file to read the backbone from instead of where training read it from.

    Raises:
        UsageError: no folder of a model, or a backbone that does not exist any more.
        DataError: files that are missing, damaged, of another version or detector, or a backbone whose weights are not
            those that the model was trained with.
    """
    folder = Path(folder)
    description = read_description(folder, detectors)
    kind, backbone = detectors[description.detector], description.backbone
    held = "random" if description.backbone_sha256 is None else None  # the checkpoint holds the backbone's weights
    weights = backbone_weights or held or backbone["weights"]
    transform = ImageTransform(**description.transform, reading=Reading(**description.reading))
    tensors = _read_weights(folder / WEIGHTS, description.checkpoint_sha256)
    layers, size = backbone["layers"], (transform.imagesize, transform.imagesize)
    normalisation = backbones.Normalisation.from_dict(backbone["normalisation"])
    extractor = backbones.load(backbone["name"], weights, backbone["seed"], normalisation)
    counts = {name: description.options.get(name, 0) for name in _counts(kind)}
    if max(counts.values(), default=0) > len(tensors):
        raise DataError(f"'{folder / WEIGHTS}' does not fit '{folder / DESCRIPTION}': it holds too little for {counts}")
    with backbones.shapes_only():  # nothing of the size that the description claims is made before it proves right
        _check_shapes(folder, kind(extractor, layers, size, **description.options), tensors)
    detector = kind(
        extractor, layers, size, seed=description.seed, precision=description.dtype, **description.options
    ).to(device)
    _fill(detector, folder, description, tensors)
    return TrainedModel(detector, transform, description)


def _counts(kind: type[Detector]) -> list[str]:
    """The options that number parts with weights of their own."""
    return [own.name for own in declared(kind.Options) if own.option.counts]


def restore(detector: Detector, folder: Path, description: Description) -> None:
    """Fill a detector that was built as the folder's description says with the weights of the checkpoint.

    Raises:
        DataError: as load.
    """
    _fill(detector, folder, description, _read_weights(folder / WEIGHTS, description.checkpoint_sha256))


def _fill(detector: Detector, folder: Path, description: Description, tensors: dict[str, Tensor]) -> None:
    try:
        detector.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(f"'{folder / WEIGHTS}' does not fit '{folder / DESCRIPTION}': {error}") from error
    detector.eval()
    if description.backbone_sha256 != backbone_digest(detector):
        raise DataError(
            f"the weights of backbone '{detector.backbone.name}' ({detector.backbone.weights}) are not those that "
            f"'{folder}' was trained with: give the file of those with --backbone_weights"
        )


def _check(description: Description, kind: type[Detector]) -> None:
    """Types and bounds of what decides how much is computed; ValueError says what is wrong."""
    backbone, transform, thresholds = description.backbone, description.transform, description.thresholds
    backbones.Normalisation.from_dict(backbone["normalisation"])
    _check_options(description.options, kind.Options)
    claims: list[tuple[str, Any, Any]] = [
        *((name, transform[name], int) for name in ("resize", "imagesize")),
        *((name, value, float) for name, value in asdict(thresholds).items() if name not in ("source", "images")),
        *(("map_range", value, float) for value in description.map_range),
        *(("layers", value, str) for value in backbone["layers"]),
        *((name, backbone[name], str) for name in ("name", "weights")),
        *(("seed", value, int) for value in (description.seed, backbone["seed"])),
    ]
    for name, value, kind in claims:
        if not is_of(value, kind, 2**63 if name == "seed" else LARGEST):
            raise ValueError(f"{name} is {value!r}")
    if transform["resize_mode"] not in ("aspect", "square") or len(description.map_range) != 2:
        raise ValueError(f"resize_mode is {transform['resize_mode']!r}, map_range {description.map_range}")
    reading = description.reading
    if (
        reading.keys() != UNSAID.keys()
        or not (
            is_of(reading["bit_depth"], int, 16) and reading["bit_depth"] >= 8 and is_of(reading["oriented"], bool, 0)
        )
        or reading["background"] not in (None, "black")
    ):
        raise ValueError(f"reading is {reading}")
    if description.table is not None:
        widths, part = TableTransform.from_dict(description.table).widths, description.options["part"]
        if widths != description.options["columns"][part]:
            raise ValueError(f"its table has columns of widths {widths}, its model of others")
    description.dtype  # noqa: B018 - KeyError where there is no such precision


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
    """The defaults of options that a description lacks since its model is older than they are."""
    idle = {own.name for own in declared(kind.Options) if not own.option.changes_results}
    own = (one for one in fields(kind.Options) if one.name not in {*description.options, *idle})
    return {one.name: one.default for one in own}


def _check_shapes(folder: Path, planned: Detector, tensors: dict[str, Tensor]) -> None:
    """Whether a checkpoint holds what a network of the described options (on the meta device) consists of."""
    for name, tensor in planned.state_dict().items():
        if name.startswith("backbone."):
            continue
        found = tensors.get(name)
        if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
            shown = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise DataError(
                f"'{folder / WEIGHTS}' does not fit '{folder / DESCRIPTION}': {name} is {shown}, "
                f"not {tensor.dtype} {list(tensor.shape)}"
            )


def backbone_digest(detector: Detector) -> str | None:
    """The SHA-256 of a frozen backbone's weights; None of one that was trained, which the checkpoint holds."""
    if detector.train_backbone:
        return None
    network = detector.backbone.build(detector.layers, detector.image_size, detector.device)
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_weights(path: Path, digest: str) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"no '{path}' beside {DESCRIPTION}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(f"'{path}' is damaged or from another model: its SHA-256 is not the one in {DESCRIPTION}")
    try:
        return read_tensors(content)
    except SafetensorError as error:
        raise DataError(f"'{path}' cannot be read: {error}") from error
