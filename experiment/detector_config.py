"""Which detector is trained, with which options, on which backbones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from backbones import TOGETHER
from errors import UsageError
from experiment.config import LARGEST_SEED, check_seed
from methods import DETECTORS
from options import build, declared, option

LONGEST_NUMBER = 20  # digits; Python makes no number of thousands of them


@dataclass(frozen=True)
class BackboneOptions:
    """Where a detector's features come from; options of every detector, beside its own."""

    backbone_names: tuple[str, ...] = option(
        (),
        "wideresnet50, resnet18, efficientnet_lite0, any timm name; NAME.seed-7 seeds one backbone. Repeatable: one "
        "model each.",
        "--backbone_names",
        "-b",
    )
    layers_to_extract_from: tuple[str, ...] = option(
        (),
        "Layer to read, repeatable; the first gives the patch grid. With several backbones INDEX.LAYER, such as "
        "0.layer2.",
        "--layers_to_extract_from",
        "-le",
    )
    backbone_weights: str = option("pretrained", "pretrained, random, or a .pth or .safetensors state dict.")
    normalisation: Literal["imagenet", "model"] = option(
        "imagenet",
        "Mean and standard deviation that the backbone is given images by. imagenet: ImageNet's, as in the original; "
        "model: those that its pretrained weights were trained with, by timm's configuration.",
    )


@dataclass(frozen=True)
class BackboneConfig:
    """One backbone: its label in tables, its name, the layers read off it, and its own seed if it has one."""

    label: str
    name: str
    layers: tuple[str, ...]
    seed: int | None

    def seed_in(self, run_seed: int) -> int:
        """Its own seed, or that of the run."""
        return run_seed if self.seed is None else self.seed


@dataclass(frozen=True)
class DetectorConfig:
    """A detector per backbone, or one of all.

    Attributes:
        command: which detector, a key of methods.DETECTORS.
        options: those of its options that change results.
        recipe: the name of the recipe, and `set_by_recipe` those of the options that come from it.
        backbone_weights_sha256: of the file that backbone_weights names; None where it names none.
        normalisation: by which rule backbones are given images; see backbones.normalisation_of.
        files_sha256: of the files that options name, by option.
    """

    command: str
    backbones: tuple[BackboneConfig, ...]
    backbone_weights: str
    options: dict[str, Any]
    recipe: str = "paper"
    set_by_recipe: dict[str, Any] = field(default_factory=dict)
    backbone_weights_sha256: str | None = None
    normalisation: Literal["imagenet", "model"] = "imagenet"
    files_sha256: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        command: str,
        values: Mapping[str, Any],
        recipe: str = "paper",
        set_by_recipe: Mapping[str, Any] | None = None,
    ) -> "DetectorConfig":
        """The configuration that a command line's values stand for, by the names of their options.

        Raises:
            UsageError: no backbone, or backbones, layers and options that contradict each other.
        """
        kind, source = DETECTORS[command], build(BackboneOptions, values)
        options = {own.name: values[own.name] for own in declared(kind.Options) if own.option.changes_results}
        named = kind.backbones_of(options, source.backbone_names, source.layers_to_extract_from)
        parsed = parse_backbones(*named)
        return cls(
            command,
            (together(parsed),) if kind.variant(options).READS_SEVERAL else parsed,
            source.backbone_weights,
            options,
            recipe,
            dict(set_by_recipe or {}),
            normalisation=source.normalisation,
        )


def parse_backbones(names: Sequence[str], layers: Sequence[str]) -> tuple[BackboneConfig, ...]:
    """Pair backbones with their layers.

    One backbone takes all layers as they are; of several, the i-th takes those written "i.layer". A name that ends in
    ".seed-N" has seed N. Labels are the names as typed; a name that occurs again has its layers behind it.

    Raises:
        UsageError: no backbone, a layer without a valid index, or the same backbone and layers twice.
    """
    if not names:
        raise UsageError("a detector needs a backbone, such as -b wideresnet50")
    layers_of: list[list[str]] = [[] for _ in names]
    for layer in layers:
        if len(names) == 1:
            layers_of[0].append(layer)
            continue
        index, _, layer_name = layer.partition(".")
        if not layer_name or not (index.isdecimal() and len(index) <= LONGEST_NUMBER) or int(index) >= len(names):
            raise UsageError(
                f"-le {layer}: with {len(names)} backbones write INDEX.LAYER, such as 0.layer2, "
                f"with an index from 0 to {len(names) - 1}"
            )
        layers_of[int(index)].append(layer_name)
    parsed = [_parse_backbone(label, own) for label, own in zip(names, layers_of, strict=True)]
    if len(set(parsed)) < len(parsed):
        raise UsageError("the same backbone with the same layers is given twice")
    same = [replace(one, label=f"{one.label} {'+'.join(one.layers)}") for one in parsed]
    return tuple(long if names.count(short.label) > 1 else short for short, long in zip(parsed, same, strict=True))


def together(several: Sequence[BackboneConfig]) -> BackboneConfig:
    """Backbones that one model reads side by side, as one whose layers are "i.layer".

    Raises:
        UsageError: only one, or one with a seed of its own.
    """
    if len(several) < 2:
        raise UsageError("--ensemble is of several backbones: give -b more than once, or leave it out")
    for own in several:
        if own.seed is not None:
            raise UsageError(f"-b {own.label}: the backbones of an ensemble have one seed, the run's: give --seed")
    layers = tuple(f"{i}.{layer}" for i, own in enumerate(several) for layer in own.layers)
    label, name = (TOGETHER.join(own) for own in zip(*((one.label, one.name) for one in several), strict=True))
    return BackboneConfig(label, name, layers, None)


def _parse_backbone(label: str, layers: list[str]) -> BackboneConfig:
    name, marker, seed = label.partition(".seed-")
    if marker and not (seed.isdecimal() and len(seed) <= LONGEST_NUMBER):
        raise UsageError(
            f"-b {label}: expected a whole number from 0 to {LARGEST_SEED} after .seed-, such as {name}.seed-7"
        )
    if marker:
        check_seed(f"-b {name}.seed-", int(seed))
    if len(set(layers)) < len(layers):
        raise UsageError(f"-b {label}: a layer is given twice in {', '.join(layers)}")
    return BackboneConfig(label, name, tuple(layers), int(seed) if marker else None)
