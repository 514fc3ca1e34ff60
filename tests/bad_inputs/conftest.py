"""The corpus of bad inputs: whatever is wrong ends in one line that names the key or file, before long work begins.

A case is data: what is changed in a run that works, and which names its message must hold. Messages are not compared
word for word.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from torch_geometric.graphgym.config import cfg, set_cfg

from glem_graphgym import processes

RUN = Path(__file__).resolve().parents[2] / "run"

# How every small run is computed, and where its results go.
PREAMBLE = """
accelerator: cpu
metric_best: accuracy
num_threads: 1
tensorboard_agg: False
out_dir: {folder}/results
"""
# A run that works and takes a second: every case changes one thing of it.
WORKING = (
    PREAMBLE
    + """dataset: {{format: TAG, name: synthetic, dir: {folder}/datasets, tag_split: [0.3, 0.2, 0.3],
  synthetic_nodes: 60, synthetic_classes: 2, synthetic_words: 3}}
lm: {{model: {tiny_lm}, epochs: 1, batch_size: 8, max_length: 16, precision: 32}}
model: {{type: glem_sage}}
gnn: {{layers_mp: 2, layers_post_mp: 1, dim_inner: 8}}
optim: {{optimizer: adamw, scheduler: none, max_epoch: 2}}
train: {{mode: glem}}
"""
)


def load_program(name: str) -> ModuleType:
    """``run/<name>.py`` as a module."""
    spec = importlib.util.spec_from_file_location(f"program_{name}", RUN / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Marker:
    """Something that, unpickled, makes the file ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return io.open, (str(self.path), "w")

    def ran(self) -> bool:
        return self.path.exists()


class Ended(NamedTuple):
    """What a program left: its exit status, standard output and standard error."""

    returncode: int
    stdout: str
    stderr: str


@contextmanager
def process_taken_back() -> Iterator[None]:
    """A block in which a program sets variables, paths and logging for its process: afterwards they are as before."""
    environment, path = dict(os.environ), sys.path[:]
    try:
        with logging_taken_back():
            yield
    finally:
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(environment)


@contextmanager
def logging_taken_back() -> Iterator[None]:
    """A block in which a program sets up the root logger: afterwards it is as before, and new handlers are closed."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        new_handlers = [handler for handler in root.handlers if handler not in handlers]
        root.handlers[:] = handlers
        root.setLevel(level)
        for handler in new_handlers:  # last: on a full disk this raises OSError
            handler.close()


def run_here(program: str, arguments: Sequence[object], capsys: pytest.CaptureFixture[str]) -> Ended:
    """A program of ``run/`` in this process, which spares its imports; its user wants no traceback."""
    capsys.readouterr()
    wanted = os.environ.pop("GLEM_TRACEBACK", None)
    try:
        with logging_taken_back():
            status = load_program(program).main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse
        status = error.code if isinstance(error.code, int) else 1
    finally:
        if wanted is not None:
            os.environ["GLEM_TRACEBACK"] = wanted
    return Ended(status, *capsys.readouterr())


class Program:
    """``run/main.py`` (or another program of ``run/``) in this process, in a folder of its own.

    Attributes:
        folder: where the configuration ``small.yaml``, ``datasets/`` and ``results/`` are.
    """

    def __init__(self, folder: Path, tiny_lm: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.tiny_lm, self.capsys = folder, tiny_lm, capsys
        self.config = folder / "small.yaml"
        self.write(WORKING)

    def write(self, text: str) -> None:
        """Make ``text`` the configuration; ``{folder}`` and ``{tiny_lm}`` stand for their paths."""
        self.config.write_text(text.format(folder=self.folder, tiny_lm=self.tiny_lm), encoding="utf-8")

    def run(self, *options: object, program: str = "main") -> tuple[int, str, str]:
        """Exit status, standard output and standard error of ``--cfg small.yaml`` with ``options``."""
        return run_here(program, ["--cfg", self.config, *options], self.capsys)

    def refuses(self, *options: object, names: str | Sequence[str], status: int = 1, program: str = "main") -> str:
        """The one line of standard error with which the program refuses ``options``, checked; no stage was run.

        Args:
            names: what the message must hold: keys, files, values.
            status: 1 where a run cannot be done, 2 for a wrong command line.
        """
        before = self.stages()
        found, _, err = self.run(*options, program=program)
        lines = [line for line in err.splitlines() if line.strip()]
        errors = [line for line in lines if "error:" in line]
        assert found == status, f"exit status {found}, expected {status}; {err}"
        assert len(errors) == 1 and lines[-1] == errors[0], f"expected one line that begins with error:, found {lines}"
        assert "Traceback" not in err
        for name in [names] if isinstance(names, str) else names:
            assert name in errors[0], f"{name!r} is not in {errors[0]!r}"
        assert self.stages() == before, "a stage was run before the input was refused"
        return errors[0]

    def accepts(self, *options: object, says: str | Sequence[str] = ()) -> str:
        """What the program says, on both streams, of a run that goes through; checked for ``says``."""
        found, out, err = self.run(*options)
        assert found == 0, err
        for name in [says] if isinstance(says, str) else says:
            assert name in out + err
        return out + err

    def stages(self) -> list[str]:
        """Finished stages, of all seeds."""
        return sorted(str(path) for path in self.folder.glob("results/*/*/stages/[0-9]*"))


@pytest.fixture
def program(
    tmp_path: Path, tiny_lm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Program]:
    """A working run, of which a case changes one thing; what ``run/main.py`` sets for its process is taken back."""
    monkeypatch.delenv("GLEM_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)
    with process_taken_back():
        yield Program(tmp_path, tiny_lm, capsys)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> Path:
    """A folder with a configuration and its finished run, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.yaml").write_text(WORKING.format(folder=folder, tiny_lm=tiny_lm))
    with process_taken_back(), redirect_stdout(io.StringIO()):
        assert load_program("main").main(["--cfg", str(folder / "small.yaml")]) == 0
    cfg.clear()
    set_cfg(cfg)
    return folder


def main_apart(arguments: list[str], output: str, errors: str, prepare: Callable[[], None] | None = None) -> None:
    """``run/main.py`` after ``prepare``, to be started in a process of its own; its streams go to files."""
    for descriptor, file in ((1, output), (2, errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.pop("GLEM_TRACEBACK", None)
    if prepare:
        prepare()
    program = load_program("main")
    processes.end(program.run_program(lambda: program.main(arguments)))
