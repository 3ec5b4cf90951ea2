"""The commands of the chain, and what is handed over to whom."""

import gc
import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from cli.chain import LINKS, Chain, Given, Link, Sections, Standalone
from cli.flags import Flag, parameters, recipe
from cli.grid import check_grid, named_grid, parse_grid
from errors import UsageError
from experiment.config import RunConfig, check_names
from methods import DETECTORS, ENTRIES, dataset_defaults
from options import as_flags, build

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
NAME = click.Option(  # which --grid cannot vary
    ["--as", "called"],
    default=None,
    metavar="NAME",
    help="What this detector's folder in RUN_NAME is called, among several on a command line; else its command.",
)
DEBUG = Flag(
    ["--debug"], is_flag=True, help="Show where in the program an error comes from; stands before the commands."
)
ROOMS = {  # of experiment/
    "run": "run",
    "report": "show.report",
    "figure": "show.figure",
    "predict": "use.predict",
    "serve": "serve.serve",
    "export": "use.export",
    "extend": "train.extend",
    "distill": "train.distill",
    "calibrate": "use.calibrate",
}
ALONE = {  # links of no chain: their options, in experiment/, imported when asked for, and what they do
    "distill": ("distill_config.DistillConfig", "A teacher for efficientad, from any backbone."),
    "report": ("config.ReportConfig", "Tables and a page of finished runs."),
    "figure": ("config.FigureConfig", "A figure of finished runs for a paper."),
    "predict": ("model_config.PredictConfig", "Scores and anomaly maps of your own images."),
    "serve": ("model_config.ServeConfig", "A page to look at images with, and its interface for programs."),
    "export": ("model_config.ExportConfig", "A trained model as one ONNX file."),
    "extend": ("model_config.ExtendConfig", "Further normal images for a model with a memory bank."),
    "calibrate": ("model_config.CalibrateConfig", "A model's thresholds by fresh good images."),
}


class Alone(NamedTuple):
    """A command that is no link of the chain, and what its options say."""

    command: str
    config: Any


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

    defaults = {f"{command} --recipe {name}": dataset_defaults(command, name) for name in kind.RECIPES}
    behind = "".join(
        f"\n\ndataset's defaults behind {line} are {as_flags(own)}."
        for line, own in {command: dataset_defaults(command), **defaults}.items()
        if own
    )
    recipes = [recipe(kind.RECIPES)] if kind.RECIPES else []
    return Link(
        command,
        callback=config,
        params=[NAME, *recipes, *parameters(BackboneOptions, group="Features"), *parameters(kind.Options)],
        help=f"{inspect.cleandoc(kind.Options.__doc__)}{behind}",
        context_settings=SETTINGS,
        defaults=lambda values: {"dataset": dataset_defaults(command, values.get("recipe", "paper"))},
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
    module, _, name = ALONE[command][0].partition(".")
    kind = getattr(importlib.import_module(f"experiment.{module}"), name)

    def callback(**values: Any) -> Alone:
        return Alone(command, build(kind, values))

    return Standalone(command, callback=callback, params=parameters(kind), help=kind.__doc__, context_settings=SETTINGS)


def sections() -> Sections:
    """All commands under the headings of --help."""

    def listed(*names: str) -> dict[str, tuple[str, Callable[[], click.Command]]]:
        return {name: (ALONE[name][1], partial(alone, name)) for name in names}

    return {
        "Detectors": {name: (entry.summary, partial(detector, name)) for name, entry in ENTRIES.items()},
        "Data": {"dataset": ("Images or rows to train and test on.", dataset)},
        "Teachers": listed("distill"),
        "Finished runs and models": listed("report", "figure", "predict", "serve", "export", "extend", "calibrate"),
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
    One command line is a chain: run options, then a detector with its options, or several, then dataset with its.
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
    for own in configs:
        if isinstance(own, Alone):  # a link gives a list
            refuse_others(own.command, ctx, configs)
            return imported(own.command)(own.config)
    from experiment.dataset_config import DatasetConfig
    from experiment.detector_config import DetectorConfig

    links: list[tuple[Given, list[Any]]] = list(zip(ctx.meta[LINKS], configs, strict=True))
    detectors = [(given, own) for given, own in links if isinstance(own[0], DetectorConfig)]
    data = [(given, own) for given, own in links if isinstance(own[0], DatasetConfig)]
    if not detectors or not data:
        raise UsageError(
            f"a run needs a detector and a dataset, not {len(detectors)} and {len(data)}: "
            "main.py [run options] net [options] dataset [options] NAME [DATA_PATH]"
        )
    check_grid(ctx, grid, [given.names for given, _ in links])
    of_data = {word: name for given, _ in data for word, name in given.names.items()}
    datasets = list(zip(*(own for _, own in data), strict=True))  # by detector and choice
    runs = []
    for i, (given, chosen) in enumerate(detectors):
        behind = datasets[i * len(grid) : (i + 1) * len(grid)]
        own = named_grid(ctx, grid, given.names | of_data)
        runs.append([(flags, chosen[j], behind[j]) for j, flags in own.items()])
    imported("run")(RunConfig(**values), dict(zip(_folders([given for given, _ in detectors]), runs, strict=True)))
    return 0


def _folders(detectors: Sequence[Given]) -> list[str]:
    """What the folders in RUN_NAME of several detectors are called, or of one that --as gives a folder; else "".

    Raises:
        UsageError: two of one name, or one that no folder can have.
    """
    if len(detectors) == 1 and detectors[0].called is None:
        return [""]
    names = [given.command if given.called is None else given.called for given in detectors]
    check_names(names)
    return names


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
