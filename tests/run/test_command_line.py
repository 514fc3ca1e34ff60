"""What the programs of run/ do before torch is imported: they say something, and set what OpenMP reads once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.bad_inputs.conftest import load_program

RUN = Path(__file__).resolve().parents[2] / "run"
command_line: Any = load_program("command_line")
LINE = "Loading PyTorch, PyTorch Geometric and Lightning ..."
# In place of torch: says that its import has begun, and what OpenMP and CUDA's allocator would then read.
TORCH = """
import os
names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
print("torch:", *(f"{name}={os.environ[name]}" for name in names if name in os.environ))
raise SystemExit(0)
"""
PROGRAMS = {
    "main": ["--cfg", "small.yaml", "seed", "3"],
    "prepare": ["--cfg", "small.yaml"],
    "configs_gen": ["--config", "small.yaml", "--grid", "grid.txt"],
    "leaderboard": ["--dir", "results"],
    "agg_batch": ["--dir", "results"],
    "make_papers100m_like": ["--folder", "x", "--nodes", "9", "--edges", "9"],
    "benchmark": [],
    "grid/jobs": [".", "1"],
}


def start(folder: Path, program: str, *more: str, **environment: str) -> list[str]:
    """Lines of standard output of a program that ends where it imports torch."""
    (folder / "torch").mkdir(exist_ok=True)
    (folder / "torch" / "__init__.py").write_text(TORCH)
    (folder / "small.yaml").write_text("out_dir: results\nprint: both\n")
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_", "PYTORCH_"))
    }
    done = subprocess.run(
        [sys.executable, str(RUN / f"{program}.py"), *PROGRAMS.get(program, []), *more],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


GPU = "PYTORCH_ALLOC_CONF=expandable_segments:True"
LIGHT = ("configs_gen", "leaderboard", "agg_batch")  # which compute nothing


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_line_comes_first_and_openmp_is_set_before_torch_is_imported(program: str, tmp_path: Path) -> None:
    first, *rest = start(tmp_path, program, GPUS="none")
    assert first == LINE
    setting = "" if program in LIGHT else rf" (GOMP_SPINCOUNT=\d+|OMP_WAIT_POLICY=passive) {GPU}"
    assert len(rest) == 1 and re.fullmatch(f"torch:{setting}", rest[0])


@pytest.mark.parametrize(
    ("own", "more"),
    [
        ("GOMP_SPINCOUNT=7", f" {GPU}"),
        ("OMP_WAIT_POLICY=active", f" {GPU}"),
        ("PYTORCH_ALLOC_CONF=max_split_size_mb:128", ""),
        ("PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:128", ""),
    ],
)
def test_what_the_user_has_set_stands(own: str, more: str, tmp_path: Path) -> None:
    name, _, value = own.partition("=")
    first, second = start(tmp_path, "main", **{name: value})
    assert first == LINE
    openmp = "" if "OMP" in name else r"(GOMP_SPINCOUNT=\d+|OMP_WAIT_POLICY=passive) "
    assert re.fullmatch(f"torch: {openmp}{own}{more}", second)


@pytest.mark.parametrize(("busy", "expected"), [(0, "GOMP_SPINCOUNT"), (20, "GOMP_SPINCOUNT"), (50, "OMP_WAIT_POLICY")])
def test_threads_sleep_at_once_beside_a_busy_program(
    busy: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cores that this process may not use, and those of which nothing is known, do not count."""
    monkeypatch.setattr(psutil, "cpu_percent", lambda *_, percpu: [90.0, busy, 90.0])
    monkeypatch.setattr(command_line.os, "sched_getaffinity", lambda _: {1, 12}, raising=False)
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(name, "to be put back")
        monkeypatch.delenv(name)
    command_line.before_imports(quiet=True)
    assert [name for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if name in os.environ] == [expected]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux alone pins processes to cores")
def test_a_real_busy_program_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as program:
        try:
            assert max(command_line.cores_in_use() for _ in range(20)) >= command_line.BUSY_CORES
        finally:
            program.kill()


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        (["print", "file"], {}),
        ([], {"RANK": "1", "WORLD_SIZE": "2"}),
        ([], {"SLURM_PROCID": "3"}),
        ([], {"GLEM_STARTED_BY": "1"}),
    ],
)
def test_the_line_is_said_once_and_not_where_quiet_is_asked_for(
    options: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    (line,) = start(tmp_path, "main", *options, **environment)
    assert line.startswith(("torch: GOMP_SPINCOUNT=", "torch: OMP_WAIT_POLICY="))


@pytest.mark.parametrize(
    ("text", "quiet"),
    [("print: file", True), ("print: 'file'  # no more", True), ("print: stdout", False), ("x: [", False)],
)
def test_print_is_read_from_the_file_too(text: str, quiet: bool, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(f"seed: 1\n{text}\n")
    assert (LINE not in start(tmp_path, "main", "--cfg", "other.yaml")) == quiet


def test_help_answers_without_torch(tmp_path: Path) -> None:
    for file in RUN.glob("*.py"):
        if file.stem not in ("command_line", "session"):
            first, *rest = start(tmp_path, file.stem, "--help")
            assert first.startswith("usage: ") and not any(line.startswith("torch:") for line in rest), file.name


def test_no_program_imports_torch_without_it() -> None:
    for file in RUN.glob("*.py"):
        text = file.read_text()
        is_program = "__main__" in text  # session.py is called by programs
        if is_program and re.search(r"^\s*(from|import) (torch|glem_graphgym|grid\.(configs|tables))", text, re.M):
            assert re.search(r"^\s*(before_imports|return run_to_status)\(", text, re.MULTILINE), file.name
