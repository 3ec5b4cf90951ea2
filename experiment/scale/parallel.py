"""Jobs on several devices and machines at once, by Ray: tasks out, results and progress back, in one display."""

import contextlib
import io
import os
import shutil
import signal
import socket
import sys
import tarfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from detection.precision import PRECISIONS, precision_name
from errors import DataError, Interrupted, UsageError, first_line
from experiment.config import LOCAL, RunConfig
from experiment.machine.device import best_precision, choose_device
from experiment.machine.progress import progress
from experiment.plan.task import Task, group
from experiment.record.ledger import Outcome
from experiment.record.lock import holder
from experiment.scale.worker import Answer, Display, Settings, describe, do
from files import move, partial

ROOT = Path(__file__).parent.parent.parent
UNSENT = [".git", ".venv", "results", "predictions", "docs", "tests", "**/__pycache__"]
RETRIES = 5  # of tasks whose worker died
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray reports to its makers otherwise
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}  # as main.py sets it


def choose_cluster(run: RunConfig) -> "Cluster | None":
    """What runs the jobs, where the command line asks for several at once or for Ray; not started yet.

    Raises:
        UsageError: flags that contradict each other or the machine, or Ray is not installed.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = list(dict.fromkeys(run.gpu)) if count else []
    here = run.ray in (None, LOCAL)
    if not here and run.gpu != (0,):
        raise UsageError(f"--gpu names devices of this machine, and --ray {run.ray} uses its cluster's: leave it out")
    if here and count and run.jobs is not None:
        raise UsageError("--jobs is for CPUs, and this machine has CUDA devices: give --gpu and --jobs_per_gpu")
    if here and not count and run.jobs_per_gpu > 1:
        raise UsageError(f"--jobs_per_gpu {run.jobs_per_gpu} needs a CUDA device, which was not found: give --jobs")
    if run.ray is None and (run.jobs or 1) == 1 and len(gpus) * run.jobs_per_gpu <= 1:
        return None
    if run.ray and run.ray.startswith("ray://"):
        raise UsageError(
            f"--ray {run.ray} is Ray Client's: run the command on a machine of the cluster with --ray auto"
        )
    try:
        import ray  # noqa: F401
    except ImportError as error:
        flag = "--ray" if run.ray else "--jobs" if run.jobs else "several jobs at once on --gpu"
        raise UsageError(f"{flag} needs Ray: pip install -r requirements-ray.txt") from error
    if here:
        choose_device(run.gpu)
    return Cluster(run, gpus if here else None)


class Cluster:
    """Workers of a Ray cluster, started or joined as a context.

    Args:
        run: the run options.
        gpus: the CUDA devices of this machine to start Ray on, which may be none; None joins the cluster of --ray.

    Attributes:
        device_name: of what computes.
    """

    def __init__(self, run: RunConfig, gpus: list[int] | None) -> None:
        self.run = run
        self.gpus = gpus
        self.device_name = ""
        self.signal = 0  # that ends the run

    def __enter__(self) -> "Cluster":
        import ray

        os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
        paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))  # where workers import this from
        threads = torch.get_num_threads()
        if self.gpus is None:
            environment = {"working_dir": str(ROOT), "excludes": UNSENT, "env_vars": HUGE_PAGES}
            options = {"address": self.run.ray, "runtime_env": environment}
        else:
            slots = len(self.gpus) * self.run.jobs_per_gpu or self.run.jobs or os.cpu_count() or 1
            options = {"address": "local", "num_cpus": slots, "num_gpus": len(self.gpus), "include_dashboard": False}
            options["object_store_memory"] = 10**8  # results are small
        with contextlib.ExitStack() as stack:
            stack.callback(ray.shutdown)
            try:
                _check_address(self.run.ray)
                with _visible(self.gpus):
                    ray.init(**options, log_to_driver=False, logging_level="error")
            except (OSError, RuntimeError, ValueError) as error:
                raise UsageError(f"--ray {self.run.ray or LOCAL}: cannot join Ray ({first_line(error)})") from error
            stack.enter_context(self._noting_signals())
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # what Ray says of workers that died
            self._divide(ray.cluster_resources(), threads)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def _noting_signals(self) -> Iterator[None]:
        """Keep signals for between two calls of Ray, which would make errors of its own of an exception."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, _: Any) -> None:
            self.signal = number

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _divide(self, resources: Mapping[str, float], threads: int) -> None:
        """Find how many jobs run at once, on what each, and what that is called."""
        import ray

        cpus, gpus = int(resources.get("CPU", 1)), resources.get("GPU", 0)
        self.on_gpu = gpus > 0
        if self.on_gpu:
            if self.run.jobs is not None:
                raise UsageError("--jobs is for CPUs, and the cluster has GPUs: give --jobs_per_gpu")
            self.slots, self.threads = int(gpus * self.run.jobs_per_gpu), 1
            self.needs = {"num_gpus": 1 / self.run.jobs_per_gpu, "num_cpus": 1}
        else:
            if self.run.jobs_per_gpu > 1:
                raise UsageError("--jobs_per_gpu needs a GPU, and the cluster has none: give --jobs")
            self.slots = max(1, min(self.run.jobs or cpus, cpus))
            on_one_machine = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
            each = max(1, min(cpus // self.slots, on_one_machine))
            self.needs = {"num_cpus": each}
            self.threads = each if self.gpus is None else max(1, threads // self.slots)
        if self.gpus == []:  # what is here needs no asking
            self.device_name, self._auto = f"cpu, {self.threads} threads", best_precision(torch.device("cpu"))
        else:
            asked = ray.remote(**self.needs, max_retries=RETRIES)(describe)
            self.device_name, self._auto = ray.get(asked.remote(self.threads, self.on_gpu))
        where = f"Ray at {self.run.ray}" if self.gpus is None else "this machine"
        click.echo(f"Running {self.slots} jobs at once on {where} ({self.device_name} each)", err=True)

    def choose_precision(self, name: str) -> torch.dtype:
        """As experiment.machine.device.choose_precision, of what computes."""
        name = self._auto if name == "auto" else name
        click.echo(f"Computing in {name}", err=True)
        return PRECISIONS[name]

    def work(self, tasks: Sequence[Task], precision: torch.dtype) -> Generator[tuple[Task, Outcome], None, None]:
        """Do all tasks and show their progress; what ends first is given first.

        Raises:
            DataError: workers die again and again.
            Interrupted: by a signal.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        display = ray.remote(num_cpus=0, scheduling_strategy=here)(Display).remote()
        start = ray.remote(**self.needs, max_retries=RETRIES, num_returns="streaming")(do)
        jobs = -(-self.slots // sum(node["Alive"] for node in ray.nodes()))
        settings = Settings(precision_name(precision), self.threads, self.on_gpu, holder(), socket.gethostname(), jobs)
        waiting: dict[Any, Iterator[Task]] = {}
        for shared in split([[task for own in same for task in own] for same in group(tasks)], 2 * self.slots):
            waiting[start.remote([_sent(task) for task in shared], settings, display)] = iter(shared)
        with progress("jobs", total=len(tasks), unit="job") as bar:
            bar.bar_format = "{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}{postfix}]"
            while waiting:
                ready, _ = ray.wait(list(waiting), timeout=0.5)
                for stream in ready:
                    if (answer := _next_answer(stream)) is None:
                        del waiting[stream]
                        continue
                    task = next(waiting[stream])
                    _unpack(task, answer)
                    yield task, answer.outcome
                _show(bar, *_taken(display))
                if self.signal:
                    raise Interrupted(self.signal)


def _check_address(address: str | None) -> None:
    """Raise OSError where nobody listens at HOST:PORT, since Ray itself waits for ten minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _taken(display: Any) -> tuple[dict[str, float], list[str]]:
    """What workers have told the display since it was last asked.

    Raises:
        DataError: Ray has ended it, as where memory runs out.
    """
    import ray

    try:
        return ray.get(display.take.remote())
    except ray.exceptions.RayError as error:
        raise DataError(f"Ray has ended the run's display ({first_line(error)}): the same command continues") from error


def _next_answer(stream: Any) -> Answer | None:
    """What a stream of answers has ready; None at its end.

    Raises:
        DataError: its workers died again and again.
    """
    import ray

    try:
        return ray.get(next(stream))
    except StopIteration:
        return None
    except ray.exceptions.RayTaskError:  # a fault of ours, with its traceback
        raise
    except ray.exceptions.RayError as error:
        raise DataError(
            f"{1 + RETRIES} workers died at one job ({first_line(error)}): the same command continues"
        ) from error


def split(groups: list[list[Task]], count: int) -> list[list[Task]]:
    """Halve the largest groups until there are so many, if there can be; the largest first, so that small ones end."""

    def size(tasks: list[Task]) -> int:
        return sum(len(job.samples.train) for task in tasks for job in task.jobs)

    groups = list(groups)
    while len(groups) < count and (several := [tasks for tasks in groups if len(tasks) > 1]):
        largest = max(several, key=size)
        groups.remove(largest)
        half = len(largest) // 2
        groups += [largest[:half], largest[half:]]
    return sorted(groups, key=size, reverse=True)


def _sent(task: Task) -> Task:
    """A task whose paths do not depend on the working directory."""
    jobs = tuple(replace(job, folder=job.folder.absolute(), root=job.root.absolute()) for job in task.jobs)
    given = task.detector.backbone_weights
    weights = given if given in ("pretrained", "random") else str(Path(given).absolute())
    return replace(task, jobs=jobs, detector=replace(task.detector, backbone_weights=weights))


def _unpack(task: Task, answer: Answer) -> None:
    """Put the folders of finished jobs in their place, where their worker could not."""
    for job, packed in zip(task.jobs, answer.archives or [], strict=answer.archives is not None):
        temporary = partial(job.folder)
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(temporary, filter="data")
        shutil.rmtree(job.folder, ignore_errors=True)  # of a process that died between two of a task's jobs
        move(temporary, job.folder)


def _show(bar: tqdm, shares: dict[str, float], lines: list[str]) -> None:
    for line in lines:
        bar.write(line, file=sys.stderr)
    bar.n = sum(shares.values())
    running = [f"{title} {share:.0%}" for title, share in shares.items() if 0 < share < 1]
    bar.set_postfix_str(", ".join(running), refresh=False)
    bar.update(0)


@contextlib.contextmanager
def _visible(gpus: list[int] | None) -> Iterator[None]:
    """Let what is started here see some of the CUDA devices only."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus:
        known = before.split(",") if before else [str(i) for i in range(torch.cuda.device_count())]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(known[i] for i in gpus)
    try:
        yield
    finally:
        if gpus and before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        elif gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
