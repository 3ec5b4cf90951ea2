"""Flags that would do nothing are refused: who gives one expects something of it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from backbones import PIXELS
from datasets import RandomTransform, Reading
from errors import UsageError
from experiment.config import RunConfig
from experiment.dataset_config import DatasetConfig
from experiment.detector_config import DetectorConfig
from experiment.plan.runs import TABLE, Choice
from methods import DETECTORS, dataset_defaults
from options import declared


class Idle(NamedTuple):
    """A flag that changes nothing as things are: whether it is given, and why it changes nothing."""

    flag: str
    is_given: bool
    why: str


ONLY_WITH = {  # by command: flags, and the values of another that they are of
    "template": [
        ("window", "score", ["correlation"]),
        ("references", "score", ["nearest"]),
        ("least_spread", "score", ["deviation", "correlation"]),
    ],
    "frequency": [("k", "mode", ["notch", "reference"]), ("damp", "mode", ["phase", "phot"])],
    "lowrank": [("rank", "of", ["training"]), ("weight", "of", ["image"]), ("side", "of", ["image"])],
    "gaussian": [("components", "of", ["patches"]), ("eps", "shrinkage", ["constant"])],
    "oneclass": [("landmarks", "machine", ["nystroem"]), ("gamma", "machine", ["nystroem", "gaussian"])],
    "multimodal": [("token_size", "image_tokens", ["pixels"])],
}


def refuse_unused(run: RunConfig, detectors: Iterable[Sequence[Choice]]) -> None:
    """See that every flag that is given can change something, in one choice of the grid at least.

    Flags of a detector must do so of that one, all others of one of the detectors.

    With --test, which takes the command line of a run that is there, none is refused. Neither are flags that run.sh and
    the original's command lines give to every run, as --resize with --resize_mode square. The default's value counts as
    not given.

    Raises:
        UsageError: one cannot.
    """
    if run.test:
        return
    detectors = list(detectors)
    _refuse([_idle(run, detector, datasets) for choices in detectors for _, detector, datasets in choices])
    for choices in detectors:
        _refuse([_idle_of_detector(detector) for _, detector, _ in choices])


def _refuse(found: Iterable[Iterable[Idle]]) -> None:
    """Refuse what every run finds to be idle, where it is given."""
    idle = [{own.flag: own for own in one} for one in found]
    for flag, own in idle[0].items():
        if all(flag in one for one in idle) and any(one[flag].is_given for one in idle):
            raise UsageError(f"{flag} has no effect {own.why}: leave it out")


def _idle(run: RunConfig, detector: DetectorConfig, datasets: Sequence[DatasetConfig]) -> Iterator[Idle]:
    if all(data.name == TABLE for data in datasets):
        why = "on tables, which have no images"
        yield Idle("--save_segmentation_images", run.save_segmentation_images, why)
        yield Idle("--match_light", detector.options.get("match_light") != "off", why)
    if detector.options.get("train_backbone"):
        is_given = run.feature_bank not in ("auto", "off")
        yield Idle("--feature_bank", is_given, "with --train_backbone, whose features change: they are not kept")
    if DETECTORS[detector.command].JOINT:
        why = f"with {detector.command}, of which all classes train one model anyway"
        yield Idle("--one_model", any(data.one_model for data in datasets), why)
    if all(data.train_val_split < 1 for data in datasets):
        why = "with a --train_val_split below 1, where the threshold is of held-out data and says how many"
        yield Idle("--calibrate", run.calibrate is not None, why)
    by_recipe = dataset_defaults(detector.command, detector.recipe)
    for data in datasets:
        if data.random.is_identity:
            is_given = data.random.draw_once and not by_recipe.get("draw_once", False)
            yield Idle("--draw_once", is_given, "without random changes")
        if data.name == TABLE:
            yield from _idle_on_table(data)
        elif data.tiling.count == 1:
            why = "without --tile, or with one as large as the image"
            yield Idle("--overlap", data.overlap > 0, why)
            yield Idle("--skip_empty_tiles", data.skip_empty_tiles > 0, why)


def _idle_of_detector(detector: DetectorConfig) -> Iterator[Idle]:
    options = detector.options
    defaults = {own.name: own.default for own in declared(DETECTORS[detector.command].Options)}

    def is_given(name: str) -> bool:
        return name not in detector.set_by_recipe and options[name] != defaults[name]

    if detector.command == "net" and not options["cos_lr"]:
        yield Idle("--aed_meta_epochs", is_given("aed_meta_epochs"), "without --cos_lr")
    if detector.command == "net" and options["pre_proj"] < 2:
        is_activated = is_given("proj_layer_type") and options["proj_layer_type"] > 1
        yield Idle("--proj_layer_type", is_activated, "on fewer than two layers (--pre_proj 2)")
    if detector.command == "net" and options["pre_proj"] == 0:
        yield Idle("--adaptor_lr", is_given("adaptor_lr"), "without an adaptor (--pre_proj 1)")
    if "sampler" in options:
        keeps_all = options["sampler"] == "identity"
        why = "with --sampler identity, which keeps all patches" if keeps_all else "with --bank_size"
        if keeps_all or options["bank_size"] is not None:
            yield Idle("--percentage", is_given("percentage"), why)
    if detector.command == "reconpatch" and options["alpha"] in (0, 1):
        flag = "k_nearest" if options["alpha"] == 1 else "sigma"
        yield Idle(f"--{flag}", is_given(flag), f"with --alpha {options['alpha']:g}")
    if detector.command == "logicrd" and options["no_fcp"]:
        yield Idle("--no_nii", options["no_nii"], "with --no_fcp: the gate is part of that pathway")
    for flag, other, values in ONLY_WITH.get(detector.command, ()):
        if options[other] not in values:
            yield Idle(f"--{flag}", is_given(flag), f"without --{other} {' or '.join(values)}")
    if detector.command == "template" and (options["score"], options["align"]) == ("nearest", "none"):
        yield Idle("--centre", is_given("centre"), "with --score nearest and --align none")
    if detector.command == "gaussian" and options["of"] == "patches" and options["components"] > 1:
        why = "on a mixture (--components), which has its own"
        yield from (Idle(f"--{name}", is_given(name), why) for name in ("shrinkage", "eps"))
    if all(backbone.name == PIXELS for backbone in detector.backbones):
        why = "where no backbone is read"
        yield Idle("--align_maps", bool(options.get("align_maps")), why)
        yield Idle("--normalisation", detector.normalisation != "imagenet", why)
        yield Idle("--backbone_weights", detector.backbone_weights not in ("pretrained", "random"), why)


def _idle_on_table(data: DatasetConfig) -> Iterator[Idle]:
    why = "on a table, which has no images"
    unchanged = RandomTransform()
    for own in declared(RandomTransform):
        is_given = getattr(data.random, own.name) != getattr(unchanged, own.name)
        yield Idle(f"--{own.name} (or --augment)", is_given, why)
    yield Idle("--mask_of_interest", data.mask_of_interest is not None, why)
    yield Idle("--tile", data.tile is not None, why)
    yield Idle("--overlap", data.overlap > 0, why)
    yield Idle("--skip_empty_tiles", data.skip_empty_tiles > 0, why)
    yield Idle("--bit_depth", data.reading.bit_depth is not None, why)
    yield Idle("--max_pixels", data.reading.max_pixels != Reading().max_pixels, why)
    if data.options.test_file is not None:
        yield Idle(
            "--split_seed",
            data.options.split_seed != 0,
            "with --test_file: all normal rows of DATA_PATH are trained on",
        )
