"""`run/benchmark.py`: its arithmetic, and the command itself on its quickest parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import gnn, lm, measure
from benchmarks.measure import Row, row_of, seconds_of

from glem_graphgym.data.text_graph import Texts
from tests.bad_inputs.conftest import load_program

RUN = Path(__file__).resolve().parents[2] / "run"
benchmark: Any = load_program("benchmark")


@pytest.mark.parametrize(("unit", "share", "times"), [("texts/s", 0.4, 2.0), ("ms", 2.5, 0.5), ("bytes", 2.5, 0.5)])
def test_shares_and_ratios_know_which_way_is_better(unit: str, share: float, times: float) -> None:
    row = Row("what", 40.0, unit, bound=100.0, rival=20.0, rival_name="other")
    assert row.share == pytest.approx(share)
    assert row.times == pytest.approx(times)
    bare = Row("what", 40.0, unit)
    assert bare.share is None
    assert bare.times is None


def test_a_row_is_the_median_with_its_spread() -> None:
    row = row_of("what", iter([3.0, 1.0, 10.0]), "ms")
    assert (row.value, row.low, row.high) == (3.0, 1.0, 10.0)


def test_candidates_take_turns_and_the_warm_up_is_not_counted() -> None:
    calls: list[str] = []
    found = seconds_of({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "ab" * 5
    assert [len(found["a"]), len(found["b"])] == [3, 3]


@pytest.mark.slow
def test_the_command_writes_a_table_and_json(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, str(RUN / "benchmark.py"), "startup", "--repeats", "1", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["run/main.py --help"]["value"] < 2
    assert rows["import glem_graphgym, beyond GraphGym's own import"]["value"] < 1
    assert "run/main.py --help" in done.stdout


def small(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """Sizes at which every part takes a moment."""
    texts = Texts.of([f"{'a b c d ' * (number % 5)}e" for number in range(1600)])
    sizes: dict[Any, dict[str, Any]] = {
        measure: {"matrix_size": lambda device: 64, "bandwidth": lambda device: 1e9},
        lm: {"MODEL": model, "short_texts": lambda: texts, "long_texts": lambda: texts, "PEER_LENGTH": 32},
        gnn: {"NODES": 300, "EDGES": 900, "FEATURES": 8, "WIDTH": 8, "GOLD": 60, "VALID": 60},
    }
    sizes[gnn] |= {"LARGE_NODES": 500, "LARGE_EDGES": 2000, "SEEDS": 20, "bandwidth": lambda device: 1e9}
    for module, values in sizes.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["machine", "tokenising", "e_step", "inference", "m_step", "propagation", "sampled"])
def test_a_part_measures_ours_its_bound_and_its_rival_on_the_device(
    part: str, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts as on a GPU, at a small size on the CPU: the same functions, which take the device."""
    small(monkeypatch, str(tiny_lm))
    for cached in (lm.tokens_of, gnn.graph, gnn.features):
        cached.cache_clear()
    try:
        rows = list(benchmark.function_of(part)(1, "cpu"))
    finally:
        for cached in (lm.tokens_of, gnn.graph, gnn.features):
            cached.cache_clear()
    assert rows and all(row.value > 0 for row in rows)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.device_of("auto") == "cpu"
    with pytest.raises(ValueError, match="--accelerator is cuda, but torch sees no GPU"):
        benchmark.device_of("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert benchmark.device_of("auto") == "cuda"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "unknown part speed; expected some of: machine"),
        (["--repeats", "0"], "--repeats is 0, expected at least 1"),
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err
