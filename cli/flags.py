"""Flags of the command line, made from the dataclasses that declare options."""

import math
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import click

from options import Declared, declared


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


class WholeOrWord(click.IntRange):
    """A whole number in a range, or a word that stands for None."""

    def __init__(self, word: str, *limits: Any) -> None:
        super().__init__(*limits)
        self.word = word
        self.name = f"integer or {word}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        return None if value == self.word else super().convert(value, param, ctx)


class Flag(click.Option):
    """An option with the heading that it is listed under."""

    def __init__(self, *args: Any, group: str = "", **more: Any) -> None:
        super().__init__(*args, **more)
        self.group = group

    def get_help_extra(self, ctx: click.Context) -> Any:
        """As in click, a default in words as it stands."""
        extra = super().get_help_extra(ctx)
        return extra | {"default": self.show_default} if isinstance(self.show_default, str) else extra


def parameters(*kinds: type, group: str = "") -> list[click.Parameter]:
    """The flags and arguments of dataclasses of options, in order, under one heading."""
    return [_parameter(own, group) for kind in kinds for own in declared(kind)]


def recipe(recipes: Mapping[str, Mapping[str, Any]]) -> Flag:
    """The flag that lets one of a detector's recipes, by its name, set other options' defaults."""
    text = (
        "Defaults of the options below. paper: those of the original. stable: other values of noise, discriminators, "
        "rates and score, for a last epoch that needs no picking. memory: that with normal patches to compare with and "
        "matched light, for parts and for sharper maps. The run prints them. A flag that is given wins."
    )
    kind = click.Choice(["paper", *recipes])
    return Flag(
        ["--recipe"], group="Recipe", type=kind, default="paper", help=text, show_default=True, **_presets(recipes)
    )


def _parameter(own: Declared, group: str) -> click.Parameter:
    said = own.option
    if said.argument:
        several = {"nargs": -1} if own.multiple else {}
        needed = own.default is MISSING and not (said.metavar or "").startswith("[")
        return click.Argument([own.name], required=needed, type=_type(own), metavar=said.metavar, **several)
    flags = said.flags or (f"--{own.name}",)
    on, off = ([one for one in flags if one.startswith("--no_") is wanted] for wanted in (False, True))
    if own.name.startswith("no_"):
        on, off = list(flags), []
    names = [own.name, "/".join([on[0], *off]), *on[1:]]
    group = said.group or group
    more: dict[str, Any] = {"default": own.default, "show_default": said.shown or True}
    if own.kind is bool:
        more["is_flag"] = True
    elif said.without_value:
        more |= {"is_flag": False, "flag_value": said.without_value}
    if own.kind is not bool:
        more |= {"type": _type(own), "multiple": own.multiple, "metavar": said.metavar}
    if said.empty_word:
        more["default"] = said.empty_word
    if said.presets:
        more |= _presets(said.presets)
    return Flag(names, help=said.help, group=group, **more)


def _presets(presets: Any) -> dict[str, Any]:
    """Let the value of an option set the defaults of others of its command."""

    def choose(ctx: click.Context, _: click.Parameter, value: Any) -> Any:
        if value in presets:
            ctx.default_map = {**(ctx.default_map or {}), **presets[value]}
        return value

    return {"is_eager": True, "callback": choose}


def _type(own: Declared) -> click.ParamType:
    limits = own.option.range
    ends = limits.low, limits.high, limits.low_open, limits.high_open
    if own.choices:
        return click.Choice(own.choices)
    if own.option.empty_word:
        return WholeOrWord(own.option.empty_word, *ends)
    if own.kind is int:
        return click.IntRange(*ends)
    if own.kind is float:
        return Number(*ends)
    if own.kind is Path:
        return click.Path(path_type=Path, dir_okay=not own.option.is_file)
    return click.STRING
