"""main.py's command line, in forks of a process that has imported all that it may need.

A process of one's own takes seconds to import what a small run needs for a moment. The process that is forked is
started once, computes nothing, and has no threads. What depends on how a process starts is tested in real ones.
"""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMPORTED = [
    *["main", "commands", "experiment.run"],
    *["experiment.show.report", "experiment.use.predict", "experiment.use.export"],
    *["torch._dynamo", "torchvision.transforms.v2", "torch.utils.tensorboard", "pandas", "tabulate", "scipy.ndimage"],
    *["sklearn.cluster", "sklearn.covariance", "sklearn.exceptions", "looked_at"],
]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(IMPORTED)


class Command:
    """A command line at work, with what tests need of subprocess.Popen's face.

    Args:
        words: what follows main.py.
        where: the folder that it works in.
        stdin: what it may read.
        env: its environment.
        before: called in the process first; a function of a module.
    """

    def __init__(
        self,
        words: Sequence[object],
        where: Path,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._streams = tuple(Path(self._folder.name) / name for name in ("stdout", "stderr"))
        given = [str(word) for word in words], where, self._streams, stdin, dict(os.environ if env is None else env)
        self._process = FORKS.Process(target=_work, args=(*given, before))
        path = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])  # read when the first fork is made
        try:
            self._process.start()
        finally:
            os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("main.py", timeout)
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """Wait for its end; what it wrote to standard output and error."""
        self.wait()
        return tuple(path.read_text() if path.exists() else "" for path in self._streams)


def keep_every_state() -> None:
    """For `before`: the state of training is written after every meta epoch."""
    import experiment.train.train

    experiment.train.train.STATE_SECONDS = 0


def stop_at_the_first_state() -> None:
    """For `before`: the process stops once it has written a state of training, however soon it would be done."""
    import experiment.train.train as train

    write = train.write_state

    def write_and_stop(*given: object) -> None:
        write(*given)
        os.kill(os.getpid(), signal.SIGSTOP)

    train.STATE_SECONDS, train.write_state = 0, write_and_stop


def wait_for(condition: Callable[[], object], process: "Command | subprocess.Popen[str] | None" = None) -> object:
    """Wait until a condition holds, and give what it gives.

    Raises:
        AssertionError: the process that should bring it about has ended, with what it said.
    """
    while not (found := condition()):
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)
    return found


def run(words: Sequence[object], where: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """A command line until its end; options as of Command."""
    command = Command(words, where, **options)
    output, errors = command.communicate()
    return subprocess.CompletedProcess(list(words), command.returncode, output, errors)


def _work(
    words: list[str],
    where: Path,
    streams: tuple[Path, Path],
    stdin: str,
    env: dict[str, str],
    before: Callable[[], object] | None,
) -> None:
    multiprocessing.set_start_method(None, force=True)  # what it starts itself starts as from any process
    os.chdir(where)
    os.environ.clear()
    os.environ.update(env)
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    sys.stdin = io.StringIO(stdin)
    sys.argv = ["main.py", *words]
    os.fsync = lambda _: None  # no power cut is waited for
    if before is not None:
        before()
    import main

    sys.exit(main.cli())
