from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from glem_graphgym import memory
from glem_graphgym.memory import PeakMemory, interrupts_held_back, machine_bytes

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or not PeakMemory().own_mark,
    reason="peaks are those of the accelerator, or of the whole process since its start",
)


def touch(megabytes: int) -> None:
    np.ones(megabytes * 2**20, dtype=np.uint8)


def test_peak_memory_counts_what_was_freed_since() -> None:
    memory = PeakMemory()
    before = memory.peak_mb()
    touch(64)
    assert 55 < memory.peak_mb() - before < 200


def test_peak_memory_does_not_count_what_was_freed_before() -> None:
    start = PeakMemory().peak_mb()
    touch(256)
    assert PeakMemory().peak_mb() < start + 100


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_peak_memory_is_that_of_the_device_that_is_used(accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU, whether or not the run uses it."""
    reset: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: reset.append(True))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7 << 20)
    memory = PeakMemory(accelerator)
    on_device = accelerator == "cuda"
    assert (reset == [True]) == on_device
    assert memory.accelerator_mb() == (7.0 if on_device else 0.0)
    assert (memory.peak_mb() == 7.0) == on_device
    assert memory.resident_mb() > 50


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """Puts this process into the memory cgroup /slurm/job/step of that version; returns its folder."""

    def enter(version: int) -> Path:
        root, own = tmp_path / "cgroup", tmp_path / "own"
        monkeypatch.setattr(memory, "CGROUPS", root)
        monkeypatch.setattr(memory, "OWN_CGROUPS", own)
        own.write_text("3:cpu,cpuacct:/other\n2:memory:/slurm/job/step\n" if version == 1 else "0::/slurm/job/step\n")
        step = (root / "memory" if version == 1 else root) / "slurm/job/step"
        step.mkdir(parents=True)
        return step

    return enter


FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("level", range(4))  # that of the step, its job, and so on up to the root
def test_memory_is_bounded_by_the_limit_of_any_cgroup(
    version: int, level: int, cgroup: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, (limit, use, reclaimable) = cgroup(version), FILES[version]
    folder = [step, *step.parents][level]
    whole = machine_bytes()
    assert whole > 2**28
    (folder / limit).write_text("max\n")
    (folder / use).write_text("700\n")
    assert machine_bytes() == whole
    assert memory.available_bytes() > 1_000_000
    (folder / limit).write_text("1000\n")
    assert machine_bytes() == 1000
    assert memory.available_bytes() == 300
    (folder / "memory.stat").write_text(f"anon 500\n{reclaimable} 150\nactive_file 50\n")
    assert memory.available_bytes() == 450
    (folder / use).write_text("5000\n")
    assert memory.available_bytes() == 0


def test_without_cgroups_memory_is_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "none")
    assert machine_bytes() == psutil.virtual_memory().total
    assert 0 < memory.available_bytes() <= machine_bytes()


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    done = []

    def block() -> None:
        with interrupts_held_back():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("the block")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
