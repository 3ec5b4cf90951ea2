"""What is freed stays with the process while training, and goes back to the system afterwards."""

import os
import platform
from pathlib import Path

import pytest
import torch

from experiment.machine.allocator import kept_blocks

BLOCK = 2**26  # more than malloc takes from its own memory by default


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def use_and_free() -> None:
    torch.ones(BLOCK, dtype=torch.uint8)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_blocks_are_kept_within_and_given_back_afterwards():
    use_and_free()
    before = resident()
    with kept_blocks():
        use_and_free()
        assert resident() - before > 0.9 * BLOCK
    assert resident() - before < 0.1 * BLOCK
    use_and_free()
    assert resident() - before < 0.1 * BLOCK


def test_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", ""))
    monkeypatch.setattr("experiment.machine.allocator.ctypes", None)
    with kept_blocks():
        pass
