"""bash run.sh /path/to/mvtec [options]: the paper's recipe on all classes of MVTec AD below the path.
bash run.sh all [/path/to/mvtec] [options]: every detector there, in one comparison, as its paper has it.

Options are those of main.py, net and dataset in any order (python main.py --help, net --help and dataset --help list
them); each goes to the command that has it and takes the place of the paper's. With --recipe stable the options that
this recipe sets are its own. Without a path, bash run.sh trains the demo on real solar cells, and bash run.sh all runs
small settings on them, 20 minutes on two cores. What all gives each detector is in cli/everything.py; behind it stand
options of main.py and of dataset alone. The same command continues all of them.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from cli.commands import main
from cli.everything import ELPV, MVTEC
from errors import UsageError
from methods import DETECTORS

PAPER = {
    "": "--log_project MVTecAD_Results --log_group simplenet_mvtec --run_name run",
    "net": "-b wideresnet50 -le layer2 -le layer3 --pretrain_embed_dimension 1536 --target_embed_dimension 1536 "
    "--patchsize 3 --embedding_size 256 --meta_epochs 40 --gan_epochs 4 --noise_std 0.015 --dsc_hidden 1024 "
    "--dsc_layers 2 --dsc_margin .5 --pre_proj 1",
    "dataset": "--batch_size 8 --resize 329 --imagesize 288",
}
MAIN = Path(__file__).parent.parent / "main.py"


def words(path: str, given: Sequence[str]) -> list[str]:
    """What follows main.py for a dataset's path and options of main.py, net and dataset in any order."""
    owners = {flag: (command, name) for command in PAPER for name, flags in _flags(command).items() for flag in flags}
    own: dict[str, list[str]] = {command: [] for command in PAPER}
    replaced: set[tuple[str, str]] = set()
    for flag, *values in _parts(given):
        command, name = owners.get(flag.partition("=")[0], ("net", ""))  # net says of an unknown one what is wrong
        own[command] += [flag, *values]
        replaced.add((command, name))
        if name == "recipe":
            replaced |= {("net", one) for one in _set_by(" ".join([flag.partition("=")[2], *values]).strip())}
    line = []
    for command, paper in PAPER.items():
        kept = [part for part in _parts(shlex.split(paper)) if owners[part[0]] not in replaced]
        line += [command, *(word for part in kept for word in part), *own[command]]
    return [*line[1:], "mvtec", path]


def words_of_all(path: str | None, given: Sequence[str]) -> list[list[str]]:
    """What follows main.py for every detector: a command line for all that read the same data in the same way.

    Args:
        path: of MVTec AD; None: the solar cells.
        given: options of main.py and dataset, in any order.

    Raises:
        UsageError: an option of neither.
    """
    owners = {flag: command for command in ("", "dataset") for flags in _flags(command).values() for flag in flags}
    own: dict[str, list[str]] = {"": [], "dataset": []}
    for part in _parts(given):
        flag = part[0].partition("=")[0]
        if flag not in owners:
            raise UsageError(f"run.sh all: '{part[0]}' is no option of main.py or dataset, which alone stand for all")
        own[owners[flag]] += part
    lines: dict[str, list[str]] = {}
    for name, text in (ELPV if path is None else MVTEC).items():
        detector, _, data = text.partition("dataset")
        options = shlex.split(detector)
        own_line = [name, *options] if name in DETECTORS else [*options, "--as", name]
        lines.setdefault(data, []).extend(own_line)
    where = ["elpv"] if path is None else ["mvtec", path]
    run = ["--log_project", "all", "--run_name", where[0], "--on_error", "skip", *own[""]]
    return [[*run, *line, "dataset", *shlex.split(data), *own["dataset"], *where] for data, line in lines.items()]


def run_all(given: Sequence[str]) -> int:
    """Run all detectors; the exit code of the command line that failed last, or of that which was interrupted."""
    path = given[0] if given and not given[0].startswith("-") else None
    code = 0
    for line in words_of_all(path, given[path is not None :]):
        done = subprocess.run([sys.executable, str(MAIN), *line]).returncode
        if done not in (0, 1):
            return done
        code = done or code
    return code


def _flags(command: str) -> dict[str, list[str]]:
    """The flags of a command's options by their names; those of main.py have an empty command."""
    owner = main.get_command(None, command) if command else main
    return {one.name: [*one.opts, *one.secondary_opts] for one in owner.params if isinstance(one, click.Option)}


def _parts(given: Iterable[str]) -> list[list[str]]:
    """Words in parts that start with a flag."""
    parts: list[list[str]] = []
    for word in given:
        if not parts or (word.startswith("-") and not word[1:2].isdecimal()):
            parts.append([])
        parts[-1].append(word)
    return parts


def _set_by(recipe: str) -> Iterable[str]:
    """The options that a recipe of net sets; none where there is no such recipe."""
    from simplenet import SimpleNet

    return SimpleNet.RECIPES.get(recipe, ())


if __name__ == "__main__":
    path, *given = sys.argv[1:] or ["--help"]
    if {"-h", "--help"} & {path, *given}:
        click.echo(__doc__)
    elif path == "all":
        try:
            sys.exit(run_all(given))
        except UsageError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(2)
    else:
        os.execv(sys.executable, [sys.executable, str(MAIN), *words(path, given)])
