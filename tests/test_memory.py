from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
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


def test_the_machines_memory_is_bounded_by_a_containers_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUPS", ())
    whole = machine_bytes()
    assert whole > 2**28
    (tmp_path / "limit").write_text("max\n")
    monkeypatch.setattr(
        memory, "CGROUPS", ((tmp_path, "limit", "use", "file"), (tmp_path / "none", "limit", "use", "file"))
    )
    assert machine_bytes() == whole
    (tmp_path / "limit").write_text("12345678\n")
    assert machine_bytes() == 12345678


def test_available_memory_is_what_the_containers_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = memory.available_bytes()
    assert 0 < free <= memory.machine_bytes()
    monkeypatch.setattr(memory, "CGROUPS", ((tmp_path, "memory.max", "memory.current", "inactive_file"),))
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert memory.available_bytes() > 1_000_000
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory.available_bytes() == 300
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\nactive_file 50\n")
    assert memory.available_bytes() == 450
    (tmp_path / "memory.current").write_text("5000\n")
    assert memory.available_bytes() == 0


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
