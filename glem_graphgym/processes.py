"""Several processes that do one run together: who this one is, and what they tell each other.

Every process runs the same program from its start to its end. What all of them do together (training, inference) is
called in all of them; what one has to do alone is done by the first, while the others wait for it. Without `join`
there is one process, the first, and everything here is at once.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch

from glem_graphgym.heartbeat import Heartbeat

T = TypeVar("T")

STEP_TIMEOUT = timedelta(minutes=10)  # of training, in which all are busy with equal parts
WAIT_TIMEOUT = timedelta(days=30)  # for what the first does alone, however long that takes
# Without a beat. It needs Python's lock, which pickling and garbage collection hold for seconds at a time, and for many
# times that on a machine that swaps.
HEARTBEAT_TIMEOUT = timedelta(minutes=5)
PARENT = "GLEM_STARTED_BY"  # process id of whoever started this one
LOST = 75  # exit status of a process that failed because another did


@dataclass(frozen=True)
class Place:
    """Which of a run's processes this is: ``rank`` of ``size``, and ``local_rank`` of ``local_size`` on its machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @property
    def machines(self) -> int:
        return self.size // self.local_size


@dataclass
class _Company:
    place: Place
    group: Any  # CPU tensors, patient
    alone: bool = False
    heartbeat: Heartbeat | None = None


_company: _Company | None = None


def find_place() -> Place | None:
    """What torchrun, `starting.start` or srun has written into the environment; None where this is the only process.

    Raises:
        ValueError: the machines have unequal numbers of processes.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        place = Place(*(int(os.environ[name]) for name in names))
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # not SLURM_NTASKS: a batch script has that too
        size = int(os.environ["SLURM_STEP_NUM_TASKS"])
        machines = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
        place = Place(int(os.environ["SLURM_PROCID"]), size, int(os.environ["SLURM_LOCALID"]), size // machines)
        if size % machines:
            raise ValueError(f"srun started {size} processes on {machines} machines, expected as many on each")
    else:
        return None
    return place if place.size > 1 else None


def join(place: Place, accelerator: str) -> None:
    """Connect with the run's other processes (gloo, and NCCL where ``accelerator`` is ``cuda``).

    A process that dies closes its connections, at which the others fail; that one has stopped, or its machine is out
    of reach, shows by its heartbeat; that one hangs is noticed in training after `STEP_TIMEOUT`.

    Raises:
        ConnectionError: they have not found each other.
    """
    from torch import distributed

    global _company
    end_with_parent()
    _write_environment(place)
    if accelerator == "cuda":
        torch.cuda.set_device(place.local_rank)
    backend = "cpu:gloo,cuda:nccl" if accelerator == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, timeout=STEP_TIMEOUT)
        _company = _Company(place, distributed.new_group(backend="gloo", timeout=WAIT_TIMEOUT))
    except distributed.DistError as error:
        raise ConnectionError(f"the {place.size} processes of this run have not found each other: {error}") from error
    _company.heartbeat = _start_heartbeat()


def _start_heartbeat() -> Heartbeat:
    """Over a connection of its own to the store in which the processes have found each other."""
    from torch import distributed

    timeout = _heartbeat_timeout()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=STEP_TIMEOUT)
    attempt = broadcast(lambda: uuid.uuid4().hex)  # torchrun keeps its store when it starts the processes again
    hosts = gather(socket.gethostname())

    def end(lost: int) -> None:
        """At once, because the main thread may be deep in torch; whatever is finished lies on disk."""
        what = f"process {lost} of {len(hosts)} on {hosts[lost]}"
        if lost == rank():
            what = f"{address}:{port}, where the processes of this run meet,"
        print(f"error: {what} has given no sign of life for {timeout:g} seconds", file=sys.stderr, flush=True)
        os._exit(LOST)

    return Heartbeat(distributed.PrefixStore(attempt, store), rank(), len(hosts), timeout, end)


def _heartbeat_timeout() -> float:
    text = os.environ.get("GLEM_HEARTBEAT_TIMEOUT", str(HEARTBEAT_TIMEOUT.total_seconds()))
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise ValueError(f"GLEM_HEARTBEAT_TIMEOUT is {text}, expected seconds")


def _write_environment(place: Place) -> None:
    """The variables that torch and Lightning read, as torchrun sets them, where srun started this process."""
    if "MASTER_ADDR" not in os.environ and "SLURM_JOB_ID" in os.environ:
        from lightning_fabric.plugins.environments import SLURMEnvironment

        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "127.0.0.1")
        step = int(os.environ["SLURM_JOB_ID"]) + int(os.environ.get("SLURM_STEP_ID", "0"))
        os.environ["MASTER_ADDR"] = SLURMEnvironment.resolve_root_node_address(nodes)
        os.environ.setdefault("MASTER_PORT", str(15_000 + step % 10_000))
    values = {
        "RANK": place.rank,
        "WORLD_SIZE": place.size,
        "LOCAL_RANK": place.local_rank,
        "LOCAL_WORLD_SIZE": place.local_size,
        "GROUP_RANK": place.rank // place.local_size,
    }
    os.environ.update({name: str(value) for name, value in values.items()})


def end_with_parent() -> None:
    """Have Linux kill this process when the one that started it is killed, rather than let it run on unwatched."""
    parent = os.environ.get(PARENT)
    if parent is None or not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):
        raise SystemExit(1)


def leave() -> None:
    """Wait for the others and disconnect, at a good end."""
    from torch import distributed

    global _company
    if _company is not None:
        barrier()
        if _company.heartbeat is not None:
            _company.heartbeat.stop()
        distributed.destroy_process_group()
        _company = None


def end(status: int) -> NoReturn:
    """Exit, at once where this process has not left the others: for an error.

    To take torch's connections down when another process has just broken them can abort this one (SIGABRT).
    """
    if _company is None:
        sys.exit(status)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another process has ended, which has an error of its own."""
    from torch import distributed

    if _company is None or not isinstance(error, RuntimeError):
        return False
    words = ("gloo", "nccl", "connection", "broken pipe", "timed out", "process group")
    return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in words)


