"""Jobs at once by Ray: the bytes of a sequential run, whatever happens to the workers."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import commands
import pytest
import torch
from commands import ROOT, wait_for
from conftest import SMALL_DATA, SMALL_NET, make_mvtec, small
from hypothesis import given
from hypothesis import strategies as st
from ray.cluster_utils import Cluster as Nodes
from test_ensemble import WORDS as ENSEMBLE
from test_grid import csvs

import main
from errors import DataError, UsageError
from experiment.config import RunConfig
from experiment.machine import device
from experiment.record.lock import holder
from experiment.scale import parallel, worker

GRID = ["--grid", "dsc_hidden=8,6"]


def folder(tmp_path, name="test"):
    return tmp_path / "results" / "project" / "group" / name


def chain(tmp_path, *net):
    return [*SMALL_NET, "--meta_epochs", "3", *net, "dataset", *SMALL_DATA, "mvtec", tmp_path / "mvtec"]


def start(tmp_path, *words):
    command = [sys.executable, str(ROOT / "main.py"), *map(str, words)]
    return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)


def workers(folder):
    """The numbers of the processes that do tasks, by a part of the path of their working folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::do" in (path / "cmdline").read_bytes() and folder in str((path / "cwd").readlink()):
                found.append(int(path.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.fixture
def far(tmp_path):
    """What starts a process that sees another, empty results folder, as on a machine without shared storage."""
    results = tmp_path / "results"
    results.mkdir()
    hidden = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none '{results}' && exec \"$@\"", "sh"]
    if subprocess.run([*hidden, "true"], capture_output=True).returncode:
        pytest.skip("no right to mount a folder")
    return hidden


def test_two_nodes_give_the_bytes_of_one_process(run_main, tmp_path, far):
    """On two nodes, one of which does not see the results and sends them, and a worker of which is killed at work."""
    make_mvtec(tmp_path / "mvtec", ["a", "b", "c"])
    words = [*GRID, *chain(tmp_path, "--meta_epochs", "10")]
    whole = run_main("--run_name", "whole", *words)
    assert whole.returncode == 0, whole.stderr
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1})
    address = nodes.address
    ray = [Path(sys.executable).with_name("ray"), "start", f"--address={address}", "--num-cpus=1", "--block"]
    node = subprocess.Popen([*far, *ray], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(lambda: sum(one["Alive"] for one in nodes.global_state.node_table()) == 2, node)
        process = start(tmp_path, "--ray", address, *words)
        wait_for(lambda: list(folder(tmp_path).glob("*/models/*/.*.partial/state.pt")), process)
        os.kill(wait_for(lambda: workers(nodes.head_node.get_session_dir_path()), process)[0], signal.SIGKILL)
        errors = process.communicate()[1]
    finally:
        os.killpg(node.pid, signal.SIGTERM)
        node.wait()
        nodes.shutdown()
    assert process.returncode == 0, errors
    assert f"Running 2 jobs at once on Ray at {address} (cpu, 1 threads each)" in errors
    assert csvs(folder(tmp_path)) == csvs(folder(tmp_path, "whole"))
    assert len(csvs(folder(tmp_path))) == 1 + 2 * (4 + 3)
    report = run_main("report", folder(tmp_path))  # pictures and checkpoints came too
    assert report.returncode == 0, report.stderr


def test_ctrl_c_ends_all_workers_and_the_run_goes_on(run_main, tmp_path):
    """With a class that is skipped; and without workers."""
    make_mvtec(tmp_path / "mvtec", ["a", "b", "bad"])
    (tmp_path / "mvtec/bad/train/good/000.png").write_bytes(b"no image")
    words = ["--on_error", "skip", *chain(tmp_path, "--meta_epochs", "40")]
    assert "1 of 3 jobs failed" in run_main("--run_name", "whole", *words).stderr
    process = start(tmp_path, "--jobs", "2", *words)
    wait_for(lambda: list(folder(tmp_path).glob("models/*/.*.partial/state.pt")), process)
    assert workers(str(tmp_path))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    errors = process.communicate()[1]
    assert process.returncode == 130, errors
    assert "of 3 jobs are finished; the same command continues the run" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    wait_for(lambda: not workers(str(tmp_path)))
    assert "Running 2 jobs at once on this machine" in errors
    done = run_main(*words)
    assert done.returncode == 1 and "1 of 3 jobs failed" in done.stderr, done.stderr
    assert csvs(folder(tmp_path)) == csvs(folder(tmp_path, "whole"))


def test_detectors_of_banks_give_the_bytes_of_one_process(tmp_path, mvtec, caught_tasks, monkeypatch):
    """As a worker does them, from which the folders are sent: nobody holds the locks of these runs."""
    for name, value in {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), **parallel.QUIET}.items():
        monkeypatch.setenv(name, value)
    banks = {name: small(name) for name in ("patchcore", "reconpatch", "cpr")} | {"ensemble": ENSEMBLE}
    data = ["dataset", *SMALL_DATA, "--train_val_split", "0.5", "-d", "bolt", "mvtec", str(mvtec)]
    words = {name: ["--precision", "fp32", *own, *data] for name, own in banks.items()}
    tasks = [task for name, own in words.items() for task in caught_tasks(["--run_name", name, *own])]
    with parallel.Cluster(config(ray=parallel.LOCAL, jobs=1), []) as cluster:
        outcomes = [outcome for _, outcome in cluster.work(tasks, torch.float32)]
    assert [len(outcome) for outcome in outcomes] == [1] * len(banks), outcomes
    for name, own in words.items():
        main.main(["--run_name", f"whole-{name}", *own], standalone_mode=False)
        sent, whole = (folder(tmp_path, one) / "models/0/mvtec_bolt" for one in (name, f"whole-{name}"))
        for file in ("checkpoint.safetensors", "predictions.csv", "model.json"):
            assert (sent / file).read_bytes() == (whole / file).read_bytes(), (name, file)


