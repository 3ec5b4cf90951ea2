"""The tables of options in docs/, made from the command line: python -m cli.tables writes them anew.

A page has a table of a command's options between <!-- options: NAME --> and <!-- end -->; NAME is "run", a command, or
"dataset NAME" for the options that one dataset has.
"""

import re
from pathlib import Path

import click

from cli.commands import main
from files import write_text

DOCS = Path(__file__).parent.parent / "docs"
MARKS = re.compile(r"(<!-- options: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """A page's text with its tables as they should be."""
    return MARKS.sub(lambda found: f"{found[1]}\n{table(found[2])}\n\n{found[3]}", page)


def table(name: str) -> str:
    """The options of NAME in Markdown.

    Raises:
        KeyError: there is no such command, or it has none.
    """
    command, _, own = name.partition(" ")
    owner = main if command == "run" else main.get_command(None, command)
    group = f"Dataset {own}" if own else ""
    flags = [one for one in getattr(owner, "params", []) if isinstance(one, click.Option) and _is_of(one, group)]
    if not flags:
        raise KeyError(name)
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *map(_row, flags)])


def _is_of(flag: click.Option, group: str) -> bool:
    """Whether a flag stands under a heading; those of datasets alone stand under theirs."""
    own = getattr(flag, "group", "")
    return own == group if group else not own.startswith("Dataset ")


def _row(flag: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in [*flag.opts, *flag.secondary_opts])
    cells = [names, _default(flag), f"{flag.help}{_values(flag)}"]
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _default(flag: click.Option) -> str:
    if isinstance(flag.show_default, str):
        return flag.show_default
    default = flag.get_default(click.Context(click.Command(None)))
    if flag.is_flag:
        return "on" if default else "off"
    values = default if isinstance(default, list | tuple) else [] if default is None else [default]
    return ", ".join(f"`{value:g}`" if isinstance(value, float) else f"`{value}`" for value in values)


def _values(flag: click.Option) -> str:
    """What a value may be, where help does not say it."""
    kind = flag.type
    if isinstance(kind, click.Choice):
        missing = [f"`{choice}`" for choice in kind.choices if choice not in (flag.help or "")]
        return f" One of {', '.join(f'`{one}`' for one in kind.choices)}." if missing else ""
    return " Repeatable." if flag.multiple and "epeatable" not in (flag.help or "") else ""


if __name__ == "__main__":
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            write_text(path, new)
            click.echo(f"Wrote the tables of {path.relative_to(DOCS)}")
