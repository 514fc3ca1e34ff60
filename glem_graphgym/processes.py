"""The process group of a run: this process's rank, and communication on the CPU.

Every rank runs the same program. All ranks train and infer; rank 0 alone writes, while the others wait. Without `join`
there is one process, of rank 0.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import signal
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import distributed

from glem_graphgym.heartbeat import Heartbeat

T = TypeVar("T")

STEP_TIMEOUT = timedelta(minutes=10)  # of collectives in training, where all ranks have equal work
WAIT_TIMEOUT = timedelta(days=30)  # of collectives in which ranks wait while rank 0 works alone
# Without a beat, which needs Python's global lock: pickling and garbage collection hold it for seconds at a time, and
# many times longer on a machine that swaps.
HEARTBEAT_TIMEOUT = timedelta(minutes=5)
PARENT = "GLEM_STARTED_BY"  # environment variable: id of the process that started this one
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # environment variables, in `RankInfo`'s order
LOST = 75  # exit status of a process that ends because another was lost


@dataclass(frozen=True)
class RankInfo:
    """Rank of a process: ``rank`` of ``size`` in its run, ``local_rank`` of ``local_size`` on its machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @property
    def machines(self) -> int:
        return self.size // self.local_size

    @property
    def machine(self) -> int:
        """Index of the machine; 0 for that of rank 0."""
        return self.rank // self.local_size


@dataclass
class _Group:
    info: RankInfo
    gloo: Any  # torch process group for CPU tensors, with WAIT_TIMEOUT
    as_only_rank: bool = False  # see `as_only_rank`
    heartbeat: Heartbeat | None = None


_group: _Group | None = None


