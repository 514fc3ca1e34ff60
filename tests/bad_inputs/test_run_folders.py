"""Run folders whose files were emptied, cut short or replaced, and memory that runs out: each says what to do."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from glem_graphgym import memory
from glem_graphgym.em.e_step import LMLearner, LMTask
from glem_graphgym.em.joint_step import JointLearner
from glem_graphgym.em.m_step import GNNLearner, GNNTask
from glem_graphgym.memory import OutOfMemoryError, is_out_of_memory, naming_out_of_memory
from tests.bad_inputs.conftest import Program, main_apart
from tests.checks import cut, emptied
from tests.started import finish, start

Damage = Callable[[Path], None]


def other_bytes(file: Path) -> None:
    file.write_bytes(b"\x93garbage\xff\x00" * 9)


DAMAGES: dict[str, Damage] = {"emptied": emptied, "cut": cut, "other bytes": other_bytes, "removed": Path.unlink}
CHANGED = {name: DAMAGES[name] for name in ("emptied", "cut", "other bytes")}
STAGE = "results/small/0/stages/01_gnn_gold"
LM_STAGE = "results/small/0/stages/00_lm_gold"
# A removed stage.json means an unfinished stage, a removed run.json is another message, and weights may be forgotten.
STAGE_FILES = {
    f"{STAGE}/logits.npy": DAMAGES,
    f"{STAGE}/stage.json": CHANGED,
    f"{LM_STAGE}/embeddings.npy": CHANGED,
    f"{LM_STAGE}/weights.safetensors": CHANGED,
}


@pytest.fixture
def copy(program: Program, finished: Path) -> Program:
    """The finished run, in the program's folder."""
    shutil.copytree(finished / "results", program.folder / "results")
    return program


@pytest.mark.parametrize("file", STAGE_FILES)
def test_a_damaged_file_of_a_stage_is_named_and_redone_as_told(file: str, copy: Program) -> None:
    whole = (copy.folder / file).read_bytes()
    for name, damage in STAGE_FILES[file].items():
        damage(copy.folder / file)
        folder = (copy.folder / file).parent
        message = copy.refuses(names=[file, "delete", str(folder)])
        assert "same command" in message, name
        (copy.folder / file).write_bytes(whole)
    shutil.rmtree(folder)
    copy.accepts()
    assert folder.is_dir()


@pytest.mark.parametrize("damage", CHANGED)
def test_a_damaged_run_json_is_named_and_made_anew_by_overwrite(damage: str, copy: Program) -> None:
    DAMAGES[damage](copy.folder / "results/small/0/run.json")
    copy.refuses(names=["results/small/0/run.json", "--overwrite"])
    copy.refuses("seed", 1, names=["results/small/0/run.json", "--overwrite"])
    copy.refuses(names="results/small/0/run.json", program="predict")
    copy.accepts("--overwrite")


def test_a_run_json_that_is_no_object(copy: Program) -> None:
    (copy.folder / "results/small/0/run.json").write_text("[1, 2]\n")
    copy.refuses(names=["results/small/0/run.json", "--overwrite"])


def test_a_damaged_stage_stops_a_prediction(copy: Program) -> None:
    cut(copy.folder / LM_STAGE / "weights.safetensors")
    copy.refuses(program="predict", names=["00_lm_gold/weights.safetensors", "delete"])


def test_a_damaged_shared_stage_is_named_where_it_is_shared(program: Program) -> None:
    program.accepts("glem.share_lm_gold", True, "train.mode", "glem_lm")
    (shared,) = (program.folder / "datasets/lm_gold").glob("[0-9a-f]*")
    emptied(shared / "logits.npy")
    program.refuses("glem.share_lm_gold", True, "seed", 0, "out_dir", program.folder / "other", names=str(shared))
    shutil.rmtree(shared)
    program.accepts("glem.share_lm_gold", True, "seed", 0, "out_dir", program.folder / "other", "train.mode", "glem_lm")


def test_damaged_static_embeddings_are_named(program: Program) -> None:
    static = ("train.mode", "glem_gnn", "glem.node_features", "static")
    program.accepts(*static)
    (file,) = (program.folder / "datasets/static").glob("*/embeddings.npy")
    emptied(file)
    program.refuses(*static, "out_dir", program.folder / "other", names=[str(file), "delete"])


# ---- memory -------------------------------------------------------------------------------------------------------

ERRORS = {
    "torch on CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:127] can't allocate memory: 9 TB"),
    "torch on CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "Python": MemoryError(),
    "NumPy": np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype("f4")),  # type: ignore[attr-defined]
    "the system": OSError(12, "Cannot allocate memory"),
}
# (learner, its method, options) -> the stage in which memory runs out, and a key that helps.
STEPS: list[tuple[Any, str, tuple[Any, ...], str, str]] = [
    (LMLearner, "fit", (), "00_lm_gold", "lm.grad_accumulation"),
    (LMTask, "predict", (), "00_lm_gold", "lm.max_length"),
    (GNNLearner, "fit", (), "01_gnn_gold", "gnn.dim_inner"),
    (GNNTask, "predict", (), "01_gnn_gold", "gnn.dim_inner"),
    (JointLearner, "fit", ("train.mode", "glem_joint", "gnn.fan_out", "[2,2]"), "00_joint", "gnn.fan_out"),
]


