"""`run/benchmark.py`: its arithmetic, and the command itself on its quickest parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.measure import Row, row_of, seconds_of

RUN = Path(__file__).resolve().parents[2] / "run"


@pytest.mark.parametrize(("unit", "share", "times"), [("texts/s", 0.4, 2.0), ("ms", 2.5, 0.5), ("bytes", 2.5, 0.5)])
def test_shares_and_ratios_know_which_way_is_better(unit: str, share: float, times: float) -> None:
    row = Row("part", "what", 40.0, unit, bound=100.0, rival=20.0, rival_name="other")
    assert row.share == pytest.approx(share)
    assert row.times == pytest.approx(times)
    bare = Row("part", "what", 40.0, unit)
    assert bare.share is None
    assert bare.times is None


def test_a_row_is_the_median_with_its_spread() -> None:
    row = row_of("part", "what", iter([3.0, 1.0, 10.0]), "ms")
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


@pytest.mark.slow
def test_an_unknown_part_is_refused() -> None:
    done = subprocess.run([sys.executable, str(RUN / "benchmark.py"), "speed"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown part speed; expected some of: machine" in done.stderr