@pytest.fixture
def tasks(caught_tasks, mvtec):
    """The tasks of a small chain, not done yet."""
    return caught_tasks([*SMALL_NET, "dataset", *SMALL_DATA, "mvtec", mvtec])


def settings(**changes):
    plain = worker.Settings("fp32", torch.get_num_threads(), torch.cuda.is_available(), holder(), socket.gethostname())
    return plain._replace(**changes)


def test_a_machine_that_does_not_see_the_run_sends_the_folder(tasks, display):
    """Without shared storage the driver gets the files a worker wrote, with the bytes of a shared run."""
    sent = list(worker.do([parallel._sent(tasks[0])], settings(holder="process 1 on elsewhere"), display))
    assert sent[0].archives and not tasks[0].jobs[0].folder.exists()
    parallel._unpack(tasks[0], sent[0])
    files = {path.name for path in tasks[0].jobs[0].folder.iterdir()}
    assert {"checkpoint.safetensors", "model.json", "job.json", "predictions.csv"} <= files
    assert ("mvtec_bolt seed 0", 1.0) in display.said
    lock = tasks[1].jobs[0].folder.parents[2] / ".lock"
    lock.write_text(holder())
    own = list(worker.do([parallel._sent(task) for task in tasks[1:]], settings(), display))
    assert own[0].archives is None and tasks[1].jobs[0].folder.exists()
    again = list(worker.do([parallel._sent(task) for task in tasks[1:]], settings(), display))
    assert again == own  # a worker that died after its first job: it is read


def test_workers_test_what_they_trained(tasks, display):
    """What a task's jobs gave in training is what --test gives of their models."""
    lock = tasks[0].jobs[0].folder.parents[2] / ".lock"
    lock.write_text(holder())
    trained = [answer.outcome for answer in worker.do([parallel._sent(task) for task in tasks], settings(), display)]
    before = [(task.jobs[0].folder / "predictions.csv").read_bytes() for task in tasks]
    tests = [parallel._sent(replace(task, run=replace(task.run, test=True))) for task in tasks]
    tested = [answer.outcome for answer in worker.do(tests, settings(), display)]
    assert [[job.row for job in outcome] for outcome in tested] == [[job.row for job in outcome] for outcome in trained]
    assert [(task.jobs[0].folder / "predictions.csv").read_bytes() for task in tasks] == before


