"""Free memory within control groups: version 1 and 2, nested, in namespaces and outside, page cache not counted."""

import psutil
import pytest

from backbones.host_memory import free_memory

GIB = 2**30
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
MOUNTED_V2 = "29 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
MOUNTED_V1 = "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
OF_CPU = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"


@pytest.fixture(autouse=True)
def large_machine(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 100 * GIB}))


@pytest.fixture
def tree(tmp_path):
    """Write /proc/self, and groups as {folder below /sys/fs/cgroup: (limit, used, cache)}; the tree's root."""

    def write(cgroup, mounts, names, groups):
        proc = tmp_path / "proc" / "self"
        proc.mkdir(parents=True)
        (proc / "cgroup").write_text(f"{cgroup}\n")
        (proc / "mountinfo").write_text("22 1 0:2 / /proc rw - proc proc rw\n" + "\n".join(mounts) + "\n")
        for place, (limit, used, cache) in groups.items():
            folder = tmp_path / "sys/fs/cgroup" / place
            folder.mkdir(parents=True, exist_ok=True)
            (folder / names[0]).write_text(f"{limit}\n")
            (folder / names[1]).write_text(f"{used}\n")
            (folder / "memory.stat").write_text(f"anon 12\n{names[2]} {cache}\nfile_mapped 99\n")
        return tmp_path

    return write


def test_of_this_machine_is_plausible(monkeypatch):
    monkeypatch.undo()
    assert 2**28 < free_memory() < 2**50


def test_without_groups_the_machine_decides(tmp_path):
    assert free_memory(tmp_path) == 100 * GIB


def test_its_own_group_not_the_root(tree):
    groups = {"": ("max", 90 * GIB, 0), "user/job": (8 * GIB, 3 * GIB, 0), "user": ("max", 50 * GIB, 0)}
    assert free_memory(tree("0::/user/job", [MOUNTED_V2.format(root="/")], V2, groups)) == 5 * GIB


def test_the_tightest_of_all_above(tree):
    groups = {"a/b/c": (64 * GIB, 2 * GIB, 0), "a/b": ("max", 2 * GIB, 0), "a": (20 * GIB, 17 * GIB, 0)}
    assert free_memory(tree("0::/a/b/c", [MOUNTED_V2.format(root="/")], V2, groups)) == 3 * GIB


def test_page_cache_is_free(tree):
    """A group that has read large files is full by its own account."""
    groups = {"a": (8 * GIB, 8 * GIB, 6 * GIB)}
    assert free_memory(tree("0::/a", [MOUNTED_V2.format(root="/")], V2, groups)) == 6 * GIB


def test_a_soft_limit_bounds_too(tree):
    root = tree("0::/a", [MOUNTED_V2.format(root="/")], V2, {"a": (8 * GIB, GIB, 0)})
    (root / "sys/fs/cgroup/a/memory.high").write_text(f"{4 * GIB}\n")
    assert free_memory(root) == 3 * GIB


@pytest.mark.parametrize(
    ("path", "shown"), [("/", "/"), ("/docker/1234", "/docker/1234"), ("/../other", "/"), ("/", "/docker/1234")]
)
def test_a_container_sees_its_group_as_the_root(tree, path, shown):
    mounts = [MOUNTED_V2.format(root=shown)]
    assert free_memory(tree(f"0::{path}", mounts, V2, {"": (2 * GIB, GIB, GIB // 2)})) == 1.5 * GIB


def test_version_1_nested(tree):
    groups = {
        "memory": (9223372036854771712, 90 * GIB, 0),
        "memory/kubepods": (40 * GIB, 36 * GIB, 0),
        "memory/kubepods/pod": (16 * GIB, 15 * GIB, 12 * GIB),
    }
    lines = "5:cpu,cpuacct:/elsewhere\n4:memory:/kubepods/pod\n0::/"
    assert free_memory(tree(lines, [OF_CPU, MOUNTED_V1.format(root="/")], V1, groups)) == 4 * GIB


def test_a_group_beyond_its_limit_leaves_nothing(tree):
    assert free_memory(tree("0::/a", [MOUNTED_V2.format(root="/")], V2, {"a": (GIB, 2 * GIB, 0)})) == 0


def test_a_fault_in_the_files_bounds_nothing(tree):
    root = tree("nonsense\n0::/a", ["short line"], V2, {"a": ("", "x", "y")})
    assert free_memory(root) == 100 * GIB
