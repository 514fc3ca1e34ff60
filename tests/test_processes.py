"""Several processes: how they learn who they are, what they tell each other, and what happens when one fails."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from glem_graphgym import processes
from glem_graphgym.processes import Place, find_place
from glem_graphgym.starting import LOST, start

VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"),
    *("SLURM_STEP_NUM_NODES", "SLURM_PROCID", "SLURM_LOCALID"),
)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, None),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Place(5, 8, 1, 4)),
        # A batch script of Slurm is one process, however many tasks its job may start.
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, None),
        (
            {"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "3", "SLURM_PROCID": "4", "SLURM_LOCALID": "0"},
            Place(4, 6, 0, 2),
        ),
    ],
)
def test_a_process_finds_its_place(
    variables: dict[str, str], expected: Place | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_place() == expected
    assert expected is None or expected.machines * expected.local_size == expected.size


def test_unequal_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in (("STEP_NUM_TASKS", "5"), ("STEP_NUM_NODES", "2"), ("PROCID", "0"), ("LOCALID", "0")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(ValueError, match="srun started 5 processes on 2 machines"):
        find_place()


def test_one_process_is_the_first_and_waits_for_nobody(tmp_path: Path) -> None:
    assert (processes.rank(), processes.world_size(), processes.have_joined()) == (0, 1, False)
    assert processes.gather(3) == processes.gather_to_first(3) == [3]
    assert processes.from_first(lambda: 4) == 4
    done: list[Path] = []
    processes.lead(lambda job: job(tmp_path), done.append)
    processes.on_first(lambda: done.append(tmp_path))
    assert done == [tmp_path, tmp_path]
    assert not processes.is_lost(RuntimeError("Connection closed by peer"))


# In two processes; rank r holds the rows of a batch whose place is r modulo 2, or none of them.
PROGRAM = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import torch
from torch import nn

from glem_graphgym import processes
from glem_graphgym.models.shared_norm import SharedBatchNorm, share_batch_norms

folder = Path(sys.argv[2])
processes.join(processes.find_place(), "cpu")
rank = processes.rank()
assert processes.world_size() == 2
assert processes.gather(rank * 10) == [0, 10]
assert processes.gather_to_first(rank) == ([0, 1] if rank == 0 else [])
assert processes.from_first(lambda: "asked by " + str(rank)) == "asked by 0"

alone = []
processes.on_first(lambda: alone.append((processes.rank(), processes.world_size(), processes.gather(7))))
assert alone == ([(0, 1, [7])] if rank == 0 else [])
assert processes.world_size() == 2

done = []
def job(place):
    done.append(place)
    assert processes.gather(rank) == [0, 1]
processes.lead(lambda do: do(folder), job)
assert len(done) == 1 and (done[0] == folder) == (rank == 0) and done[0].exists() == (rank == 0)
processes.lead(lambda do: None, job)
assert len(done) == 1

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


def test_two_processes_tell_each_other_and_share_batch_norms(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = str(Path(__file__).resolve().parents[1])
    assert start([sys.executable, "-c", PROGRAM, root, str(tmp_path)], 2) == 0, capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ("raise ValueError('boom')", "error: process 1 of 2 ended with status 1: ValueError: boom\n"),
        ("os.kill(os.getpid(), 9)", "error: process 1 of 2 was killed by signal SIGKILL\n"),
        (f"sys.exit({LOST})", ""),
    ],
)
def test_one_that_fails_ends_the_others(second: str, expected: str, capfd: pytest.CaptureFixture[str]) -> None:
    program = f"import os, sys, time\nif os.environ['RANK'] == '1':\n    {second}\ntime.sleep(600)"
    began = time.monotonic()
    assert start([sys.executable, "-c", program], 2) == 1
    assert time.monotonic() - began < 60
    assert capfd.readouterr().err == expected


def test_an_error_of_all_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    program = "import sys; print('error: no such file', file=sys.stderr); sys.exit(1)"
    assert start([sys.executable, "-c", program], 3) == 1
    assert capfd.readouterr().err == "error: no such file\n"
