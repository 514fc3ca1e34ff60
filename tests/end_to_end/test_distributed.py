"""run/main.py in two processes, however they are started: the results of one, and no hang when one is killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.graphgym.config import cfg

from glem_graphgym.config import ConfigError, check_devices, load_config
from tests.bad_inputs.conftest import load_program
from tests.small import write_config
from tests.started import finish, start_main

pytestmark = pytest.mark.slow

MAIN = Path(__file__).resolve().parents[2] / "run" / "main.py"
SECONDS = 300  # for a run that takes ten, on a busy machine
STAGES = ["00_lm_gold", "01_gnn_gold", "02_e_step_1", "03_m_step_1"]
# Of logits and embeddings, which are stored in float16. In the last stage training multiplies what the E-step's
# embeddings and pseudo-labels were rounded by; on equal ones two processes give what one gives (second test).
TOLERANCE = dict(zip(STAGES, (4e-3, 4e-3, 4e-3, 6e-2), strict=True))

# Without dropout, which processes draw by themselves. The M-step has batch norm; its optimizer is SGD, because Adam
# makes steps of full length of the rounding errors that are the gradients of biases before a batch norm.
CHANGES: dict[str, object] = {
    **{"accelerator": "cpu", "print": "both", "model.type": "glem_gamlp", "glem.label_input": True},
    **{"lm.batch_size": 7, "lm.dropout": 0.0, "lm.attention_dropout": 0.0, "lm.head_dropout": 0.0, "lm.epochs": 2},
    **{"lm.evals_per_epoch": 2, "lm.infer_tokens": 128, "lm.lr": 1e-3},
    **{"gnn.batch_size": 33, "gnn.dropout": 0.0, "gnn.input_dropout": 0.0, "gnn.label_dropout": 0.0},
    **{"gnn.hops": 2, "gnn.label_hops": 2},
    **{"optim.base_lr": 0.02, "optim.max_epoch": 6, "optim.optimizer": "sgd"},
}


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLEM_TRACEBACK": ""}


def arguments(config: Path, out: Path, *options: object) -> list[str]:
    return ["--cfg", str(config), "out_dir", str(out), *map(str, options)]


def command(config: Path, out: Path, *options: object, torchrun: bool = False) -> list[str]:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if torchrun else []
    return [sys.executable, *start, str(MAIN), *arguments(config, out, *options)]


def run(config: Path, out: Path, *options: object, processes: int = 1) -> Path:
    """Run in processes that are started as srun starts them; returns the folder of the run."""
    finish(start_main(arguments(config, out, *options), processes), SECONDS)
    return out / "synth" / "0"


@pytest.fixture(scope="module")
def config(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("distributed") / "synth.yaml", tiny_lm, CHANGES)


@pytest.fixture(scope="module")
def alone(config: Path) -> Path:
    """The run's folder, done by one process."""
    return run(config, config.parent / "one")


def files(run_dir: Path) -> set[str]:
    return {str(path.relative_to(run_dir.parent)) for path in run_dir.parent.rglob("*") if path.is_file()}


def check_same(run_dir: Path, expected: Path) -> None:
    for stage in STAGES:
        for file in sorted((expected / "stages" / stage).glob("*.npy")):
            found, right = (np.load(folder / "stages" / stage / file.name) for folder in (run_dir, expected))
            np.testing.assert_allclose(found, right, atol=TOLERANCE[stage], rtol=2e-3, err_msg=f"{stage}/{file.name}")
            assert np.abs(right.astype(float)).max() > 0.05
        found, right = (
            json.loads((folder / "stages" / stage / "history.json").read_text()) for folder in (run_dir, expected)
        )
        assert len(right) > 1
        for mine, theirs in zip(found, right, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-3)
    assert files(run_dir) == files(expected)
    lines = (run_dir / "logging.log").read_text().splitlines()
    done = [line.split(":")[0] for line in lines if "; took " in line]
    assert done == [f"stage {number} of {len(STAGES)}" for number in range(1, len(STAGES) + 1)]


