"""The models that are served, and the one thread that they work in: one image at a time, first come, first served."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

from errors import UsageError
from experiment.machine.memory import one_line_when_full
from experiment.serve.answers import Asked, answer
from experiment.use.finding import Finder

T = TypeVar("T")
ADVICE = "send a smaller image, or free some memory"


class Engine:
    """Trained models of images by name, the first of which is asked where none is named."""

    def __init__(self, finders: Mapping[str, Finder]) -> None:
        self.finders = finders
        self._worker = ThreadPoolExecutor(1, "models")
        self._folder = tempfile.TemporaryDirectory(prefix="serve-", ignore_cleanup_errors=True)

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Let the thread do something, once it has done all that it was given before."""
        return self._worker.submit(function, *args)

    def finder(self, name: str | None) -> Finder:
        """The model of a name.

        Raises:
            UsageError: there is none.
        """
        if name is None:
            return next(iter(self.finders.values()))
        if name not in self.finders:
            raise UsageError(f"no model '{name}': expected {', '.join(self.finders)}")
        return self.finders[name]

    def of_upload(self, file: IO[bytes], shown: str, asked: Asked) -> dict[str, Any]:
        """What is found in an image that somebody sent; to be done in the thread.

        Raises:
            DataError: it cannot be read, or is too large.
        """
        path = Path(self._folder.name) / "upload"  # one at a time; no name from outside is part of a path
        with one_line_when_full(ADVICE):
            try:
                with path.open("wb") as copy:
                    shutil.copyfileobj(file, copy)
                finder = self.finder(asked.model)
                return answer(finder, finder.find(path, shown, is_foreign=True), shown, asked)
            finally:
                path.unlink(missing_ok=True)

    def of_file(self, path: Path, shown: str, asked: Asked) -> dict[str, Any]:
        """What is found in a file of this machine's; to be done in the thread.

        Raises:
            DataError: as of_upload.
        """
        with one_line_when_full(ADVICE):
            finder = self.finder(asked.model)
            return answer(finder, finder.find(path, shown), shown, asked)

    def close(self) -> None:
        """End the thread when it has done what it is at."""
        self._worker.shutdown(cancel_futures=True)
        self._folder.cleanup()
