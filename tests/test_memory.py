from __future__ import annotations

import numpy as np
import pytest
import torch

from glem_graphgym.memory import PeakMemory

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
