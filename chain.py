"""What the command line needs beyond click: links that a grid can vary, commands that stand alone, finite numbers."""

import itertools
import math
from typing import Any

import click

CHOICE = f"{__name__}.choice"  # of --grid, in a context's meta
USED = f"{__name__}.used"  # the names of the options of all links that are given


class Number(click.FloatRange):
    """A finite number in a range; NaN and infinity compare as they like, so they are refused first."""

    name = "number"

    def _describe_range(self) -> str:
        """What --help says of the range: nothing where there is none."""
        return "" if self.min is None and self.max is None else super()._describe_range()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = click.FLOAT.convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return super().convert(value, param, ctx)


class IntOrAuto(click.IntRange):
    """A whole number in a range, or the word auto, which is None."""

    name = "integer or auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        return None if value == "auto" else super().convert(value, param, ctx)


class Chain(click.Group):
    """The chain of commands; --ray may stand right before one, without an address."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        following = zip(args, [*args[1:], ""], strict=True)
        return super().parse_args(
            ctx, ["--ray=local" if a == "--ray" and b in self.commands else a for a, b in following]
        )


class Link(click.Command):
    """A link of the chain: gives a configuration for every choice of --grid, whose values win over given ones.

    Args:
        defaults: by the name of a later link, defaults of its options that this one sets.
    """

    def __init__(self, *args: Any, defaults: dict[str, dict[str, Any]] | None = None, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.defaults = defaults or {}

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        words = list(args)
        ctx = super().make_context(info_name, args, parent, **extra)
        ctx.obj = words, extra
        if parent is not None and self.defaults:
            parent.default_map = self.defaults
        return ctx

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As in click, but the name of a command, where another word follows, is none of the optional arguments."""
        rest = super().parse_args(ctx, args)
        commands = getattr(ctx.parent and ctx.parent.command, "commands", {})
        for argument in self.params:
            if isinstance(argument, click.Argument) and not argument.required:
                word = str(ctx.params[argument.name])
                if word in commands and ctx.args and ctx.args[0] not in commands:
                    ctx.params[argument.name] = None
                    ctx.args = [word, *ctx.args]
        return rest

    def make_parser(self, ctx: click.Context) -> Any:
        parser = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_and_choose(args: list[str]) -> tuple[dict[str, Any], list[str], list[click.Parameter]]:
            given, rest, order = parse(args)
            for option in self.params:
                if option.name in ctx.meta.get(CHOICE, {}):
                    value = ctx.meta[CHOICE][option.name]
                    given[option.name] = value.split("+") if option.multiple else value
            return given, rest, order

        parser.parse_args = parse_and_choose
        return parser

    def invoke(self, ctx: click.Context) -> list[Any]:
        """A configuration for every choice, in order; one object for those that choose the same here."""
        words, extra = ctx.obj
        names = {option.name for option in self.params}
        ctx.meta.setdefault(USED, set()).update(names)
        configs: dict[tuple[tuple[str, str], ...], Any] = {}
        chosen = []
        for choice in ctx.find_root().params.get("grid", [{}]):
            own = {name: value for name, value in choice.items() if name in names}
            chosen.append(tuple(own.items()))
            if chosen[-1] not in configs:
                ctx.meta[CHOICE] = own
                with super().make_context(ctx.info_name, list(words), ctx.parent, **extra) as again:
                    configs[chosen[-1]] = super().invoke(again)
        return [configs[own] for own in chosen]


def parse_grid(ctx: click.Context, _: click.Parameter, grid: tuple[str, ...]) -> list[dict[str, str]]:
    """All choices of a grid, each a value by the name of its option."""
    names = {
        flag.lstrip("-"): option.name
        for link in ctx.command.commands.values()
        if isinstance(link, Link)
        for option in link.params
        if isinstance(option, click.Option)
        for flag in option.opts
    }
    values: dict[str, list[str]] = {}
    for text in grid:
        flag, equals, listed = text.partition("=")
        name, own = names.get(flag.lstrip("-")), listed.split(",")
        if not equals or "" in own:
            raise click.BadParameter(f"expected FLAG=VALUE,VALUE,... such as dsc_hidden=512,1024, not '{text}'.")
        if name is None:
            raise click.BadParameter(f"'{flag}' is no option of a detector or of dataset.")
        if name in values or len(set(own)) < len(own):
            raise click.BadParameter(f"{name} or one of its values is given twice.")
        values[name] = own
    return [dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values())]


def check_grid(ctx: click.Context, grid: list[dict[str, str]]) -> None:
    """Refuse a grid over an option of a link that is not given, which would vary nothing."""
    for name in grid[0]:
        if name not in ctx.meta.get(USED, ()):
            raise click.BadParameter(f"{name} is no option of the commands given.", ctx, param_hint="--grid")


class Standalone(click.Command):
    """A command that is no link of the chain: its options may follow its arguments."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        return super().make_context(
            info_name, args, parent, **{**extra, "allow_extra_args": False, "allow_interspersed_args": True}
        )
