"""The command line: a chain of commands, each made from a dataclass of options."""

from cli.commands import imported, main

__all__ = ["imported", "main"]
