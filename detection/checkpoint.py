"""A trained model on disk, checkpoint.safetensors beside model.json, and in use from Python."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

import backbones
from datasets import (
    ImageTransform,
    Reading,
    TableTransform,
    Tiling,
    digest_of,
    pixels_of_interest,
    read_image,
    read_interest,
    read_table,
    refuse_video,
)
from datasets.interest import Interest, encoded
from detection.decision import Thresholds
from detection.description import DESCRIPTION, EACH, MASK, WEIGHTS, Description, read_description, write_description
from detection.detector import Detector
from detection.prediction import Prediction
from detection.state import fits, in_words, without_backbone
from detection.whole_images import predicted
from errors import DataError
from files import sha256_of, share, write_bytes
from late import pandas as pd
from options import declared

BATCH = 8  # images scored at once where nobody says otherwise
ROWS = 256  # of a table


@dataclass(frozen=True)
class TrainedModel:
    """A detector that was trained, with the transform and the thresholds that belong to it."""

    detector: Detector
    transform: ImageTransform
    description: Description
    mask: Interest | None = None  # of interest, bool [H, W], where it is one for all images

    @property
    def thresholds(self) -> Thresholds:
        return self.description.thresholds

    @cached_property
    def table(self) -> TableTransform | None:
        """What encodes rows, where the model is of a table."""
        return self.description.table and TableTransform.from_dict(self.description.table)

    @cached_property
    def tiling(self) -> Tiling:
        """How images are cut into what the detector sees."""
        return self.description.tiling

    def predict(
        self,
        images: Tensor | NDArray[np.uint8] | pd.DataFrame | str | Path | Sequence[str | Path | NDArray[np.uint8]],
        masks: Sequence[str | Path | Interest] | None = None,
    ) -> Prediction:
        """Image scores and anomaly maps.

        Args:
            images: a normalised float32 tensor [B, 3, H, W] of the size that images are brought to; RGB pixels
                [H, W, 3] or [B, H, W, 3] of any size, uint8; the path of an image; or several paths or pixels
                [H, W, 3], each of its own size. Of a table encoded rows [B, F], a frame, or the path of a file.
            masks: of interest, a path or bool [H, W] for every image, of a model that was trained with one per image.
                One that is the same for all images the model has itself.

        Returns:
            Scores [B] and maps [B, H, W] of that size, if it draws any, higher is more anomalous, NaN where an
            image is of no interest; of a table's n columns [B, 1, n].

        Raises:
            ValueError: a tensor or array of another shape or type, something else, or nothing to predict.
            DataError: an image or table that cannot be read.
        """
        if (masks is None) == (self.description.mask_of_interest == EACH):
            raise ValueError(f"masks: the model needs {'one per image' if masks is None else 'none'}")
        if isinstance(images, Tensor):
            if (interest := self._of_tensors(len(images), masks)) is not None:
                return self.detector.predict(images, interest)  # such images are not cut
            predict, size = self.detector.predict, BATCH if self.tiling.count > 1 else max(1, len(images))
        else:
            images = self._tensors(images, masks) if self.table is None else self._rows(images)
            predict, size = self.detector.predict_read, BATCH if self.table is None else ROWS
        return predicted(predict, images, self.tiling, size)

    def _rows(self, table: pd.DataFrame | str | Path) -> Tensor:
        if isinstance(table, pd.DataFrame):
            return torch.from_numpy(self.table.encode(table, "the table"))
        if not isinstance(table, str | Path):
            raise ValueError("expected a frame or the path of a table")
        return torch.from_numpy(self.table.encode(read_table(Path(table)), str(table)))

    @property
    def interest(self) -> Tensor | None:
        """The mask of interest that is one for all images, bool [H, W] of the model's size; None without."""
        return None if self.mask is None else self.transform.interest(self.mask)

    def _of_tensors(self, count: int, masks: Sequence[str | Path | Interest] | None) -> Tensor | None:
        if masks is None:
            return None if self.mask is None else self.interest.expand(count, -1, -1)
        return torch.stack([self.transform.interest(_mask(one)) for one in masks])

    def _tensors(
        self,
        images: NDArray[np.uint8] | str | Path | Sequence[str | Path | NDArray[np.uint8]],
        masks: Sequence[str | Path | Interest] | None,
    ) -> Tensor:
        is_one = isinstance(images, np.ndarray) and images.dtype.kind not in "OU" and images.ndim != 4
        if isinstance(images, str | Path) or is_one:
            images = [images]
        if not isinstance(images, Iterable) or hasattr(images, "keys"):
            raise ValueError(f"expected images or their paths, not {type(images).__name__}")
        pictures = [_picture(one, self.transform.reading) for one in images]
        if not pictures:
            raise ValueError("no images to predict")
        own = [self.mask] * len(pictures) if masks is None else [_mask(one) for one in masks]
        if len(own) != len(pictures):
            raise ValueError(f"{len(own)} masks of {len(pictures)} images")
        return torch.stack(
            [
                self.transform.pixels(picture)
                if mask is None
                else pixels_of_interest(self.transform, picture, mask, "in use", f"image {i}")
                for i, (picture, mask) in enumerate(zip(pictures, own, strict=True))
            ]
        )