@pytest.mark.parametrize(("learner", "method", "options", "stage", "key"), STEPS, ids=lambda value: str(value)[:20])
def test_memory_that_runs_out_names_the_stage_and_the_keys_and_can_be_resumed(
    learner: Any, method: str, options: tuple[Any, ...], stage: str, key: str, program: Program
) -> None:
    """Of the kinds of errors, which are all told alike, one of several lines and two without a message of ours."""
    for kind in ("torch on CUDA", "Python", "the system"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(learner, method, Mock(side_effect=ERRORS[kind]))
            status, _, err = program.run(*options)
        assert status == 1
        (line,) = (line for line in err.splitlines() if "error:" in line)
        assert stage in line and key in line and "same command" in line
        assert len(program.stages()) == int(stage[:2]), kind
    program.accepts(*options)


@pytest.mark.parametrize(
    ("work", "names"),
    [
        ("run.load_text_graph_of", ["memory", "dataset.name"]),
        ("gnn_check.build_gnn", ["memory", "model.type glem_sage", "gnn.dim_inner"]),
    ],
)
def test_memory_that_runs_out_before_the_stages_is_said_in_one_line(
    work: str, names: list[str], program: Program
) -> None:
    for error in ERRORS.values():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"glem_graphgym.build.{work}", Mock(side_effect=error))
            program.refuses(names=names)


def test_only_memory_counts_as_memory() -> None:
    for error in ERRORS.values():
        assert is_out_of_memory(error)
        named = pytest.raises(OutOfMemoryError, match=r"a step ran out of memory .*; try less; then")
        with named, naming_out_of_memory("a step", "try less"):
            raise error
    for other in (RuntimeError("size mismatch"), OSError(2, "No such file"), ValueError("out of range")):
        assert not is_out_of_memory(other)
        with pytest.raises(type(other)), naming_out_of_memory("a step", "try less"):
            raise other


def data_bytes() -> int:
    """Bytes that count for RLIMIT_DATA."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmData:")[2].split()[0])


def leave_little_memory() -> None:
    """Training of the language model finds what is allocated before, and a little more."""
    fit = LMLearner.fit

    def limited(self: LMLearner, *args: Any, **options: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + (16 << 20), resource.RLIM_INFINITY))
        return fit(self, *args, **options)

    LMLearner.fit = limited  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's accounts of memory")
def test_a_real_shortage_ends_in_one_line(program: Program) -> None:
    wide = ("dataset.synthetic_nodes", 3000, "lm.batch_size", 2048, "dataset.synthetic_words", 400, "lm.max_length", 64)
    arguments = ["--cfg", str(program.config), *map(str, wide)]
    (started,) = start(main_apart, arguments, "output", "errors", leave_little_memory)
    started.join(300)
    errors = (program.folder / "errors").read_text()
    assert started.exitcode == 1, errors
    (line,) = (line for line in errors.splitlines() if "error:" in line)
    assert "00_lm_gold" in line and "lm.grad_accumulation" in line
    assert "Traceback" not in errors


def allocate_beyond_the_machine() -> None:
    """Fails unless an allocation is refused that exceeds the memory that the machine is said to have."""
    memory.machine_bytes = lambda: data_bytes() + (1 << 30)  # type: ignore[assignment]
    memory.limit_to_machine()
    np.ones(1 << 20)
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(MemoryError):
        np.empty(limit, dtype=np.uint8)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit of Linux's")
def test_an_allocation_beyond_the_machine_fails_instead_of_having_the_process_killed() -> None:
    finish(start(allocate_beyond_the_machine))


# ---- batches that batch norm cannot take ----------------------------------------------------------------------------

ONE_NODE: list[tuple[tuple[Any, ...], str]] = [
    (("model.type", "glem_sagn", "gnn.batch_size", 1), "gnn.batch_size"),
    (("model.type", "glem_gamlp", "gnn.batch_size", 1), "gnn.batch_size"),
    (("gnn.fan_out", "[2,2]", "gnn.batch_size", 1), "gnn.batch_size"),
    (("train.mode", "glem_joint", "gnn.fan_out", "[2,2]", "lm.batch_size", 1), "lm.batch_size"),
    (("model.type", "glem_gamlp", "dataset.tag_split", "[0.05,0.3,0.3]", "gnn.batch_size", 2), "gnn.batch_size"),
]


@pytest.mark.parametrize(("options", "key"), ONE_NODE, ids=lambda value: str(value)[:40])
def test_a_batch_of_one_node_under_batch_norm(options: tuple[Any, ...], key: str, program: Program) -> None:
    program.refuses(*options, names=[key, "gnn.norm"])


def test_a_batch_of_one_node_without_batch_norm(program: Program) -> None:
    program.accepts("gnn.fan_out", "[2,2]", "gnn.batch_size", 1, "gnn.norm", "layer", "train.mode", "glem_cascade")
