"""The commands of the chain, and what is handed over to whom."""

import gc
import importlib
import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import click
from click.core import ParameterSource

from cli.chain import Chain, Link, Sections, Standalone
from cli.flags import Flag, parameters, recipe
from cli.grid import named_grid, parse_grid
from errors import UsageError
from experiment.config import ReportConfig, RunConfig
from experiment.model_config import CalibrateConfig, ExportConfig, ExtendConfig, PredictConfig
from methods import DETECTORS, ENTRIES

SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110}
GRID = Flag(
    ["--grid"],
    multiple=True,
    default=(),
    metavar="FLAG=V1,V2,...",
    callback=parse_grid,
    help="A run for each of these values of an option of the detector or of dataset, such as dsc_hidden=512,1024 or "
    "layers_to_extract_from=layer2+layer3,layer3; repeatable, for every combination. Each has a folder in RUN_NAME, "
    "ablation.csv compares them, and images are embedded once where the features stay the same.",
)
DEBUG = Flag(
    ["--debug"], is_flag=True, help="Show where in the program an error comes from; stands before the commands."
)
ROOMS = {  # of experiment/
    "run": "run",
    "report": "show.report",
    "predict": "use.predict",
    "export": "use.export",
    "extend": "train.extend",
    "calibrate": "use.calibrate",
}
ALONE = {  # of what a finished run left: options, and what it does
    "report": (ReportConfig, "Tables and a page of finished runs."),
    "predict": (PredictConfig, "Scores and anomaly maps of your own images."),
    "export": (ExportConfig, "A trained model as one ONNX file."),
    "extend": (ExtendConfig, "Further normal images for a model with a memory bank."),
    "calibrate": (CalibrateConfig, "A model's thresholds by fresh good images."),
}


def detector(command: str) -> Link:
    """The command of a detector, whose class says its options."""
    from experiment.detector_config import BackboneOptions, DetectorConfig

    kind = DETECTORS[command]

    def config(recipe: str = "paper", **values: Any) -> DetectorConfig:
        ctx = click.get_current_context()
        preset = {
            name: own for name, own in values.items() if ctx.get_parameter_source(name) == ParameterSource.DEFAULT_MAP
        }
        return DetectorConfig.of(command, values, recipe, preset)

    defaults = " ".join(f"--{name} {value}" for name, value in kind.DATASET_DEFAULTS.items())
    behind = f"\n\ndataset's defaults behind {command} are {defaults}." if defaults else ""
    recipes = [recipe(kind.RECIPES)] if kind.RECIPES else []
    return Link(
        command,
        callback=config,
        params=[*recipes, *parameters(BackboneOptions, group="Features"), *parameters(kind.Options)],
        help=f"{inspect.cleandoc(kind.Options.__doc__)}{behind}",
        context_settings=SETTINGS,
        defaults={"dataset": kind.DATASET_DEFAULTS},
    )


def dataset() -> Link:
    """The command of the data: the options of all datasets, and those that one of them has, under its name."""
    from datasets import DATASETS
    from experiment.dataset_config import DatasetConfig

    def config(**values: Any) -> DatasetConfig:
        ctx = click.get_current_context()
        return DatasetConfig.of(
            values, {name for name in values if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE}
        )

    readers = {reader.name: reader for reader in DATASETS.values()}.values()
    own = [reader for reader in readers if reader.options is not None]
    return Link(
        "dataset",
        callback=config,
        params=[
            *parameters(DatasetConfig),
            *(one for reader in own for one in parameters(type(reader.options), group=f"Dataset {reader.name}")),
        ],
        help=DatasetConfig.__doc__,
        lists={"Datasets": {reader.name: reader.summary for reader in readers}},
        context_settings=SETTINGS,
    )


def alone(command: str) -> Standalone:
    """A command that is no link of the chain."""
    kind, _ = ALONE[command]
    return Standalone(command, callback=kind, params=parameters(kind), help=kind.__doc__, context_settings=SETTINGS)


def sections() -> Sections:
    """All commands under the headings of --help."""
    return {
        "Detectors": {name: (entry.summary, partial(detector, name)) for name, entry in ENTRIES.items()},
        "Data": {"dataset": ("Images or rows to train and test on.", dataset)},
        "Finished runs and models": {name: (text, partial(alone, name)) for name, (_, text) in ALONE.items()},
    }


@click.group(
    cls=Chain,
    chain=True,
    context_settings=SETTINGS,
    sections=sections,
    params=[*parameters(RunConfig), GRID, DEBUG],
)
def main(**_: Any) -> None:
    """Train a detector on normal images, score test images, and write image AUROC, pixel AUROC and PRO per class.

    \b
    One command line is a chain: run options, then a detector with its options, then dataset with its.
      python main.py --run_name demo \\
        net -b efficientnet_lite0 -le blocks.2 -le blocks.4 --pre_proj 1 --auto_noise 0.25 \\
        dataset --resize 256 --imagesize 256 elpv
    Each command has a --help of its own, such as "net --help". Exit codes: 0 done, 1 bad data or a full disk or
    memory, 2 bad usage, 130 interrupted, 143 terminated; after the last two the same command continues.
    """


@main.result_callback()
@click.pass_context
def execute(
    ctx: click.Context, configs: list[Any], debug: bool, grid: list[dict[str, str]], **values: Any
) -> int | None:
    """Hand the configurations of the chain over."""
    commands = {kind: name for name, (kind, _) in ALONE.items()}
    for config in configs:
        if command := commands.get(type(config)):  # a link gives a list
            refuse_others(command, ctx, configs)
            return imported(command)(config)
    from experiment.dataset_config import DatasetConfig
    from experiment.detector_config import DetectorConfig

    detectors = [config for config in configs if isinstance(config[0], DetectorConfig)]
    data = [config for config in configs if isinstance(config[0], DatasetConfig)]
    if len(detectors) != 1 or not data:
        raise UsageError(
            f"a run needs one detector and a dataset, not {len(detectors)} and {len(data)}: "
            "main.py [run options] net [options] dataset [options] NAME [DATA_PATH]"
        )
    choices = list(zip(named_grid(ctx, grid), detectors[0], zip(*data, strict=True), strict=True))
    imported("run")(RunConfig(**values), choices)
    return 0


def imported(command: str) -> Callable[..., int | None]:
    """What does the work of a command; from here on rubbish is collected again."""
    function = getattr(importlib.import_module(f"experiment.{ROOMS[command]}"), command)
    if not gc.isenabled():  # by main.py
        _leave_imports_alone()
        gc.enable()
    return function


@cache
def _leave_imports_alone() -> None:
    """Look through what was imported for rubbish no more; once, for what a command makes may be some."""
    gc.freeze()


def refuse_others(command: str, ctx: click.Context, configs: list[Any]) -> None:
    """A command that is no link of the chain stands alone: no run options before it and nothing else beside it."""
    given = [
        option.opts[0]
        for option in main.params
        if option is not DEBUG and ctx.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(f"{command} takes no run options: leave out {', '.join(given)}")
    if len(configs) > 1:
        raise UsageError(f"{command} stands alone: give net and dataset in a command of their own")
