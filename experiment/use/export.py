"""Export a trained model to one file that needs nothing of this project: ONNX, or an archive of torch.export."""

import contextlib
import copy
import importlib.util
import io
import json
import logging
import math
import mmap
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from datasets.transforms import IMAGENET_MEAN, IMAGENET_STD
from detection import TrainedModel
from detection.description import EACH
from detection.interest import blanked
from errors import DataError, UsageError, first_line
from experiment.machine.memory import is_out_of_memory, one_line_when_full
from experiment.model_config import ExportConfig
from experiment.use.unused import refuse_unused_weights
from files import move
from methods import load

EXTRA = "requirements-export.txt"
ADVICE = "free some memory, or export where there is more"
BOUND = 1e-3  # of the difference to PyTorch in float32, in units of the largest value where that is above 1
MARK = b"image_threshold"  # in every export
RANGES = {"uint8": "0 to 255", "float": "0 to 1"}
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}


class Exported(nn.Module):
    """From RGB pixels of the model's size to image scores and anomaly maps, normalisation and smoothing inside.

    Args:
        model: what is exported; its detector is copied.
        half: compute backbone, patches and discriminator in float16; scores and maps are float32.
    """

    def __init__(self, model: TrainedModel, half: bool = False) -> None:
        super().__init__()
        self.detector = copy.deepcopy(model.detector).cpu().float().eval()
        self.dtype = torch.float16 if half else torch.float32
        self.light = copy.deepcopy(self.detector.light)  # in float32 always
        self.register_buffer("interest", model.interest)
        if half:
            self.detector.half()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Scores [B] and, if there are any, maps [B, H, W] of images [B, H, W, 3], uint8 or float in [0, 1]."""
        pixels = images.permute(0, 3, 1, 2).float()
        if images.dtype == torch.uint8:
            pixels = pixels / 255
        normalised = (pixels - self.mean) / self.std
        interest = None if self.interest is None else self.interest.expand(images.shape[0], -1, -1)
        if interest is not None:
            normalised = blanked(normalised, interest)
        if self.light is not None:
            normalised = self.light(normalised, self.detector.part)
        features = self.detector.features(normalised.to(self.dtype))
        masked = () if interest is None else (interest,)
        prediction = self.detector(features, *masked).within(*masked)
        return tuple(own for own in prediction if own is not None)


def export(config: ExportConfig) -> None:
    """Export a model, check the result against PyTorch, and only then write the file.

    Raises:
        UsageError: no model, packages that are missing, an opset that cannot be had, or a file in the way.
        DataError: a model that cannot be exported, an export that computes something else, or no memory.
    """
    with one_line_when_full(ADVICE):
        _export(config)


def _export(config: ExportConfig) -> None:
    if config.opset is not None and config.style != "onnx":
        raise UsageError(f"--opset is of ONNX, not of {config.style}: leave it out")
    if config.style == "onnx":
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise UsageError(f"export to ONNX needs {', '.join(missing)}: pip install -r {EXTRA}")
    model = load(config.model_dir, backbone_weights=config.backbone_weights)
    if model.table is not None:
        raise UsageError(f"'{config.model_dir}' is a model of a table, and export is of images: use predict")
    if why := model.detector.not_exported:
        raise UsageError(f"'{config.model_dir}' cannot be exported ({why}): use predict")
    if model.description.mask_of_interest == EACH:
        raise UsageError(
            f"'{config.model_dir}' was trained with a mask of interest per image, and an export reads images alone: "
            "use predict"
        )
    refuse_unused_weights(model, config.backbone_weights)
    network = Exported(model, config.half)
    size = (2, *model.tiling.tile, 3)
    pixels = torch.randint(0, 256, size, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = pixels if config.input == "uint8" else pixels.float() / 255
    out = config.out or config.model_dir / f"{config.model_dir.name}{SUFFIXES[config.style]}"
    if out.suffix != SUFFIXES[config.style]:
        raise UsageError(f"--out {out}: expected a name that ends in {SUFFIXES[config.style]}")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: no folder '{out.parent}'")
    if out.exists() and not _is_export(out):
        raise UsageError(f"--out {out}: that file is there and no export of a model; choose another name")
    program = _traced(network, images, config)
    temporary = out.with_name(f".partial-{os.getpid()}-{out.name}")  # torch.export wants the ending
    try:
        if config.style == "onnx":
            difference = _write_onnx(program, temporary, network, images, _metadata(model, config), config.opset)
        else:
            notes = {"metadata.json": json.dumps(_metadata(model, config))}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.export.save(program, str(temporary), extra_files=notes)
                difference = _difference(network(images), torch.export.load(str(temporary)).module()(images))
        if not config.half and not difference <= BOUND:
            raise DataError(
                f"the export of '{config.model_dir}' differs from PyTorch by {difference:.2g}, more than {BOUND}: "
                "nothing was written"
            )
        move(temporary, out)
    except OSError as error:
        raise DataError(f"'{out}' cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    if not model.description.draws_maps:
        click.echo("Note: the model draws no maps: the file gives scores alone", err=True)
    precision = "fp16" if config.half else "fp32"
    click.echo(
        f"{out}: {out.stat().st_size / 2**20:.1f} MiB, {precision}, largest difference to PyTorch {difference:.2g}"
    )
    if model.description.precision != precision.replace("fp", "float"):
        click.echo(
            f"Note: the model was trained in {model.description.precision}, and its thresholds are of that; "
            f"scores in {precision} differ from them by rounding; train with --precision fp32 where that matters",
            err=True,
        )


def _traced(network: Exported, images: Tensor, config: ExportConfig) -> torch.export.ExportedProgram:
    """The network as a graph of any batch size."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            network(images)  # what is computed once and kept is not to be traced
            batch = {"images": {0: torch.export.Dim("batch")}}
            return torch.export.export(network, (images,), dynamic_shapes=batch, strict=False)
        except Exception as error:  # tracing may raise anything
            if is_out_of_memory(error):
                raise
            name = network.detector.backbone.name
            raise DataError(
                f"backbone '{name}' of '{config.model_dir}' cannot be traced: {first_line(error)}"
            ) from error


