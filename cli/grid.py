"""--grid: what each of its runs chooses."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import click


def parse_grid(_: click.Context, __: click.Parameter, grid: tuple[str, ...]) -> list[dict[str, str]]:
    """All choices of a grid, each a value by the flag that it was written with."""
    values: dict[str, list[str]] = {}
    for text in grid:
        flag, equals, listed = text.partition("=")
        flag, own = flag.lstrip("-"), listed.split(",")
        if not equals or "" in own:
            raise click.BadParameter(f"expected FLAG=VALUE,VALUE,... such as dsc_hidden=512,1024, not '{text}'.")
        if flag in values or len(set(own)) < len(own):
            raise click.BadParameter(f"{flag} or one of its values is given twice.")
        values[flag] = own
    return [dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values())]


def check_grid(ctx: click.Context, grid: Sequence[Mapping[str, str]], links: Iterable[Mapping[str, str]]) -> None:
    """See that every flag of a grid varies something.

    Args:
        ctx: of the command line.
        grid: its choices.
        links: of every link that is given, the names of its options by the words that name them.

    Raises:
        click.BadParameter: a flag of no link that is given.
    """
    known = {word for names in links for word in names}
    for flag in grid[0]:
        if flag not in known:
            raise click.BadParameter(f"'{flag}' is no option of the commands given.", ctx, param_hint="--grid")


def named_grid(
    ctx: click.Context, grid: Sequence[Mapping[str, str]], names: Mapping[str, str]
) -> dict[int, dict[str, str]]:
    """A detector's choices by the names of their options: those flags that neither it nor its data have vary others.

    Args:
        ctx, grid: as of check_grid.
        names: of its options and those of its data, by the words that name them.

    Returns:
        By its place in the grid, the first of the choices that are the same here.

    Raises:
        click.BadParameter: two flags of one option.
    """
    own = [flag for flag in grid[0] if flag in names]
    if len({names[flag] for flag in own}) < len(own):
        raise click.BadParameter(f"one of {', '.join(own)} is given twice.", ctx, param_hint="--grid")
    choices: dict[int, dict[str, str]] = {}
    for i, choice in enumerate(grid):
        named = {names[flag]: choice[flag] for flag in own}
        if named not in choices.values():
            choices[i] = named
    return choices
