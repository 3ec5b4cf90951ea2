"""--grid: what each of its runs chooses."""

import itertools

import click

from cli.chain import USED


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


def named_grid(ctx: click.Context, grid: list[dict[str, str]]) -> list[dict[str, str]]:
    """The choices by the names of their options.

    Raises:
        click.BadParameter: a flag of no link that is given, which would vary nothing, or two flags of one option.
    """
    names: dict[str, str] = ctx.meta.get(USED, {})
    for flag in grid[0]:
        if flag not in names:
            raise click.BadParameter(f"'{flag}' is no option of the commands given.", ctx, param_hint="--grid")
    if len({names[flag] for flag in grid[0]}) < len(grid[0]):
        raise click.BadParameter(f"one of {', '.join(grid[0])} is given twice.", ctx, param_hint="--grid")
    return [{names[flag]: value for flag, value in choice.items()} for choice in grid]