def test_what_a_host_lacks_names_it(tasks, display, tmp_path):
    task = replace(tasks[0], jobs=(replace(tasks[0].jobs[0], root=tmp_path / "gone"),))
    answer = next(worker.do([task], settings(), display))
    assert str(answer.outcome).startswith(f"DATA_PATH '{tmp_path / 'gone'}' does not exist on host")
    test = replace(tasks[0], run=replace(tasks[0].run, test=True))
    answer = next(worker.do([test], settings(holder="process 1 on elsewhere"), display))
    assert "--test needs a --results_path that all machines see" in str(answer.outcome)
    broken = replace(tasks[0], problem="'x.png' is no image")
    answer = next(worker.do([broken], settings(host="elsewhere"), display))
    assert str(answer.outcome) == f"'x.png' is no image (on host {socket.gethostname()})"


@given(st.lists(st.integers(1, 9), max_size=6), st.integers(1, 30))
def test_groups_are_split_no_more_than_needed(sizes, count):
    job = SimpleNamespace(jobs=[SimpleNamespace(samples=SimpleNamespace(train=[0]))])
    groups = [[replace_id(job, (i, j)) for j in range(size)] for i, size in enumerate(sizes)]
    parts = parallel.split(groups, count)
    assert sorted(one.id for part in parts for one in part) == sorted(one.id for own in groups for one in own)
    assert all(len({one.id[0] for one in part}) == 1 for part in parts)
    assert len(parts) == (len(sizes) if len(sizes) >= count else min(count, sum(sizes)))


def replace_id(job, number):
    return SimpleNamespace(**vars(job), id=number)


def config(**options):
    return RunConfig(Path("results"), options.pop("gpu", (0,)), (0,), "group", "project", "test", **options)


@pytest.mark.parametrize(
    ("options", "cuda", "message"),
    [
        ({"jobs": 2}, 1, "--jobs is for CPUs"),
        ({"jobs_per_gpu": 2}, 0, "needs a CUDA device"),
        ({"ray": "ray://head:10001"}, 0, "--ray auto"),
        ({"gpu": (0, 2)}, 2, "--gpu 2 does not exist"),
    ],
)
def test_flags_that_contradict_the_machine(monkeypatch, options, cuda, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "card")
    monkeypatch.setattr(device.os.environ, "setdefault", lambda *_: None)
    with pytest.raises(UsageError, match=message):
        parallel.choose_cluster(config(**options))


def test_one_job_at_a_time_needs_no_cluster(monkeypatch):
    assert parallel.choose_cluster(config()) is None
    assert parallel.choose_cluster(config(jobs=1)) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert parallel.choose_cluster(config(gpu=(1,))) is None
    monkeypatch.setattr(parallel, "choose_device", lambda gpu: None)
    assert parallel.choose_cluster(config(gpu=(1, 3))).gpus == [1, 3]
    assert parallel.choose_cluster(config(gpu=(1,), jobs_per_gpu=2)).gpus == [1]
    assert parallel.choose_cluster(config(ray="auto")).gpus is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    with parallel._visible([1, 3]):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"


def test_a_display_that_ray_has_ended_is_one_line():
    import ray

    def gone():
        raise ray.exceptions.RayError("2 worker(s) were killed\nas memory ran low")

    with pytest.raises(DataError, match=r"Ray has ended the run's display .*killed.*: the same command continues$"):
        parallel._taken(SimpleNamespace(take=SimpleNamespace(remote=gone)))


def hide_ray():
    sys.modules["ray"] = None


@pytest.mark.parametrize("flags", [["--ray"], ["--jobs", "2"]])
def test_without_ray_the_flag_says_what_to_install(tmp_path, mvtec, flags):
    words = [*flags, *SMALL_NET, "dataset", *SMALL_DATA, "mvtec", str(mvtec)]
    done = commands.run(words, tmp_path, before=hide_ray)
    assert done.returncode == 2
    assert f"{flags[0]} needs Ray: pip install -r requirements-ray.txt" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "results").exists()


def test_an_address_where_no_cluster_is(run_main, tmp_path):
    make_mvtec(tmp_path / "mvtec", ["a"])
    done = run_main("--ray", "127.0.0.1:1", *chain(tmp_path))
    assert done.returncode == 2
    assert "Error: --ray 127.0.0.1:1: cannot join Ray" in done.stderr.splitlines()[-1], done.stderr
