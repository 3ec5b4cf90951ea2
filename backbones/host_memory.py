"""How much memory this process may still take, in a container as well (control groups, Linux)."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

ROOT = Path("/")

# Of either version of control groups: files of limits, of what is used, and the entries of memory.stat that the kernel
# gives back when memory runs short, which are counted as used but are cache.
_FILES = {
    "cgroup2": (
        ("memory.max", "memory.high"),
        "memory.current",
        ("inactive_file", "active_file", "slab_reclaimable"),
    ),
    "cgroup": (
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
}


def free_memory(root: Path = ROOT) -> int:
    """Bytes that this process may still take: of the machine, and within its control group and all above it.

    Args:
        root: of the file system that /proc/self and the control groups are read in.
    """
    return max(0, min([psutil.virtual_memory().available, *_free_in_groups(root)]))


def _free_in_groups(root: Path) -> Iterator[int]:
    """What every control group that bounds this process's memory leaves of its limit."""
    for kind, folder in _groups(root):
        limits, usage, cached = _FILES[kind]
        stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines() if len(line.split()) == 2)
        used = _number(_read(folder / usage)) or 0
        cache = min(used, sum(_number(stat.get(name, "")) or 0 for name in cached))
        for name in limits:
            limit = _number(_read(folder / name))
            if limit is not None:  # "max" and files that are not there bound nothing
                yield limit - (used - cache)


def _groups(root: Path) -> Iterator[tuple[str, Path]]:
    """The folders of this process's memory groups, each with its version, and of all above them that are mounted."""
    own: dict[str, str] = {}  # by version, the group's path in its hierarchy
    for line in _read(root / "proc/self/cgroup").splitlines():
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if not controllers:
            own["cgroup2"] = path
        elif "memory" in controllers.split(","):
            own["cgroup"] = path
    for line in _read(root / "proc/self/mountinfo").splitlines():
        fields, _, mounted = line.partition(" - ")
        kind, options = mounted.split()[0] if mounted else "", mounted.split()[-1:]
        if kind not in own or (kind == "cgroup" and "memory" not in options[0].split(",")):
            continue
        shown, place = (text.replace("\\040", " ") for text in fields.split()[3:5])
        path = PurePosixPath(own[kind])
        inside = path.relative_to(shown) if path.is_relative_to(shown) else PurePosixPath()
        if ".." in inside.parts:  # a group outside the one that this container is shown as its root
            inside = PurePosixPath()
        top = root / place.lstrip("/")
        for folder in [inside, *inside.parents]:
            yield kind, top / folder


def _read(path: Path) -> str:
    """A small file's text; nothing where there is none, or it may not be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
