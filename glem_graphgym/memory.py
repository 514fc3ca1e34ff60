"""Memory of this process: allocation, limits, measurement, errors. Imports nothing of this package."""

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

MB, GB = 1 << 20, 1 << 30  # bytes, in keys and in messages
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next tensor of that size; does nothing with other C libraries.

    By default glibc maps and unmaps every tensor of tens of MB, and the page faults take longer than most operations on
    the tensor (measured: docs/measurements.md).
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
    """A block during which Ctrl-C is held back, and raised at its end."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts: list[Any] = []
    signal.signal(signal.SIGINT, lambda *arguments: interrupts.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupts and callable(handler):
        handler(*interrupts[0])


class PeakMemory:
    """Peak memory in MB since construction: of the GPU if ``accelerator`` is ``cuda``, else of this process.

    Only Linux lets a process reset its high-water mark; elsewhere the peak is since the start of the process.
    """

    def __init__(self, accelerator: str = "cpu") -> None:
        self.accelerator = accelerator
        if accelerator == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with interrupts_held_back():  # an interrupt raised in a finaliser would be lost
            gc.collect()  # reference cycles keep an earlier stage's model alive until then
        if (libc := _glibc()) is not None:
            libc.malloc_trim(0)  # memory that an earlier stage freed must not count in this peak
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.own_mark = True
        except OSError:
            self.own_mark = False

    def peak_mb(self) -> float:
        return self.accelerator_mb() if self.accelerator == "cuda" else self.resident_mb()

    def accelerator_mb(self) -> float:
        """Peak memory of the accelerator; 0 on CPU."""
        return torch.cuda.max_memory_allocated() / MB if self.accelerator == "cuda" else 0.0

    def resident_mb(self) -> float:
        """Peak resident memory of this process, with or without an accelerator."""
        if self.own_mark:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KB; on macOS bytes
        return peak / (MB if sys.platform == "darwin" else 2**10)


def available_bytes() -> int:
    """Memory that can be allocated now without swapping: on the machine or, if less, within a cgroup's limit."""
    return max(0, min([psutil.virtual_memory().available, *(free for _, free in _cgroups() if free is not None)]))


def machine_bytes() -> int:
    """Memory that this process can have at most: the machine's or, if less, a cgroup's limit."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _cgroups())])


CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def _cgroups() -> Iterator[tuple[int, int | None]]:
    """Limit and free bytes (None = unknown) of each memory cgroup that this process is in and that has a limit.

    They are those of its Slurm step, container or slice, and all above them. Bytes that can be reclaimed are free.
    """
    for line in _lines(OWN_CGROUPS):
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            root, limit_file, use_file, reclaimable = CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):  # version 1
            root, reclaimable = CGROUPS / "memory", "total_inactive_file"
            limit_file, use_file = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # A container without a namespace of its own sees its cgroup as the root, and here a path that is not there.
        cgroup = root / path.lstrip("/")
        for folder in (cgroup, *cgroup.parents[: len(cgroup.parts) - len(root.parts)]):
            limit, use = _lines(folder / limit_file)[:1], _lines(folder / use_file)[:1]
            if limit and limit[0].isdigit():
                stat = dict(line.split()[:2] for line in _lines(folder / "memory.stat"))
                left = int(limit[0]) + int(stat.get(reclaimable, 0))
                yield int(limit[0]), left - int(use[0]) if use else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def limit_to_machine() -> None:
    """Make allocations beyond the memory of this machine fail at once; Linux would kill the process later.

    The limit is on private writable memory (RLIMIT_DATA) and includes swap. A lower limit stays as it is.
    """
    if not sys.platform.startswith("linux"):
        return
    limit, (soft, hard) = machine_bytes() + psutil.swap_memory().total, resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY or soft > limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


class OutOfMemoryError(MemoryError):
    """Memory of the machine or the accelerator ran out; the message says in what work, and which keys help."""


# Messages of torch, CUDA's libraries and C++, which raise no exception of their own for it.
NO_MEMORY = ("can't allocate memory", "out of memory", "alloc_failed", "bad_alloc", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    message = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in message for phrase in NO_MEMORY)
    )


@contextlib.contextmanager
def naming_out_of_memory(work: str, remedy: str) -> Iterator[None]:
    """A block whose out-of-memory errors become an `OutOfMemoryError` that names the ``work`` and the ``remedy``."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise OutOfMemoryError(
            f"{work} ran out of memory ({reason}); {remedy}; then type the same command again: finished stages are kept"
        ) from error