@pytest.mark.parametrize("torchrun", [False, True])
def test_two_processes_give_what_one_gives(config: Path, alone: Path, torchrun: bool) -> None:
    out = config.parent / f"two_{torchrun}"
    options = ("lm.grad_accumulation", 1) if torchrun else ("devices", 2)
    started = command(config, out, *options, torchrun=torchrun)
    done = subprocess.run(started, env=environment(), capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr
    check_same(out / "synth" / "0", alone)
    assert done.stdout.count("stage 4 of 4: accuracy ") == done.stdout.count("synth, seed 0") == 1


def test_two_processes_with_parts_of_the_weights_give_what_one_gives(config: Path, alone: Path) -> None:
    check_same(run(config, config.parent / "fsdp", "lm.strategy", "fsdp", processes=2), alone)


def test_on_equal_inputs_two_processes_train_the_gnn_as_one_does(config: Path, alone: Path) -> None:
    last, out = STAGES[-1], config.parent / "last_by_two"
    shutil.copytree(alone, out / "synth" / "0")
    shutil.rmtree(out / "synth" / "0" / "stages" / last)
    run_dir = run(config, out, processes=2)
    assert done_before(run_dir) == 3
    found, right = (np.load(folder / "stages" / last / "logits.npy") for folder in (run_dir, alone))
    np.testing.assert_allclose(found, right, rtol=2e-3, atol=1e-4)  # the last place of float16


def done_before(run_dir: Path) -> int:
    """Number of stages that starts of a run found finished."""
    return (run_dir / "logging.log").read_text().count("was done before")


def child(parent: int, rank: str) -> int:
    for process in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"\0RANK={rank}\0" in f"\0{Path(f'/proc/{process}/environ').read_text()}":
            return int(process)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for the process in /proc")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_process_that_is_killed_ends_the_run_which_resumes(config: Path, strategy: str) -> None:
    out = config.parent / f"killed_{strategy}"
    epochs = {"ddp": 12, "fsdp": 5}[strategy]  # enough for the kill to come before the E-step's end
    options = ("e_step.epochs", epochs, "optim.max_epoch", 2, "lm.evals_per_epoch", 1, "lm.strategy", strategy)
    options = (*options, "glem.checkpoint_minutes", 0.005)
    started = subprocess.Popen(
        command(config, out, "devices", 2, *options), env=environment(), stderr=subprocess.PIPE, text=True
    )
    stages = out / "synth" / "0" / "stages"
    deadline = time.monotonic() + SECONDS
    while not (stages / ".02_e_step_1.part/checkpoint/e_step_1.pt").exists():
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(child(started.pid, "1"), signal.SIGKILL)
    killed = time.monotonic()
    _, errors = started.communicate(timeout=SECONDS)
    assert started.returncode == 1
    assert time.monotonic() - killed < 60
    assert "error: process 1 of 2 was killed by signal SIGKILL" in errors
    assert sorted(path.name for path in stages.glob("[0-9]*")) == STAGES[:2]

    options = options[:-2]  # from here on no checkpoint is due
    if strategy == "ddp":
        run_dir = run(config, out, *options)  # the number of processes is no part of what the run is
        assert done_before(run_dir) == 2
    else:  # each process has a part of the training's state
        with pytest.raises(ValueError, match=r"2 processes that split the weights .* but this run has processes with"):
            load_program("main").main(arguments(config, out, *options, "lm.strategy", "ddp"))
        run_dir = run(config, out, *options, processes=2)
        assert done_before(run_dir) == 2 + 2  # also for the one that was refused
        whole = run(config, config.parent / "not_killed", *options, processes=2)
        found, right = (np.load(folder / "stages" / STAGES[2] / "logits.npy") for folder in (run_dir, whole))
        np.testing.assert_array_equal(found, right)
    assert sorted(path.name for path in stages.glob("[0-9]*")) == STAGES


ADAMW = ("optim.optimizer", "adamw", "optim.scheduler", "none")


@pytest.mark.parametrize(
    ("options", "started", "message"),
    [
        (("devices", "0"), None, "devices is 0, expected 1 to 1024"),
        (("devices", "3"), 2, "devices is 3, but 2 processes were started on this machine"),
        (("lm.strategy", "fsdp"), None, "lm.strategy is 'fsdp', which shards .*, but this run has one; set devices to"),
        (("lm.strategy", "fsdp", "lm.precision", "16"), 2, "lm.strategy is 'fsdp', but .* of lm.precision 16 cannot"),
        (
            ("lm.strategy", "fsdp", "train.mode", "glem_joint", "gnn.fan_out", "[2,2]", *ADAMW),
            2,
            "the first process trains alone",
        ),
        (("train.mode", "standard"), 2, "train.mode standard is GraphGym's own training"),
    ],
)
def test_wrong_numbers_of_processes_are_refused(
    config: Path, options: tuple[str, ...], started: int | None, message: str
) -> None:
    def check() -> None:
        load_config(cfg, config, options)
        check_devices(cfg, started)

    with pytest.raises(ConfigError, match=message):
        check()


@pytest.mark.parametrize(("rank", "refused"), [("0", True), (None, False)])
def test_processes_of_torchrun_see_a_gpu_each_and_those_of_srun_may_see_their_own_alone(
    config: Path, rank: str | None, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    load_config(cfg, config, ("accelerator", "cuda"))
    with pytest.raises(ConfigError, match="torch sees 1 GPUs") if refused else contextlib.nullcontext():
        check_devices(cfg, 2)
