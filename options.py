"""Options: each is declared once, as a field of a frozen dataclass.

    noise_std: float = option(0.05, "Standard deviation of the noise on features.", at_least=0)

A command's flags and their help (cli/), what --grid may vary, what a detector is built from, what model.json says and
the tables in docs/ are made of such fields. A field of another dataclass stands for the options of that one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from errors import UsageError

T = TypeVar("T")
WIDEST = 1_000_000  # of what is squared


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, each None where there is no limit; open: without that end."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, number: float) -> bool:
        if not math.isfinite(number):
            return False
        above = self.low is None or (number > self.low if self.low_open else number >= self.low)
        return above and (self.high is None or (number < self.high if self.high_open else number <= self.high))

    def __str__(self) -> str:
        """In words, such as "1 or more", "from 0 to 1" or "above 0"."""
        if self.low is not None and self.high is not None and not (self.low_open or self.high_open):
            return f"from {self.low:g} to {self.high:g}"
        low = "" if self.low is None else f"above {self.low:g}" if self.low_open else f"{self.low:g} or more"
        high = "" if self.high is None else f"below {self.high:g}" if self.high_open else f"at most {self.high:g}"
        return " and ".join(filter(None, (low, high))) or "a finite number"


@dataclass(frozen=True)
class Option:
    """What a field says of itself beside its name, type and default.

    Attributes:
        help: a sentence or two for somebody who does not know it.
        flags: on the command line; empty: --NAME. Of a switch, one that starts with --no_ turns it off.
        range: of a number.
        shown: the default in words, where its value says too little.
        metavar: what the value is called in help.
        argument: it stands without a flag.
        group: the heading that it is listed under in help.
        presets: by a value of this option, what it sets of others where they are not given.
        without_value: what the flag alone stands for.
        empty_word: the word for None.
        is_file: a path that is no folder.
        decides_features: runs that differ in it share no feature banks.
        counts: it numbers parts with weights of their own.
        changes_results: whether runs that differ in it may give other numbers.
    """

    help: str
    flags: tuple[str, ...] = ()
    range: Range = Range()
    shown: str | None = None
    metavar: str | None = None
    argument: bool = False
    group: str = ""
    presets: Mapping[Any, Mapping[str, Any]] | None = None
    without_value: str | None = None
    empty_word: str | None = None
    is_file: bool = False
    decides_features: bool = False
    counts: bool = False
    changes_results: bool = True


def option(
    default: Any,
    help: str,
    *flags: str,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    **more: Any,
) -> Any:
    """A field that is an option; `more` are further attributes of Option."""
    low, high = above if at_least is None else at_least, below if at_most is None else at_most
    own = Range(low, high, above is not None, below is not None)
    return field(default=default, metadata={"option": Option(help, flags, own, **more)})


def redefined(kind: type, name: str, default: Any) -> Any:
    """An option of a dataclass for one that is based on it, with another default."""
    (base,) = (own for own in fields(kind) if own.name == name)
    return field(default=default, metadata=base.metadata)


@dataclass(frozen=True)
class Declared:
    """An option as its dataclass declares it.

    Attributes:
        path: of the field; of several names all but the last are fields of other dataclasses.
        kind: bool, int, float, str, Path or a Literal's values.
        default: of the field.
        option: what else it says.
        multiple: whether it may be given several times: the field is a tuple.
        optional: whether it may be None.
    """

    path: tuple[str, ...]
    kind: Any
    default: Any
    option: Option
    multiple: bool
    optional: bool

    @property
    def name(self) -> str:
        return self.path[-1]

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it may be; empty where it is no choice."""
        return self.kind if isinstance(self.kind, tuple) else ()

    def is_one(self, value: Any) -> bool:
        """Whether a value, of JSON or a caller, is of this option's type, whatever its range."""
        if value is None:
            return self.optional
        values = value if self.multiple else [value]
        kind = str if self.choices else self.kind
        return isinstance(values, list | tuple) and all(is_of(own, kind) for own in values)

    def fits(self, value: Any) -> bool:
        """Whether a value is one of this option, and in its range."""
        if value is None or not self.is_one(value):
            return value is None and self.optional
        values = value if self.multiple else [value]
        if self.choices:
            return all(own in self.choices for own in values)
        return all(own in self.option.range for own in values if isinstance(own, int | float))


@cache  # a dataclass says the same every time, and is asked for every task
def declared(kind: type, path: tuple[str, ...] = ()) -> tuple[Declared, ...]:
    """The options of a dataclass, those of the dataclasses that it holds in their place."""
    found: list[Declared] = []
    types = get_type_hints(kind)
    for own in fields(kind):
        if is_dataclass(types[own.name]):
            found += declared(types[own.name], (*path, own.name))
        elif "option" in own.metadata:
            base, multiple, optional = _base(types[own.name])
            found.append(Declared((*path, own.name), base, own.default, own.metadata["option"], multiple, optional))
    return tuple(found)


def build(kind: type[T], values: Mapping[str, Any], **others: Any) -> T:
    """A dataclass of options from their values by name; fields that are no options have their default or `others`."""
    types = get_type_hints(kind)
    made = {
        own.name: build(types[own.name], values) if is_dataclass(types[own.name]) else values[own.name]
        for own in fields(kind)
        if own.name not in others
        and (is_dataclass(types[own.name]) or ("option" in own.metadata and own.name in values))
    }
    return kind(**made, **others)


def as_flags(values: Mapping[str, Any]) -> str:
    """How a command line says values of options, by name."""
    return " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in values.items())


def check(options: Any) -> None:
    """See that all options of an instance are in their ranges.

    Raises:
        UsageError: one is not; what it may be is named.
    """
    for own in declared(type(options)):
        value = options
        for name in own.path:
            value = getattr(value, name)
        if not own.fits(value):
            expected = f"one of {', '.join(own.choices)}" if own.choices else str(own.option.range)
            raise UsageError(f"--{own.name} {value} must be {expected}")


def is_of(value: Any, kind: Any, largest: float = math.inf) -> bool:
    """Whether a value from JSON is of a type; a number must be finite, a whole one neither negative nor too large."""
    if get_origin(kind) is list:
        return isinstance(value, list | tuple) and all(is_of(own, *get_args(kind), largest) for own in value)
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind) and (not isinstance(value, int) or 0 <= value <= largest)


def _base(kind: Any) -> tuple[Any, bool, bool]:
    """Of a field's type what a single value is, whether there may be several, and whether None is one."""
    multiple = optional = False
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (own for own in get_args(kind) if own is not type(None))
        optional = True
    if get_origin(kind) is tuple:
        kind, multiple = get_args(kind)[0], True
    return (get_args(kind) if get_origin(kind) is Literal else kind), multiple, optional
