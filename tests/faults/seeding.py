"""A fault seeded in a copy of the package, and its test run there."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.faults import Fault

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0  # that a test has to notice a fault
TESTS_FAILED = 1  # pytest's exit status; others mean that no test was run
LIBRARIES = ["pytest", "torch_geometric.graphgym", "transformers.models.bert.modeling_bert", "pandas", "hypothesis"]
CONTEXT = multiprocessing.get_context("forkserver")  # processes are forks of one that holds these
CONTEXT.set_forkserver_preload(LIBRARIES)


def run_test(test: str, fault: Fault | None) -> tuple[int | None, float]:
    """The exit status of a test in a copy with ``fault``, and its seconds; None where it took too long."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / ROOT.name
        unneeded = shutil.ignore_patterns(".*", "__pycache__", "datasets", "results", "*.egg-info")
        shutil.copytree(ROOT, copy, ignore=unneeded)
        if fault is not None:
            file = copy / "glem_graphgym" / fault.file
            file.write_text(file.read_text(encoding="utf-8").replace(fault.old, fault.new), encoding="utf-8")
        began = time.monotonic()
        process = CONTEXT.Process(target=_pytest, args=(copy, test))
        process.start()
        process.join(2 * SECONDS)
        seconds = time.monotonic() - began
        if process.exitcode is None:
            process.kill()
            process.join()
            return None, seconds
        return process.exitcode, seconds


def _pytest(copy: Path, test: str) -> None:
    """In a process that holds libraries alone: what is ours comes from the copy."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "glem_graphgym")]:
        del sys.modules[name]
    sys.path[:] = [str(copy), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    sys.dont_write_bytecode = True
    os.chdir(copy)
    os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=str(copy))
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    import pytest

    sys.exit(int(pytest.main(["-p", "no:cacheprovider", f"tests/{test}"])))
