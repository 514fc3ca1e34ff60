"""Start a command as several processes on this machine, and end all of them if one fails."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from glem_graphgym.processes import LOST, PARENT

GRACE = 3.0  # seconds that the others have to end by themselves, with error messages of their own


def start(command: list[str], count: int) -> int:
    """Run ``command`` as ``count`` processes that find each other (`processes.join`); returns the run's exit status.

    Rank 0 keeps the terminal and receives its Ctrl-C, unlike under torchrun, which puts it in a session of its own. For
    each other rank that fails by itself, the last line of its errors is shown. The remaining ranks get `GRACE` to end
    and are then killed: finished work is on disk.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # port 0: takes a free one, without a race
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"{rank}.log" for rank in range(count)]
        processes = [_start(command, rank, count, store.port, logs[rank]) for rank in range(count)]
        try:
            _wait(processes)
            statuses = [process.poll() for process in processes]
        except KeyboardInterrupt:  # the terminal has sent the interrupt to all processes
            _wait(processes, GRACE)
            return 1
        finally:
            for process in processes:
                process.kill()  # no effect on a process that has ended
            for process in processes:
                process.wait()
        return _report(statuses, logs)


def _start(command: list[str], rank: int, count: int, port: int, log: Path) -> subprocess.Popen:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0}
    # TORCHELASTIC_USE_AGENT_STORE tells torch that the store exists: all ranks connect to it, none opens one.
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    variables = {name: str(value) for name, value in {**ranks, **rendezvous, PARENT: os.getpid()}.items()}
    environment = {**os.environ, **variables}
    if rank == 0:
        return subprocess.Popen(command, env=environment)
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL)


def _wait(processes: list[subprocess.Popen], at_most: float = math.inf) -> None:
    """Wait until all have ended, or until `GRACE` after one has failed, but ``at_most`` so many seconds."""
    deadline = time.monotonic() + at_most
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        if deadline == math.inf and any(process.poll() for process in processes):
            deadline = time.monotonic() + GRACE
        time.sleep(0.05)


def _report(statuses: list[int | None], logs: list[Path]) -> int:
    """Print which processes failed by themselves, unless rank 0 has printed its own error; returns the exit status."""
    if all(status == 0 for status in statuses):
        return 0
    if statuses[0] is not None and statuses[0] not in (0, LOST) and statuses[0] > 0:
        return 1
    failed = [(rank, status) for rank, status in enumerate(statuses) if status not in (None, 0, LOST)]
    for rank, status in failed:
        assert status is not None
        end_text = (
            f"was killed by signal {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        )
        last_line = _last_line(logs[rank])
        print(
            f"error: process {rank} of {len(statuses)} {end_text}{': ' if last_line else ''}{last_line}",
            file=sys.stderr,
        )
    if not failed and statuses[0] != LOST:  # rank 0 itself was lost: the others' messages say why
        print(next(filter(None, map(_last_line, logs)), "error: a process of this run was lost"), file=sys.stderr)
    return 1


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "")
