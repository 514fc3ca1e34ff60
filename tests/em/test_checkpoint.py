"""A stage that is killed at any moment goes on from its checkpoint and ends with the bits of an uninterrupted one."""

from __future__ import annotations

import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glem_graphgym.em.checkpoint import FOLDER, Checkpoint, filling
from glem_graphgym.em.journal import seed_everything
from tests.em.test_journal import Killed
from tests.golden.cases import arguments_of, predictions_of
from tests.started import finish, kill, start_main

# Each way in which a stage trains or encodes: in parts, with several fits a stage, from disk, jointly.
KILLED = ["glem", "glem_accumulated", "glem_sampled", "glem_hops_on_disk"]
KILLED += ["gnn_static", "gnn_distilled", "gnn_self_trained", "gnn_consistent", "joint"]


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(
    name: str, tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    wanted = predictions_of(name, whole, tiny_lm)
    rng = np.random.default_rng(len(name))
    write, left = Checkpoint.write, 0

    def dying(self: Checkpoint, title: str, state: dict[str, Any], sharded: bool = False) -> None:
        nonlocal left
        write(self, title, state, sharded)
        left -= 1
        if left == 0:
            raise Killed

    monkeypatch.setattr(Checkpoint, "write", dying)
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    kills = 0
    while True:
        left = int(rng.integers(1, 6))
        try:
            found = predictions_of(name, killed, tiny_lm)
            break
        except Killed:
            kills += 1
    assert kills > 0
    assert found.keys() == wanted.keys()
    for stage, logits in found.items():
        np.testing.assert_array_equal(logits, wanted[stage], err_msg=f"{stage}, killed {kills} times")
        files = {
            folder: {file.name for file in (folder / "results/small/0/stages" / stage).iterdir()}
            for folder in (whole, killed)
        }
        assert files[killed] == files[whole]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_that_gets_the_signal_at_any_moment_ends_with_the_same_bits(
    devices: int, tmp_path: Path, tiny_lm: Path
) -> None:
    more = ["devices", str(devices), "glem.checkpoint_minutes", "0", "lm.epochs", "3", "optim.max_epoch", "12"]

    def started(folder: Path) -> list[BaseProcess]:
        folder.mkdir(exist_ok=True)
        return start_main([*arguments_of("glem_hops", folder, tiny_lm), *more], devices)  # two train it together

    def logits(folder: Path) -> dict[str, np.ndarray]:
        return {path.parent.name: np.load(path) for path in folder.glob("results/small/0/stages/[0-9]*/logits.npy")}

    finish(started(tmp_path / "whole"))
    rng, kills = random.Random(devices), 0
    for _ in range(3):
        run = started(tmp_path / "killed")
        stages = tmp_path / "killed/results/small/0/stages"
        deadline = time.monotonic() + 120
        while run[0].is_alive() and time.monotonic() < deadline and not list(stages.glob(f".*.part/{FOLDER}/*.pt")):
            time.sleep(0.01)  # until a stage has something to go on from
        time.sleep(rng.random() / 2)
        if not run[0].is_alive():
            break
        kill(run)
        kills += 1
    assert kills > 1
    finish(started(tmp_path / "killed"))
    wanted, found = logits(tmp_path / "whole"), logits(tmp_path / "killed")
    assert len(found) == len(wanted) == 4
    for stage in wanted:
        np.testing.assert_array_equal(found[stage], wanted[stage], err_msg=stage)


def test_a_checkpoint_brings_back_every_generator(tmp_path: Path) -> None:
    seed_everything(5)
    checkpoint = Checkpoint(tmp_path)
    checkpoint.write("x", {"weights": {"a": torch.ones(2)}, "count": 3})

    def draws() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002

    wanted = draws()
    seed_everything(6)
    kept = Checkpoint(tmp_path).read("x")
    assert kept is not None
    assert kept["count"] == 3 and torch.equal(kept["weights"]["a"], torch.ones(2))
    assert draws() == wanted


def test_a_checkpoint_that_a_kill_cut_off_takes_no_disk_from_those_after_it(tmp_path: Path) -> None:
    checkpoints = tmp_path / ".stage.part" / FOLDER
    Checkpoint(checkpoints.parent).write("x", {"count": 3})
    (checkpoints / ".x.pt.of_a_killed_process").write_text("half")
    with filling(tmp_path / "stage", data_parallel=False):
        assert [file.name for file in checkpoints.iterdir()] == ["x.pt"]


def test_one_is_due_after_so_many_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    checkpoint = Checkpoint(tmp_path, minutes=2)
    now += 119
    assert not checkpoint.due()
    now += 1
    assert checkpoint.due()
    checkpoint.write("x", {})
    assert not checkpoint.due()


def test_seconds_are_counted_on_through_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    first = Checkpoint(tmp_path)
    now += 50
    first.write("x", {})
    second = Checkpoint(tmp_path)
    second.read("x")
    now += 7
    second.write("x", {})
    third = Checkpoint(tmp_path)
    third.read("x")
    assert third.seconds_before == 57


def test_a_checkpoint_that_cannot_be_read_is_left_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Checkpoint(tmp_path).read("x") is None
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "x.pt").write_bytes(b"half")
    assert Checkpoint(tmp_path).read("x") is None
    assert "the stage begins anew" in caplog.text


def test_a_full_disk_costs_the_checkpoint_and_not_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    Checkpoint(tmp_path).write("x", {})
    assert "no checkpoint could be kept" in caplog.text
    assert Checkpoint(tmp_path).read("x") is None


def test_only_what_has_a_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    folder = tmp_path / "made"

    def killed(checkpointed: bool) -> None:
        with filling(folder, data_parallel=True) as part:
            assert part is not None
            assert not list(part.iterdir())
            (part / "half").write_text("x")
            if checkpointed:
                Checkpoint(part).write("x", {})
            raise Killed

    for checkpointed in (False, True):
        with pytest.raises(Killed):
            killed(checkpointed)
    with filling(folder, data_parallel=True) as part:
        assert part is not None
        assert {path.name for path in part.iterdir()} == {"half", FOLDER}
    assert {path.name for path in folder.iterdir()} == {"half"}
    with filling(folder, data_parallel=True) as part:
        assert part is None
