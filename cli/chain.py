"""What the command line needs beyond click: commands made when they are asked for, links that a grid can vary."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import click

from cli.flags import Flag
from errors import UsageError

CHOICE = f"{__name__}.choice"  # of --grid, in a context's meta
DETECTORS = f"{__name__}.detectors"  # of each of the command line, in order, what a choice sets of others' defaults
LINKS = f"{__name__}.links"  # of each link of it, in order, what it is called

Defaults = Mapping[str, Mapping[str, Any]]  # of options, by the name of their link
Sections = Mapping[str, Mapping[str, tuple[str, Callable[[], click.Command]]]]


class Chain(click.Group):
    """The chain of commands, each made when it is asked for; --ray may stand right before one, without an address.

    Args:
        sections: gives, by the heading in help, by a command's name what it does and the function that makes it.
    """

    def __init__(self, *args: Any, sections: Callable[[], Sections], **more: Any) -> None:
        super().__init__(*args, **more)
        self.sections = sections
        self.made: dict[str, click.Command] = {}

    def list_commands(self, ctx: click.Context | None) -> list[str]:
        return [name for section in self.sections().values() for name in section]

    def get_command(self, ctx: click.Context | None, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.made:
            for section in self.sections().values():
                if cmd_name in section:
                    self.made[cmd_name] = section[cmd_name][1]()
        return self.made.get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What --help lists, without making any of it."""
        for heading, section in self.sections().items():
            with formatter.section(heading):
                formatter.write_dl([(name, summary) for name, (summary, _) in section.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names, following = self.list_commands(ctx), zip(args, [*args[1:], ""], strict=True)
        return super().parse_args(ctx, ["--ray=local" if a == "--ray" and b in names else a for a, b in following])


class Grouped(click.Command):
    """A command whose options are listed under their headings.

    Args:
        lists: by a heading, what else help lists, each with what it is.
    """

    def __init__(self, *args: Any, lists: Mapping[str, Mapping[str, str]] | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self.lists = lists or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {heading: [*own.items()] for heading, own in self.lists.items()}
        for option in self.get_params(ctx):
            if isinstance(option, click.Option) and (record := option.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(option, "group", "") or "Options", []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class Given(NamedTuple):
    """What a link of a command line is called.

    Attributes:
        command: the link's.
        called: by the user; None where it has no name of its own.
        names: by every word that names an option of it, the option's name.
    """

    command: str
    called: str | None
    names: dict[str, str]


class Link(Grouped):
    """A link of the chain: gives a configuration for every choice of --grid, whose values win over given ones.

    Args:
        defaults: of a detector, what its values make of other links' defaults; None of a link that all detectors
            share.
    """

    def __init__(
        self, *args: Any, defaults: Callable[[Mapping[str, Any]], Defaults] | None = None, **extra: Any
    ) -> None:
        super().__init__(*args, **extra)
        self.defaults = defaults

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        words = list(args)
        ctx = super().make_context(info_name, args, parent, **extra)
        ctx.obj = words, extra
        if self.defaults is not None:
            ctx.meta.setdefault(DETECTORS, []).append(partial(self._set_by, ctx.params))
        return ctx

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As in click, but the name of a command, where another word follows, is none of the optional arguments."""
        rest = super().parse_args(ctx, args)
        chain = ctx.parent and ctx.parent.command
        commands = chain.list_commands(ctx) if isinstance(chain, Chain) else []
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
        """A configuration for every choice, in order; of a link that detectors share those behind each of them."""
        given, detectors = Given(self.name, ctx.params.get("called"), self._names), ctx.meta.get(DETECTORS, [])
        ctx.meta.setdefault(LINKS, []).append(given)
        if self.defaults is None:
            return [config for own in detectors or [_nothing] for config in self._configs(ctx, own)]
        try:
            return self._configs(ctx, _nothing)
        except UsageError as error:
            if len(detectors) > 1:
                raise UsageError(f"{given.called or given.command}: {error}") from error
            raise

    @property
    def _names(self) -> dict[str, str]:
        """The names of its options by every word for them."""
        return {
            flag.lstrip("-"): option.name for option in self.params if isinstance(option, Flag) for flag in option.opts
        }

    def _chosen(self, choice: Mapping[str, str]) -> dict[str, str]:
        """What a choice of --grid sets of its options."""
        names = self._names
        return {names[flag]: value for flag, value in choice.items() if flag in names}

    def _set_by(self, values: Mapping[str, Any], choice: Mapping[str, str]) -> Defaults:
        """Defaults of other links where its options have these values, and what a choice of --grid sets of them."""
        return self.defaults({**values, **self._chosen(choice)})

    def _configs(self, ctx: click.Context, defaults: Callable[[Mapping[str, str]], Defaults]) -> list[Any]:
        """A configuration for every choice, where others set defaults; one object for those that choose the same."""
        words, extra = ctx.obj
        configs: dict[tuple[tuple[str, Any], ...], Any] = {}
        chosen = []
        for choice in ctx.find_root().params.get("grid", [{}]):
            own, preset = self._chosen(choice), defaults(choice).get(ctx.info_name, {})
            chosen.append((*own.items(), *preset.items()))
            if chosen[-1] not in configs:
                ctx.meta[CHOICE] = own
                more = {**extra, "default_map": preset}
                with super().make_context(ctx.info_name, list(words), ctx.parent, **more) as again:
                    configs[chosen[-1]] = super().invoke(again)
        return [configs[own] for own in chosen]


def _nothing(_: Mapping[str, str]) -> Defaults:
    """What sets no defaults."""
    return {}


class Standalone(Grouped):
    """A command that is no link of the chain: its options may follow its arguments."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        return super().make_context(
            info_name, args, parent, **{**extra, "allow_extra_args": False, "allow_interspersed_args": True}
        )
