"""Memory of this process: how it is taken, given back and measured. Imports nothing of ours."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

GB = 1 << 30  # bytes, in keys and in messages
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next tensor of that size; does nothing with another C library.

    By default it maps and unmaps every tensor of tens of MB, and the page faults take longer than most operations on
    it (measured: docs/measurements.md).
    """
    if (libc := _glibc()) is not None:
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


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """A block at whose end a Ctrl-C that came in it is raised."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[Any] = []
    signal.signal(signal.SIGINT, lambda *given: came.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came and callable(handler):
        handler(*came[0])


class PeakMemory:
    """Peak memory in MB since construction: of the GPU where ``accelerator`` is ``cuda``, else of this process.

    Outside Linux, which lets a process reset its high-water mark, it is the peak since the start of the process.
    """

    def __init__(self, accelerator: str = "cpu") -> None:
        self.accelerator = accelerator
        if accelerator == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with interrupts_held_back():  # one that comes in a finaliser is lost
            gc.collect()  # a task and what trained it may refer to each other, and stay until the collector comes by
        if (libc := _glibc()) is not None:
            libc.malloc_trim(0)  # what an earlier stage freed is no part of this one's peak
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.own_mark = True
        except OSError:
            self.own_mark = False

    def peak_mb(self) -> float:
        return self.accelerator_mb() if self.accelerator == "cuda" else self.resident_mb()

    def accelerator_mb(self) -> float:
        """Peak on the accelerator; 0 on CPU."""
        return torch.cuda.max_memory_allocated() / 2**20 if self.accelerator == "cuda" else 0.0

    def resident_mb(self) -> float:
        """Peak of this process, with or without an accelerator."""
        if self.own_mark:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KB; on macOS bytes
        return peak / (2**20 if sys.platform == "darwin" else 2**10)


def available_bytes() -> int:
    """Memory that can be taken now without swapping: what the machine has left, or its container's limit leaves."""
    left = [psutil.virtual_memory().available]
    left += [limit for root in CGROUPS if (limit := _left_in_cgroup(root)) is not None]
    return max(0, min(left))


# Folder, limit, use, and the line of memory.stat that counts file pages which are given back when others need them.
CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def _left_in_cgroup(group: tuple[Path, str, str, str]) -> int | None:
    """Bytes that a container's limit leaves; None where there is no limit."""
    folder, limit, use, reclaimable = group
    limits, uses = _lines(folder / limit), _lines(folder / use)
    if not limits or not uses or not limits[0].isdigit():
        return None
    given_back = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.split()[0] == reclaimable]
    return int(limits[0]) - int(uses[0]) + sum(given_back)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def machine_bytes() -> int:
    """All the memory that this process could ever take: the machine's, or its container's limit where that is less."""
    limits = [lines[0] for folder, limit, *_ in CGROUPS if (lines := _lines(folder / limit))]
    return min([psutil.virtual_memory().total, *(int(limit) for limit in limits if limit.isdigit())])


def limit_to_machine() -> None:
    """Have an allocation beyond all the memory of this machine fail, where Linux would kill the process later on.

    The limit is on private writable memory (RLIMIT_DATA) and counts swap. A limit that is lower already stays.
    """
    if not sys.platform.startswith("linux"):
        return
    limit, (soft, hard) = machine_bytes() + psutil.swap_memory().total, resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY or soft > limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


class OutOfMemoryError(MemoryError):
    """Memory, or the accelerator's, ran out; the message says in what and which keys help."""


# What torch, CUDA's libraries and C++ say where they have no exception of their own for it.
NO_MEMORY = ("can't allocate memory", "out of memory", "alloc_failed", "bad_alloc", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = str(error).lower()
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(no in words for no in NO_MEMORY))


@contextlib.contextmanager
def naming_out_of_memory(what: str, remedy: str) -> Iterator[None]:
    """Translate errors of exhausted memory into an `OutOfMemoryError` that says in ``what``, and the ``remedy``."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise OutOfMemoryError(
            f"{what} ran out of memory ({reason}); {remedy}; then type the same command again: finished stages are kept"
        ) from error
