"""bash run.sh /path/to/mvtec [options]: the paper's recipe on all classes of MVTec AD below the path.

Options are those of main.py, net and dataset in any order (python main.py --help, net --help and dataset --help list
them); each goes to the command that has it and takes the place of the paper's. With --recipe stable the options that
this recipe sets are its own. Without a path, bash run.sh trains the demo on real solar cells.
"""

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from cli.commands import main

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
    else:
        os.execv(sys.executable, [sys.executable, str(MAIN), *words(path, given)])
