"""Standard output that closes or fills up: the work is done all the same, and nothing ends in a traceback."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.bad_inputs.conftest import RUN, Program, load_program, logging_taken_back, main_apart
from tests.started import start

# What a program of run/ does, without the seconds of imports: it prints, logs, and writes what it is there for.
PROGRAM = """
import logging, pathlib, sys
sys.path.insert(0, {run!r})
from command_line import run_program

def main():
    logging.basicConfig(level=logging.INFO, handlers=[logging.StreamHandler(sys.stdout)])
    for number in range(3000):
        print("line", number, flush=number % 7 == 0)
        logging.info("logged")
        print("progress", number, end="\\r", file=sys.stderr, flush=True)
    pathlib.Path("done").write_text("done")
    return {status}

sys.exit(run_program(main))
"""
# How a shell calls it, and the exit status that is expected after all has gone well.
CALLS = {
    "a reader that goes": ("{command} 2>errors | head -1 >/dev/null; exit ${{PIPESTATUS[0]}}", 0),
    "a reader of both that goes": ("{command} 2>&1 | head -1 >/dev/null; exit ${{PIPESTATUS[0]}}", 0),
    "a full disk": ("{command} 2>errors >/dev/full", 1),
    "a full disk for errors": ("{command} 2>/dev/full >/dev/null", 0),
    "a full disk for both": ("{command} >/dev/full 2>&1", 1),
    "closed": ("{command} 2>errors >&-", 0),
    "errors closed": ("{command} 2>&- >/dev/null", 0),
    "both closed": ("{command} 2>&- >&-", 0),
}


@pytest.mark.parametrize("status", [0, 3])
@pytest.mark.parametrize("case", CALLS)
def test_the_work_is_done_all_the_same(case: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(run=str(RUN), status=status))
    call, expected = CALLS[case]
    shell = ["bash", "-c", call.format(command=f"{sys.executable} program.py")]
    assert subprocess.run(shell, cwd=tmp_path, check=False, timeout=60).returncode == (status or expected)
    assert (tmp_path / "done").exists()
    errors = (tmp_path / "errors").read_text() if (tmp_path / "errors").exists() else ""
    assert "Traceback" not in errors and "Logging error" not in errors
    assert ("No space left" in errors) == (case == "a full disk")


def test_interrupted_while_it_imports_it_says_so_in_one_line() -> None:
    start = f"import sys; sys.path.insert(0, {str(RUN)!r}); from command_line import run_program"
    program = f"{start}\ndef main(): raise KeyboardInterrupt\nsys.exit(run_program(main))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "interrupted\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux's")
def test_a_log_without_room_gives_no_traceback_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logging.log").symlink_to("/dev/full")
    with suppress(OSError), logging_taken_back():  # which closes the log
        load_program("session").set_up_logging(SimpleNamespace(print="file", run_dir=tmp_path))
        logging.info("a line")
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_finished_though_its_output_is_lost(program: Program) -> None:
    (started,) = start(main_apart, ["--cfg", str(program.config)], "/dev/full", "errors")
    started.join(300)
    errors = (program.folder / "errors").read_text()
    assert started.exitcode == 1 and "Traceback" not in errors
    assert "error: standard output cannot be written" in errors.splitlines()[-1]
    assert len(program.stages()) == 4 and (program.folder / "results/small/agg/val/best.json").exists()


@pytest.mark.parametrize(("number", "has_remedy"), [(errno.EROFS, True), (errno.EACCES, True), (errno.EIO, False)])
def test_a_folder_that_can_only_be_read_is_told_from_a_fault(
    number: int, has_remedy: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLEM_TRACEBACK", raising=False)

    def work(args: argparse.Namespace) -> int:
        raise OSError(number, os.strerror(number), "datasets/tokens")

    assert load_program("session").run_to_status(work, argparse.Namespace(), computes=False) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "datasets/tokens" in line and ("choose another dataset.dir or out_dir" in line) == has_remedy
