"""One writer per folder, by whatever the system has for it; and a system that is no Unix."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from errors import UsageError
from experiment.record import lock
from experiment.record.lock import LOCK, holder, holder_of, only_writer, refuse_where_written


def test_the_holder_is_named_and_nothing_is_changed(tmp_path):
    with only_writer(tmp_path):
        before = (tmp_path / LOCK).read_bytes(), (tmp_path / LOCK).stat()
        assert holder_of(tmp_path) == holder() == before[0].decode()
        for attempt in (lambda: refuse_where_written(tmp_path, "--out"), only_writer(tmp_path, "--out").__enter__):
            with pytest.raises(UsageError, match=f"is being written by {holder()}: .* choose another --out$"):
                attempt()
        assert ((tmp_path / LOCK).read_bytes(), (tmp_path / LOCK).stat().st_mtime_ns) == (
            before[0],
            before[1].st_mtime_ns,
        )
    assert list(tmp_path.iterdir()) == [] and holder_of(tmp_path) == ""
    refuse_where_written(tmp_path, "--out")
    refuse_where_written(tmp_path / "none", "--out")
    assert list(tmp_path.iterdir()) == []


def test_what_a_crashed_process_left_is_no_lock(tmp_path):
    (tmp_path / LOCK).write_text("process 1 on elsewhere, with a long name")
    refuse_where_written(tmp_path, "--out")
    with only_writer(tmp_path):
        assert (tmp_path / LOCK).read_text() == holder()


def test_a_killed_process_whose_readers_live_holds_no_lock(tmp_path):
    """The reader ends when this test lets go of its standard input."""
    code = (
        "import os, pathlib, sys, time\n"
        "from experiment.record.lock import only_writer\n"
        "with only_writer(pathlib.Path(sys.argv[1])):\n"
        "    if os.fork() == 0:\n"
        "        print('forked', flush=True)\n"
        "        sys.stdin.read()\n"
        "        os._exit(0)\n"
        "    time.sleep(3600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"forked\n"
        with pytest.raises(UsageError, match=f"process {process.pid} on "), only_writer(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with only_writer(tmp_path):
            assert holder_of(tmp_path) == holder()
        process.stdin.close()
        assert process.stdout.read() == b""  # until now the reader lived


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock, "lock_descriptor", refuse)
    refuse_where_written(tmp_path, "--out")
    with only_writer(tmp_path):
        refuse_where_written(tmp_path, "--out")
    assert capsys.readouterr().err == (
        f"No lock on '{tmp_path}' (No locks available): let no other process write there\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_moved_folder_leaves_the_next_alone(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with only_writer(folder) as unlock:
        unlock()
        folder.rename(tmp_path / "old")
        folder.mkdir()
        (folder / LOCK).write_text("of another")
    assert (folder / LOCK).read_text() == "of another"
    assert list((tmp_path / "old").iterdir()) == []


def test_a_lock_is_removed_once(tmp_path, monkeypatch):
    """What is there under its name a moment later is another process's."""
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path: (unlink(path), path.write_text("of another")))
    with only_writer(tmp_path):
        pass
    assert (tmp_path / LOCK).read_text() == "of another"


def test_a_system_that_removes_no_open_file(tmp_path, monkeypatch):
    unlink = Path.unlink

    def unlink_closed(path, missing_ok=False):
        if any(own.exists() and own.resolve() == path for own in Path("/proc/self/fd").iterdir()):
            raise PermissionError(13, "is open", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_closed)
    with only_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


WITHOUT_UNIX = """
import builtins, importlib, os
from pathlib import Path
import torch  # which asks for the system itself

root = Path.cwd()
import_any = builtins.__import__
modules = [path.relative_to(root) for path in [*root.glob("*.py"), *root.glob("[a-z]*/**/*.py")]]
modules = sorted(path for path in modules if path.parts[0] not in ("tests", "benchmarks", "docs"))
names = {path.with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".") for path in modules}

def import_portable(name, globals=None, *rest, **more):
    if name in ("fcntl", "resource", "pwd", "grp", "termios") and (globals or {}).get("__name__") in names:
        raise ModuleNotFoundError(f"{globals['__name__']} imports {name}")
    return import_any(name, globals, *rest, **more)

builtins.__import__ = import_portable
for name in ("register_at_fork", "posix_fallocate"):
    delattr(os, name)
for name in sorted(names):
    if not name.endswith("__main__"):
        importlib.import_module(name)
import main
for words in [[], *([name] for name in main.main.list_commands(None))]:
    main.main([*words, "--help"], standalone_mode=False)
print(len(names), "modules started")
"""


def test_every_command_starts_where_there_is_no_unix():
    done = subprocess.run([sys.executable, "-c", WITHOUT_UNIX], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith(" modules started\n"), done.stderr
    assert done.stdout.count("Show this message") > 9 and int(done.stdout.split()[-3]) > 50
