"""What is freed stays with the process while training, and goes back to the system afterwards."""

import platform
import subprocess
import sys

import pytest
from commands import ROOT

from experiment.machine.allocator import kept_blocks

# A process of its own: a worker of the tests has freed memory of other tests, which the block may come from.
RISES = """
import os

from experiment.machine.allocator import kept_blocks

BLOCK = 2**26  # more than malloc takes from its own memory by default


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def rise():
    b"1" * BLOCK
    return (resident() - before) / BLOCK


before = resident()
with kept_blocks():
    print(rise())
print((resident() - before) / BLOCK)
print(rise())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_blocks_are_kept_within_and_given_back_afterwards():
    said = subprocess.run([sys.executable, "-c", RISES], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    within, afterwards, later = map(float, said.split())
    assert within > 0.9
    assert afterwards < 0.1
    assert later < 0.1


def test_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", ""))
    monkeypatch.setattr("experiment.machine.allocator.ctypes", None)
    with kept_blocks():
        pass
