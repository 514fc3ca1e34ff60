"""How this process takes and gives back memory. Imports nothing of ours."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Let glibc keep large blocks that are freed, for the next tensor of that size.

    By default it maps and unmaps every tensor of tens of MB, and the page faults take longer than most operations on
    it (measured: docs/measurements.md). Does nothing where the C library is another.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    except OSError:
        return None


class PeakMemory:
    """Peak memory from its making on, in MB: of the accelerator where there is one, else resident in this process.

    Linux lets a process reset its own high-water mark; elsewhere the peak since the start of the process is given.
    """

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        libc = _glibc()
        if libc is not None:
            libc.malloc_trim(0)  # what an earlier stage freed is no part of this one's peak
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.own_mark = True
        except OSError:
            self.own_mark = False

    def peak_mb(self) -> float:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
        if self.own_mark:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
