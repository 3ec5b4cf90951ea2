"""The two ways a user can be told that something is wrong; main.py turns them into one line and an exit code."""


class UsageError(ValueError):
    """A flag or an argument has a value that cannot work (exit code 2)."""


class DataError(RuntimeError):
    """A file or folder is not what it should be (exit code 1)."""


def first_line(error: Exception) -> str:
    """What an error says, short enough to stand in another's line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