def _mask(mask: str | Path | Interest) -> Interest:
    return read_interest(Path(mask)) if isinstance(mask, str | Path) else np.asarray(mask, bool)


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


def save(
    folder: Path,
    detector: Detector,
    description: Description,
    mask: Interest | None = None,
    beside: Path | None = None,
) -> None:
    """Write a model into a folder that exists.

    Args:
        folder: the folder.
        detector, description: the model.
        mask: of interest, where it is one for all images.
        beside: a folder that this detector is in already, for another class: its checkpoint takes no room twice.
    """
    if mask is not None:
        write_bytes(folder / MASK, encoded(mask))
    if beside is None:
        tensors = {name: tensor.contiguous().cpu() for name, tensor in detector.state_dict().items()}
        weights = write_tensors(tensors)
        write_bytes(folder / WEIGHTS, weights)
        digest = hashlib.sha256(weights).hexdigest()
    else:
        share(beside / WEIGHTS, folder / WEIGHTS)
        digest = sha256_of(folder / WEIGHTS)
    write_description(folder, replace(description, checkpoint_sha256=digest))


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
    kind = detectors[description.detector].variant(description.options)
    backbone = description.backbone
    held = "random" if description.backbone_sha256 is None else None  # the checkpoint holds the backbone's weights
    weights = backbone_weights or held or backbone["weights"]
    transform = ImageTransform(**description.transform, reading=Reading(**description.reading))
    tensors = _read_weights(folder / WEIGHTS, description.checkpoint_sha256)
    layers, size = backbone["layers"], description.tiling.tile
    normalisation = backbones.Normalisation.from_dict(backbone["normalisation"])
    extractor = backbones.load(backbone["name"], weights, backbone["seed"], normalisation)
    classes = len(description.classes or [""])
    counts = {name: description.options.get(name, 0) for name in _counts(kind)}
    if max(counts.values(), default=0) > len(tensors):
        raise DataError(f"'{folder / WEIGHTS}' does not fit '{folder / DESCRIPTION}': it holds too little for {counts}")
    with backbones.shapes_only():  # nothing of the size that the description claims is made before it proves right
        _check_shapes(folder, kind(extractor, layers, size, classes=classes, **description.options), tensors)
    known = {"seed": description.seed, "precision": description.dtype, "classes": classes}
    detector = kind(extractor, layers, size, **known, **description.options).to(device)
    _fill(detector, folder, description, tensors)
    if description.classes:
        detector = detector.for_part(description.classes.index(description.class_name))
    return TrainedModel(detector, transform, description, _read_mask(folder, description))


def _read_mask(folder: Path, description: Description) -> Interest | None:
    if not description.keeps_mask:
        return None
    mask = read_interest(folder / MASK)
    if digest_of(mask) != description.mask_of_interest:
        raise DataError(f"'{folder / MASK}' is not the mask of interest that the model was trained with: put it back")
    return mask


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


def _check_shapes(folder: Path, planned: Detector, tensors: dict[str, Tensor]) -> None:
    """Whether a checkpoint holds what a network of the described options (on the meta device) consists of."""
    for name, tensor in without_backbone(planned.state_dict()).items():
        found, allowed = tensors.get(name), planned.sized_by_data.get(name, tensor.shape)
        if found is None or not fits(found.shape, allowed) or found.dtype != tensor.dtype:
            shown = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise DataError(
                f"'{folder / WEIGHTS}' does not fit '{folder / DESCRIPTION}': {name} is {shown}, "
                f"not {tensor.dtype} {in_words(allowed)}"
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