def _write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    network: Exported,
    images: Tensor,
    metadata: dict[str, str],
    opset: int | None,
) -> float:
    """Write an ONNX file; the largest difference between ONNX Runtime and PyTorch, also at another batch size."""
    import onnx
    import onnxruntime
    from onnx import checker

    from experiment.use.opset import LOWEST, lowered

    for name in ("onnxscript", "torch.onnx", "onnx_ir"):  # what an opset needs is checked below
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            graph = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["images"],
                output_names=["scores", "maps"][: len(program.graph_signature.user_outputs)],
                optimize=True,
                opset_version=opset and max(opset, LOWEST),
            )
        except Exception as error:  # so may a translation
            if is_out_of_memory(error):
                raise
            raise DataError(f"the model cannot be translated to ONNX: {first_line(error)}") from error
    graph.model.metadata_props.update(metadata)
    found = graph.model.opset_imports[""]
    try:
        if opset is None or opset == found:
            graph.save(str(path))
        elif opset < found:
            onnx.save(lowered(graph.model_proto, opset), path)
        else:
            raise ValueError
    except (RuntimeError, ValueError, checker.ValidationError) as error:
        if is_out_of_memory(error):
            raise
        raise UsageError(
            f"--opset {opset}: this model cannot be written in it, but in {found}; choose one near that"
        ) from error
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"])
    return max(
        _difference(network(batch), [torch.from_numpy(one) for one in session.run(None, {"images": batch.numpy()})])
        for batch in (images, images[:1])
    )


def _is_export(path: Path) -> bool:
    """Whether a file holds the metadata of an export."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(MARK) >= 0


def _metadata(model: TrainedModel, config: ExportConfig) -> dict[str, str]:
    """What whoever runs the file needs to know."""
    description, thresholds = model.description, model.thresholds
    return {
        "title": description.title,
        "class": description.class_name,
        "image_threshold": repr(thresholds.image),
        **({"pixel_threshold": repr(thresholds.pixel)} if description.draws_maps else {}),
        "threshold_quantile": repr(thresholds.quantile),
        "threshold_source": f"{thresholds.images} {thresholds.source}",
        **({"brightness": json.dumps(thresholds.outside.bounds)} if thresholds.outside else {}),
        "input": f"images: RGB, {config.input}, {RANGES[config.input]}, [batch, H, W, 3]",
        "transform": json.dumps(description.transform),
        **({"tiles": json.dumps(description.tiles)} if description.tiles is not None else {}),
        "reading": json.dumps(description.reading),
        **({"mask_of_interest": "applied within: maps are NaN outside"} if description.keeps_mask else {}),
        "normalisation": json.dumps(description.backbone["normalisation"]),
        "trained_precision": description.precision,
    }


@torch.no_grad()
def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest of scores or maps, in units of the largest of them where that is above 1; NaN is to be in both."""
    pairs = [(a, b) for a, b in zip(expected, found, strict=True)]
    if any((a.isnan() != b.isnan()).any() for a, b in pairs):
        return math.inf
    pairs = [(a.nan_to_num(), b.nan_to_num()) for a, b in pairs]
    return max(((a - b).abs().max() / a.abs().max().clamp(min=1)).item() for a, b in pairs)
