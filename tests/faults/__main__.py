"""Seed faults and see that tests notice: ``python -m tests.faults [name ...]``, all of them or those named.

Each fault is seeded in a copy of its own of the package and tests, in which its test must fail; without the fault it
must pass. Prints a table, and ends with status 1 if a fault was not noticed within a minute.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0  # that a test has to notice a fault
TESTS_FAILED = 1  # pytest's exit status; others mean that no test was run


def run_test(test: str, fault: Fault | None) -> tuple[int, float]:
    """The exit status of a test in a copy with ``fault``, and its seconds; status -1 where it took too long."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / ROOT.name
        unneeded = shutil.ignore_patterns(".*", "__pycache__", "datasets", "results", "*.egg-info")
        shutil.copytree(ROOT, copy, ignore=unneeded)
        if fault is not None:
            file = copy / "glem_graphgym" / fault.file
            file.write_text(file.read_text(encoding="utf-8").replace(fault.old, fault.new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"tests/{test}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        began = time.monotonic()
        try:
            done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=2 * SECONDS)
        except subprocess.TimeoutExpired:
            return -1, 2 * SECONDS
        return done.returncode, time.monotonic() - began


def main(names: list[str]) -> int:
    if unknown := set(names) - set(FAULTS):
        print(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}", file=sys.stderr)
        return 2
    chosen = {name: FAULTS[name] for name in names or FAULTS}
    tests = sorted({fault.test for fault in chosen.values()})
    print(f"{len(chosen)} faults, {len(tests)} tests; seconds hold a start of Python and pytest", flush=True)
    missed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sound = dict(zip(tests, pool.map(lambda test: run_test(test, None)[0] == 0, tests), strict=True))
        outcomes = pool.map(lambda fault: run_test(fault.test, fault), chosen.values())
        for (name, fault), (status, seconds) in zip(chosen.items(), outcomes, strict=True):
            noticed = status == TESTS_FAILED and seconds < SECONDS and sound[fault.test]
            missed += not noticed
            why = "" if noticed else f" (status {status}{'' if sound[fault.test] else '; fails without the fault too'})"
            print(f"{'caught' if noticed else 'MISSED'} {seconds:5.1f} s  {name}: {fault.says}{why}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
