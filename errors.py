"""The two ways a user can be told that something is wrong; main.py turns them into one line and an exit code."""


class UsageError(ValueError):
    """A flag or an argument has a value that cannot work (exit code 2)."""


class DataError(RuntimeError):
    """A file or folder is not what it should be (exit code 1)."""
