"""The ways a user can be told why a command ended; main.py turns them into one line and an exit code."""


class UsageError(ValueError):
    """A flag or an argument has a value that cannot work (exit code 2)."""


class DataError(RuntimeError):
    """A file or folder is not what it should be (exit code 1)."""


class Interrupted(BaseException):
    """The user or the system wants the program to end (exit code 128 + the signal's number).

    Attributes:
        number: of the signal: SIGINT or SIGTERM.
        advice: how far it came and how to go on.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.advice = "what was finished is kept"


def first_line(error: Exception) -> str:
    """What an error says, short enough to stand in another's line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
