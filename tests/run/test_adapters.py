"""The part ``adapters`` of run/benchmark.py, on a tiny model."""

from __future__ import annotations

import pytest
from benchmarks import adapters

pytest.importorskip("peft", reason="the extra 'lora' is missing")


@pytest.mark.slow
def test_memory_is_told_as_measured_and_as_foreseen_and_files_are_of_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "head_dim": 8}
    monkeypatch.setattr(adapters, "SIZES", {**adapters.SIZES, **small})
    ways = ("all weights", "LoRA, base in bf16")
    monkeypatch.setattr(adapters, "WAYS", {way: adapters.WAYS[way] for way in ways})
    found = {tuple(row.what.split(": ", 1)): row.value for row in adapters.adapters(1, "cpu")}
    assert {way for way, _ in found} == set(ways)
    assert all(value > 0 for value in found.values())
    files = {way: value for (way, what), value in found.items() if what.startswith("weights of a stage")}
    assert files[ways[1]] < files[ways[0]] / 20
    foreseen = {way: value for (way, what), value in found.items() if "foreseen" in what}
    peaks = {way: value for (way, what), value in found.items() if what.startswith("peak")}
    assert all(foreseen[way] > peaks[way] / 1.2 for way in ways)