# ---- who this is ----------------------------------------------------------------------------------------------------


def place() -> Place:
    """This process among those that work together now."""
    if _company is None or _company.alone:
        return Place(0, 1, 0, 1)
    return _company.place


def rank() -> int:
    """0 in the first, which alone writes and reports."""
    return place().rank


def world_size() -> int:
    """How many processes work together now."""
    return place().size


def have_joined() -> bool:
    """Whether the run has several processes, though this one may do something alone just now."""
    return _company is not None


# ---- what they tell each other --------------------------------------------------------------------------------------


def barrier() -> None:
    """Wait until all are here."""
    gather(None)


def gather(value: T) -> list[T]:
    """Every process's value, in the order of their ranks, in all of them."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    assert _company is not None
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value, group=_company.group)
    return values


def gather_to_rank_zero(value: T) -> list[T]:
    """Every process's value, in the order of their ranks, in the first; an empty list in the others."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    assert _company is not None
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    distributed.gather_object(value, values, group=_company.group)
    return values or []


def broadcast(ask: Callable[[], T]) -> T:
    """The first process's ``ask()``, in all of them; the others do not call it."""
    if world_size() == 1:
        return ask()
    from torch import distributed

    assert _company is not None
    values: list[Any] = [ask() if rank() == 0 else None]
    distributed.broadcast_object_list(values, group=_company.group)
    return values[0]


# ---- what the first does --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone(really: bool = True) -> Iterator[None]:
    """A block in which this process takes itself for the only one, while the others wait for it; if ``really``."""
    if not really or _company is None or _company.alone:
        yield
        return
    _company.alone = True
    try:
        yield
    finally:
        _company.alone = False