def rank_from_environment() -> RankInfo | None:
    """The rank that torchrun, `starting.start` or srun has given this process; None if it is the only process.

    Raises:
        ValueError: the variables of torchrun are incomplete, or srun started unequal numbers of processes per machine.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        if os.environ["WORLD_SIZE"] == "1":  # some schedulers set these two alone
            return None
        variables = {name: os.environ.get(name, "") for name in TORCHRUN}
        if not all(value.isdecimal() for value in variables.values()):
            found = ", ".join(f"{name}={value}" for name, value in variables.items())
            raise ValueError(f"the environment has {found}; expected a number each, as torchrun and srun set them")
        info = RankInfo(*map(int, variables.values()))
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # not SLURM_NTASKS, which batch scripts have too
        size = int(os.environ["SLURM_STEP_NUM_TASKS"])
        machines = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
        info = RankInfo(int(os.environ["SLURM_PROCID"]), size, int(os.environ["SLURM_LOCALID"]), size // machines)
        if size % machines:
            raise ValueError(f"srun started {size} processes on {machines} machines, expected as many on each")
    else:
        return None
    return info if info.size > 1 else None


def join(info: RankInfo, accelerator: str) -> None:
    """Connect with the other ranks (gloo, and NCCL if ``accelerator`` is ``cuda``).

    The others notice a rank that dies by its closed connections, a rank that is stopped or unreachable by its
    heartbeat, and a rank that hangs in training by `STEP_TIMEOUT`.

    Raises:
        ConnectionError: the ranks have not found each other.
    """
    global _group
    end_with_parent()
    _write_environment(info)
    if accelerator == "cuda":
        # Under srun a process may see its own GPUs alone, numbered from 0.
        torch.cuda.set_device(info.local_rank % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if accelerator == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, timeout=STEP_TIMEOUT)
        _group = _Group(info, distributed.new_group(backend="gloo", timeout=WAIT_TIMEOUT))
    except distributed.DistError as error:
        raise ConnectionError(f"the {info.size} processes of this run have not found each other: {error}") from error
    _group.heartbeat = _start_heartbeat()


def _start_heartbeat() -> Heartbeat:
    """Start the heartbeat, on its own connection to the store through which the ranks found each other."""
    timeout = _heartbeat_timeout()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=STEP_TIMEOUT)
    attempt = broadcast(lambda: uuid.uuid4().hex)  # torchrun keeps the store, with old beats, when it restarts ranks
    hosts = gather(socket.gethostname())

    def end(lost: int) -> None:
        """Exit at once, as the main thread may be blocked inside torch; finished work is on disk."""
        subject = f"process {lost} of {len(hosts)} on {hosts[lost]}"
        if lost == rank():
            subject = f"{address}:{port}, where the processes of this run meet,"
        print(f"error: {subject} has given no sign of life for {timeout:g} seconds", file=sys.stderr, flush=True)
        os._exit(LOST)

    return Heartbeat(distributed.PrefixStore(attempt, store), rank(), len(hosts), timeout, end)


def _heartbeat_timeout() -> float:
    text = os.environ.get("GLEM_HEARTBEAT_TIMEOUT", str(HEARTBEAT_TIMEOUT.total_seconds()))
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise ValueError(f"GLEM_HEARTBEAT_TIMEOUT is {text}, expected seconds")


def _write_environment(info: RankInfo) -> None:
    """Set the environment variables that torch and Lightning read, as torchrun does, for processes from srun."""
    if "MASTER_ADDR" not in os.environ and "SLURM_JOB_ID" in os.environ:
        from lightning_fabric.plugins.environments import SLURMEnvironment

        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "127.0.0.1")
        step = int(os.environ["SLURM_JOB_ID"]) + int(os.environ.get("SLURM_STEP_ID", "0"))
        os.environ["MASTER_ADDR"] = SLURMEnvironment.resolve_root_node_address(nodes)
        os.environ.setdefault("MASTER_PORT", str(15_000 + step % 10_000))
    values = (*astuple(info), info.machine)
    os.environ.update({name: str(value) for name, value in zip((*TORCHRUN, "GROUP_RANK"), values, strict=True)})


def end_with_parent() -> None:
    """Have Linux kill this process if the process that started it is killed, so that it does not run on unwatched."""
    parent = os.environ.get(PARENT)
    if parent is None or not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):
        raise SystemExit(1)


def leave() -> None:
    """Wait for the other ranks and disconnect, at the end of a successful run."""
    global _group
    if _group is not None:
        barrier()
        if _group.heartbeat is not None:
            _group.heartbeat.stop()
        distributed.destroy_process_group()
        _group = None


def end(status: int) -> NoReturn:
    """Exit with ``status``; at once, without cleaning up, if this process is still connected, which means an error.

    Closing torch's connections after another process has broken them can abort this one (SIGABRT).
    """
    if _group is None:
        sys.exit(status)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_lost(error: BaseException) -> bool:
    """Whether an error only means that another process has ended, with an error of its own."""
    if _group is None or not isinstance(error, RuntimeError):
        return False
    phrases = ("gloo", "nccl", "connection", "broken pipe", "timed out", "process group")
    return isinstance(error, distributed.DistError) or any(phrase in str(error).lower() for phrase in phrases)


# ---- this process ---------------------------------------------------------------------------------------------------


def rank_info() -> RankInfo:
    """Rank of this process in the group that works together at present."""
    return RankInfo(0, 1, 0, 1) if _group is None or _group.as_only_rank else _group.info


def rank() -> int:
    """Rank of this process; rank 0 alone writes and reports."""
    return rank_info().rank


def world_size() -> int:
    """Number of ranks in the group that works together at present."""
    return rank_info().size


def have_joined() -> bool:
    """Whether the run has several ranks, even if this one works `as_only_rank` at present."""
    return _group is not None


@contextlib.contextmanager
def as_only_rank(enabled: bool = True) -> Iterator[None]:
    """A block in which this rank acts as the only one while the others wait for it; no effect unless ``enabled``."""
    if not enabled or _group is None or _group.as_only_rank:
        yield
        return
    _group.as_only_rank = True
    try:
        yield
    finally:
        _group.as_only_rank = False


# ---- communication --------------------------------------------------------------------------------------------------


def _gloo() -> Any:
    assert _group is not None
    return _group.gloo


def barrier() -> None:
    gather(None)


def gather(value: T) -> list[T]:
    """The values of all ranks, by rank, on every rank."""
    values: list[Any] = [value] * world_size()
    if len(values) > 1:
        distributed.all_gather_object(values, value, group=_gloo())
    return values


def share(items: Sequence[T], owner: int | None = None, even: bool = False) -> list[T]:
    """The share of ``items`` of this rank, or of rank ``owner``; items are dealt in turn.

    ``even``: pad shares that are one item short with the first item, for work that all ranks must do together.
    """
    count, start = world_size(), rank() if owner is None else owner
    dealt = list(items[start::count])
    return [*dealt, *items[:1]] if even and len(dealt) < -(-len(items) // count) else dealt


def send_to_rank_zero(values: np.ndarray) -> Any:
    """Send an array to rank 0, for `receive`; returns a handle to ``wait()`` for before the next array is sent."""
    return distributed.isend(torch.from_numpy(values.reshape(-1).view(np.uint8)), 0, group=_gloo())


def receive(sender: int, count: int, dtype: Any) -> np.ndarray:
    """Receive, on rank 0, ``count`` numbers that rank ``sender`` has sent."""
    values = np.empty(count, dtype=dtype)
    distributed.recv(torch.from_numpy(values.view(np.uint8)), sender, group=_gloo())
    return values


def broadcast(compute: Callable[[], T]) -> T:
    """The result of ``compute()`` on rank 0, on every rank; the others do not call it."""
    values: list[Any] = [compute() if rank() == 0 else None]
    if world_size() > 1:
        distributed.broadcast_object_list(values, group=_gloo())
    return values[0]
