"""Memory of the C library: blocks that are needed again and again stay with the process."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # of malloc.h; see mallopt(3)
KEEPING = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1}
USUAL = {MMAP_MAX: 65536, MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}  # where glibc's own rule ends for large blocks


@contextmanager
def kept_blocks() -> Iterator[None]:
    """Let malloc keep what is freed, but for what exceeds 2 GiB at its end; the system has all back afterwards.

    Of itself glibc asks the system for every block of more than 32 MiB, which then is filled with zeros page by page: a
    quarter to a third of a training step. Elsewhere, where malloc has rules of its own, this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    try:
        for parameter, value in KEEPING.items():
            libc.mallopt(parameter, value)
        yield
    finally:
        for parameter, value in USUAL.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)
