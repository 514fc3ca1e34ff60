"""The list of seeded faults does not rot: each still has its place in the package, and its test."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.faults.faults import FAULTS

ROOT = Path(__file__).resolve().parents[2]


def test_every_fault_has_its_place_and_its_test() -> None:
    wrong = []
    for name, fault in FAULTS.items():
        source = (ROOT / "glem_graphgym" / fault.file).read_text(encoding="utf-8")
        if (times := source.count(fault.old)) != 1:
            wrong.append(f"{name}: its text stands {times} times in {fault.file}")
            continue
        ast.parse(source.replace(fault.old, fault.new))
        file, _, test = fault.test.partition("::")
        if f"\ndef {test.partition('[')[0]}(" not in (ROOT / "tests" / file).read_text(encoding="utf-8"):
            wrong.append(f"{name}: {fault.test} is not there")
    assert not wrong
    assert len(FAULTS) >= 30


def test_no_fault_is_there_twice() -> None:
    changes = [(fault.file, fault.old, fault.new) for fault in FAULTS.values()]
    assert len(set(changes)) == len(changes)
