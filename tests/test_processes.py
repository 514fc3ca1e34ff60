"""Several processes: how they learn who they are, what they tell each other, what happens when one fails or stops."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

from glem_graphgym import processes, starting
from glem_graphgym.processes import LOST, RankInfo, rank_from_environment
from glem_graphgym.starting import start

SECONDS = 300  # for what takes a few, on a busy machine
VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"),
    *("SLURM_STEP_NUM_NODES", "SLURM_PROCID", "SLURM_LOCALID"),
)


def set_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, RankInfo(5, 8, 1, 4)),
        # A batch script of Slurm is one process, however many tasks its job may start.
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, None),
        (
            {"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "3", "SLURM_PROCID": "4", "SLURM_LOCALID": "0"},
            RankInfo(4, 6, 0, 2),
        ),
    ],
)
def test_a_process_finds_its_rank(
    variables: dict[str, str], expected: RankInfo | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(monkeypatch, variables)
    assert rank_from_environment() == expected
    assert expected is None or expected.machines * expected.local_size == expected.size


@pytest.mark.parametrize(("visible", "local_rank", "device"), [(4, 3, 3), (1, 0, 0), (1, 3, 0), (2, 3, 1)])
def test_a_process_takes_its_gpu_of_those_that_it_sees(
    visible: int, local_rank: int, device: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the machine's or, where srun gives each task its own, one or two that are numbered from 0."""
    taken: list[int] = []

    def no_others(*_: object, **__: object) -> None:
        raise distributed.DistError("nobody there")

    monkeypatch.setattr(processes, "_write_environment", lambda info: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(distributed, "init_process_group", no_others)
    with pytest.raises(ConnectionError, match="nobody there"):
        processes.join(RankInfo(local_rank, 4, local_rank, 4), "cuda")
    assert taken == [device]


@pytest.mark.parametrize("others", [{}, {"LOCAL_RANK": "", "LOCAL_WORLD_SIZE": "2"}])
def test_incomplete_variables_of_torchrun_are_named(others: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, {"RANK": "0", "WORLD_SIZE": "2", **others})
    with pytest.raises(ValueError, match=r"RANK=0, WORLD_SIZE=2, LOCAL_RANK=, LOCAL_WORLD_SIZE=.*torchrun"):
        rank_from_environment()


def test_unequal_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = {"SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    set_variables(monkeypatch, task)
    with pytest.raises(ValueError, match="srun started 5 processes on 2 machines"):
        rank_from_environment()


def test_one_process_is_the_first_and_waits_for_nobody(tmp_path: Path) -> None:
    assert (processes.rank(), processes.world_size(), processes.have_joined()) == (0, 1, False)
    assert processes.gather(3) == processes.share([3]) == [3]
    assert processes.broadcast(lambda: 4) == 4
    with processes.as_only_rank():
        assert processes.world_size() == 1
    assert not processes.is_lost(RuntimeError("Connection closed by peer"))


# Before a program: the package without what it registers, whose libraries take seconds to import.
BARE = """
import sys, types
package = sys.modules["glem_graphgym"] = types.ModuleType("glem_graphgym")
package.__path__ = [sys.argv[1] + "/glem_graphgym"]
"""
# In two processes; rank r holds the rows of a batch whose place is r modulo 2, or none of them.
PROGRAM = f"""{BARE}
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from glem_graphgym import processes
from glem_graphgym.em import checkpoint, journal
from glem_graphgym.em.checkpoint import filling
from glem_graphgym.models.shared_norm import SharedBatchNorm, share_batch_norms

folder = Path(sys.argv[2])
processes.join(processes.rank_from_environment(), "cpu")
rank = processes.rank()
assert processes.world_size() == 2
assert processes.gather(rank * 10) == [0, 10]
assert processes.share([4, 5, 6]) == ([4, 6] if rank == 0 else [5])
assert processes.share([4, 5, 6], even=True) == ([4, 6] if rank == 0 else [5, 4])
assert processes.share([4], 1) == processes.share([], even=True) == []
numbers = np.arange(6, dtype=np.float16).reshape(2, 3)
if rank == 1:
    processes.send_to_rank_zero(numbers).wait()
else:
    assert (processes.receive(1, 6, np.float16) == numbers.reshape(-1)).all()
assert processes.broadcast(lambda: "asked by " + str(rank)) == "asked by 0"

if rank == 0:
    with processes.as_only_rank():
        assert (processes.rank(), processes.world_size(), processes.gather(7)) == (0, 1, [7])
processes.barrier()
assert processes.world_size() == 2

done_before = False
for together in (True, False, True):  # the third time there is nothing to do
    place = folder / f"filled_{{together}}"
    with filling(place, together) as part:
        assert (part is not None) == (not done_before if together else rank == 0)
        if part is not None:
            assert processes.gather(rank) == ([0, 1] if together else [0])
            if rank == 0:
                (part / "file").write_text("whole")
            processes.barrier()
            time.sleep(rank)  # the slower one must not see the folder renamed
            assert (part / "file").read_text() == "whole"
    assert (place / "file").read_text() == "whole"
    done_before = True

own, output = journal.Journal(folder / "run", 0, lambda logits: dict(valid=dict(accuracy=0.5))), journal.StageOutput
with own.stage(journal.StageKey(0, "lm_gold", "LM", "LM"), data_parallel=True) as stage:
    stage.predictions("logits", (2, 3))
    stage.finish(output(journal.FitLog(), dict(weight=torch.ones(1)), 1, 0.0))
    usual = journal.safe_open  # by which the finished stage is read; the slower one must not see the file deleted
    journal.safe_open = lambda *arguments: time.sleep(rank) or usual(*arguments)
own.forget_weights(keep=set())
assert not list(folder.glob("run/**/*.safetensors")) or rank == 1

kept, save, load = checkpoint.Checkpoint(folder), checkpoint._save, checkpoint._load
checkpoint._save = lambda *arguments: time.sleep(1) or save(*arguments)
kept.write("fit", dict(epoch=1))
assert (folder / "checkpoint" / "fit.pt").exists()  # a training step would not wait for a slow disk
assert kept.read("fit") == dict(epoch=1)
checkpoint._load = lambda file: load(file) if rank == 0 else None  # as in a process that has no memory left
assert kept.read("fit") is None  # none goes on alone

torch.manual_seed(0)
x, weights = torch.randn(7, 3), torch.randn(7, 3)
net = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, momentum=None)))
shared = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, momentum=None)))
shared.load_state_dict(net.state_dict())
share_batch_norms(shared)
assert sum(isinstance(module, SharedBatchNorm) for module in shared.modules()) == 2
for mine in (torch.arange(7) % 2 == rank, torch.full((7,), rank == 0)):
    net.zero_grad(), shared.zero_grad()
    whole = x.clone().requires_grad_()
    (net(whole) * weights).square().sum().backward()
    part = x[mine].clone().requires_grad_()
    (shared(part) * weights[mine]).square().sum().backward()
    torch.testing.assert_close(part.grad, whole.grad[mine], atol=1e-5, rtol=1e-4)
    for a, b in zip(net.parameters(), shared.parameters()):
        torch.testing.assert_close(sum(processes.gather(b.grad)), a.grad, atol=1e-5, rtol=1e-4)
assert net.state_dict().keys() == shared.state_dict().keys()
for name, value in net.state_dict().items():
    torch.testing.assert_close(shared.state_dict()[name], value, atol=1e-6, rtol=1e-5)
net.eval(), shared.eval()
torch.testing.assert_close(shared(x[:rank + 1]), net(x[:rank + 1]), atol=1e-6, rtol=1e-5)
(folder / str(rank)).write_text("passed")
processes.leave()
"""


@pytest.mark.slow
def test_two_processes_tell_each_other_and_share_batch_norms(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert start([sys.executable, "-c", PROGRAM, ROOT, str(tmp_path)], 2) == 0, capfd.readouterr().err
    assert {"0", "1"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ("raise ValueError('boom')", "error: process 1 of 2 ended with status 1: ValueError: boom\n"),
        ("os.kill(os.getpid(), 9)", "error: process 1 of 2 was killed by signal SIGKILL\n"),
        (f"sys.exit({LOST})", "error: a process of this run was lost\n"),
    ],
)
def test_one_that_fails_ends_the_others(
    second: str, expected: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "GRACE", 0.2)  # which the other would use up
    program = f"import os, sys, time\nif os.environ['RANK'] == '1':\n    {second}\ntime.sleep(600)"
    began = time.monotonic()
    assert start([sys.executable, "-c", program], 2) == 1
    assert time.monotonic() - began < SECONDS
    assert capfd.readouterr().err == expected


def test_an_error_of_all_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    program = "import sys; print('error: no such file', file=sys.stderr); sys.exit(1)"
    assert start([sys.executable, "-c", program], 3) == 1
    assert capfd.readouterr().err == "error: no such file\n"


ROOT = str(Path(__file__).resolve().parents[1])
JOIN = f"""{BARE}
import os, signal, subprocess, threading, time
from glem_graphgym import processes
processes.join(processes.rank_from_environment(), "cpu")
rank = processes.rank()
"""
# Which end as run/main.py does.
FAIL = """
def full():
    raise OSError("disk full")
try:
    if sys.argv[2] == "together":
        full() if rank == 1 else processes.gather(0)
    elif rank == 0:
        full()
    processes.barrier()
except OSError as error:
    print(f"error: {error}", file=sys.stderr)
    processes.end(1)
except RuntimeError as error:
    if not processes.is_lost(error):
        raise
    processes.end(processes.LOST)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "expected"),
    [("alone", "error: disk full\n"), ("together", "error: process 1 of 2 ended with status 1: error: disk full\n")],
)
def test_an_error_in_one_while_the_others_wait_ends_them(
    how: str, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start([sys.executable, "-c", JOIN + FAIL, ROOT, how], 2) == 1
    assert capfd.readouterr().err == expected


@pytest.mark.slow
def test_processes_that_do_not_find_each_other_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    set_variables(monkeypatch, {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())})
    monkeypatch.setattr(processes, "STEP_TIMEOUT", timedelta(seconds=1))
    with pytest.raises(ConnectionError, match="the 2 processes of this run have not found each other: "):
        processes.join(RankInfo(0, 2, 0, 2), "cpu")


# ---- a process that is no longer heard of -------------------------------------------------------------------------

TIMEOUT = 2.0
STOPPED = JOIN + "if rank == int(sys.argv[2]):\n    os.kill(os.getpid(), signal.SIGSTOP)\n"
# Which ends in the first of them only after minutes.
ALONE = "rank or time.sleep(600)\nprocesses.barrier()"
SILENT = f"has given no sign of life for {TIMEOUT:g} seconds\n"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLEM_HEARTBEAT_TIMEOUT", str(TIMEOUT))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def by_srun(program: str, *arguments: str) -> list[subprocess.Popen[str]]:
    """Two processes as srun starts them, the first of which holds the store that all meet in."""
    task = {"SLURM_STEP_NUM_TASKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    places = [{**os.environ, **task, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    command = [sys.executable, "-c", program, ROOT, *arguments]
    return [subprocess.Popen(command, env=place, stderr=subprocess.PIPE, text=True) for place in places]


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
@pytest.mark.usefixtures("impatient")
def test_one_that_is_stopped_ends_the_run_which_names_it(stopped: int, capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert start([sys.executable, "-c", STOPPED + ALONE, ROOT, str(stopped)], 2) == 1
    assert time.monotonic() - began < SECONDS
    assert capfd.readouterr().err == f"error: process {stopped} of 2 on {socket.gethostname()} {SILENT}"


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_the_first_that_is_stopped_with_the_store_ends_the_others() -> None:
    first, second = by_srun(STOPPED + ALONE, "0")
    try:
        _, errors = second.communicate(timeout=SECONDS)
        assert second.returncode == LOST
        assert errors.endswith(f", where the processes of this run meet, {SILENT}")
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_work_of_the_first_alone_takes_as_long_as_it_likes() -> None:
    program = f"""{JOIN}
rank or time.sleep({1.5 * TIMEOUT})
processes.barrier()
processes.leave()
assert threading.enumerate() == [threading.main_thread()]
time.sleep(rank * {1.5 * TIMEOUT})
"""
    for process in by_srun(program):
        assert process.communicate(timeout=SECONDS) == (None, "")
        assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_processes_that_were_suspended_alike_accuse_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    program = f"""{JOIN}
first, second = processes.gather(os.getpid())
wake = f"kill -CONT {{first}}; sleep {TIMEOUT / 4}; kill -CONT {{second}}"
if rank == 0:
    subprocess.Popen(["sh", "-c", f"kill -STOP {{first}} {{second}}; sleep {1.5 * TIMEOUT}; {{wake}}"])
rank or time.sleep({3 * TIMEOUT})
processes.barrier()
processes.leave()
"""
    assert start([sys.executable, "-c", program, ROOT], 2) == 0, capfd.readouterr().err
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf"])
def test_a_timeout_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLEM_HEARTBEAT_TIMEOUT", value)
    with pytest.raises(ValueError, match=f"GLEM_HEARTBEAT_TIMEOUT is {value}, expected seconds"):
        processes._heartbeat_timeout()
