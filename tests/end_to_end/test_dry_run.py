"""--dry_run: its estimates beside what the run then takes, on sizes at which memory tells; and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.gnn import LayeredGNN
from glem_graphgym.build.run_folder import RunError
from glem_graphgym.config import load_config
from glem_graphgym.out_of_core import propagation as out_of_core
from glem_graphgym.plan import calibration, preflight
from glem_graphgym.plan.preflight import Preflight, examine
from tests.bad_inputs.conftest import load_program
from tests.started import finish, start, start_main

pytestmark = pytest.mark.slow

MAIN = Path(__file__).resolve().parents[2] / "run" / "main.py"
STAGES = ("lm_gold", "gnn_gold", "e_step_1", "m_step_1")

CONFIG = """
metric_best: accuracy
num_threads: 1
tensorboard_agg: False
out_dir: {folder}/results
dataset:
  format: TAG
  name: synthetic
  dir: {folder}/datasets
  tag_split: [0.02, 0.02, 0.9]
  synthetic_nodes: 15000
  synthetic_degree: 6.0
  synthetic_words: 4
lm:
  model: {tiny_lm}
  epochs: 2
  batch_size: 512
  max_length: 16
  precision: 32
model:
  type: {network}
gnn:
  layers_mp: 3
  layers_post_mp: 1
  dim_inner: 448
  dropout: 0.2
optim:
  optimizer: adamw
  scheduler: none
  max_epoch: 3
train:
  mode: glem
  eval_period: 2
glem:
  node_features: text+static
  label_input: True
"""


def write_config(folder: Path, tiny_lm: Path, network: str = "glem_sage") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "synth.yaml"
    file.write_text(CONFIG.format(folder=folder, tiny_lm=tiny_lm, network=network))
    return file


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are forks of a process that has imported the libraries."""

    def run_forked(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        finish(start(calibrate, *map(Path, command[-2:]), calibration.GRAPH_AT_ONCE))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(preflight.subprocess, "run", run_forked)


def calibrate(request: Path, answer: Path, at_once: int) -> None:
    calibration.GRAPH_AT_ONCE = at_once
    os.dup2(2, json.loads(request.read_text())["terminal"])
    calibration.main(request, answer)


def foreseen(config: Path) -> Preflight:
    load_config(cfg, config)
    return examine(cfg, [Path(cfg.out_dir) / "synth" / "0"])


def size_of(*folders: Path) -> int:
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def run(config: Path) -> list[dict[str, Any]]:
    """The records of the stages of a run in a process of its own."""
    finish(start_main(["--cfg", str(config)]))
    stages = config.parent / "results" / "synth" / "0" / "stages"
    return [json.loads((folder / "stage.json").read_text()) for folder in sorted(stages.iterdir())]


@pytest.mark.parametrize("network", ["glem_sage", "glem_sagn"])
@pytest.mark.usefixtures("forked")
def test_a_run_takes_what_was_foreseen(network: str, tmp_path: Path, tiny_lm: Path) -> None:
    config = write_config(tmp_path, tiny_lm, network)
    found = foreseen(config)
    assert found.fits
    assert not (tmp_path / "results").exists()
    assert size_of(tmp_path / "datasets") == 0
    records = run(config)
    stored = sum(item.bytes for item in found.stored if not item.temporary)
    assert stored == pytest.approx(size_of(tmp_path / "results", tmp_path / "datasets"), rel=0.25)
    memory = {record["name"]: record["peak_memory_mb"] for record in records}
    assert set(memory) == set(STAGES)
    expected = {kind: cost["resident_mb"] for kind, cost in found.measured["costs"].items() if kind in memory}
    assert expected == pytest.approx(memory, rel=0.25)
    if network == "glem_sage":
        assert memory["gnn_gold"] > memory["lm_gold"] + 200  # so that the network, not the program, was foreseen


HOPS_ON_DISK = """
gnn: {dim_inner: 16, hops: 2, label_hops: 2, batch_size: 100}
dataset: {tag_split: [0.1, 0.1, 0.3], synthetic_nodes: 3000}
lm: {epochs: 1, batch_size: 64}
glem: {memory_budget_gb: 3.0e-4, pseudo_nodes: valid_test}
"""


@pytest.mark.parametrize(
    "options",
    [
        {"train": {"mode": "glem_gnn"}, "glem": {"node_features": "static", "encode_nodes": "needed"}},
        {"train": {"mode": "glem_cascade"}, "glem": {"node_features": "text", "setting": "inductive"}},
    ],
    ids=["needed", "inductive"],
)
@pytest.mark.usefixtures("forked")
def test_hops_on_disk_take_what_was_foreseen(
    options: dict[str, Any], tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, tiny_lm, "glem_gamlp")
    values = yaml.safe_load(config.read_text())
    for more in (yaml.safe_load(HOPS_ON_DISK), options):
        for group, keys in more.items():
            values[group].update(keys)
    config.write_text(yaml.safe_dump(values))
    found = foreseen(config)
    assert size_of(tmp_path / "datasets") == 0
    peaks, join = [], out_of_core.DiskPropagation._join

    def noted(self: Any) -> None:
        peaks.append(size_of(self.folder))
        join(self)

    monkeypatch.setattr(out_of_core.DiskPropagation, "_join", noted)
    assert load_program("main").main(["--cfg", str(config)]) == 0
    stored = sum(item.bytes for item in found.stored if not item.temporary)
    assert stored == pytest.approx(size_of(tmp_path / "results", tmp_path / "datasets"), rel=0.25)
    hops = {item.what: item for item in found.stored if item.what.startswith("hop features")}
    assert sum(item.bytes for item in hops.values()) == pytest.approx(max(peaks), rel=0.25)
    operators = [item for item in found.stored if item.what == "propagation operator"]
    assert len(operators) == (2 if "setting" in options["glem"] else 1)
    written = tmp_path / "datasets" / "hops"
    assert sum(item.bytes for item in operators) == pytest.approx(size_of(*written.glob("operator-*")), rel=0.05)
    (run_dir,) = (tmp_path / "results" / "synth").glob("[0-9]*")
    again = examine(cfg, [run_dir.parent / "1"])
    there = {item.what for item in again.stored if item.done}
    kept = {"hop features"} if options["train"]["mode"] == "glem_gnn" else set()
    assert {"tokens", "propagation operator"} | kept <= there
    assert not any(item.what == "hop features, while they are made" for item in again.stored)


@pytest.mark.parametrize(("mode", "encoded"), [("glem_gnn", "needed"), ("glem_joint", "all")])
@pytest.mark.usefixtures("forked")
def test_outputs_of_layers_take_what_was_foreseen(
    mode: str, encoded: str, tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, tiny_lm)
    values = yaml.safe_load(config.read_text())
    values["dataset"].update(tag_split=[0.05, 0.05, 0.05], synthetic_nodes=3000)
    values["gnn"].update(fan_out=[3, 2, 2], dim_inner=16, batch_size=30)
    values["lm"].update(batch_size=30, epochs=1)
    values["train"]["mode"] = mode
    values["glem"].update(memory_budget_gb=9e-4, encode_nodes=encoded)
    if mode == "glem_gnn":
        values["glem"]["node_features"] = "static"
    config.write_text(yaml.safe_dump(values))
    found = foreseen(config)
    (layers,) = (item for item in found.stored if item.what == "outputs of a GNN's layers")
    assert layers.temporary
    peaks, layer = [], LayeredGNN.layer

    def noted(self: LayeredGNN, index: int, x: Any, structure: Any) -> Any:
        peaks.append(sum(file.stat().st_size for file in (tmp_path / "results").rglob("layer_*.npy")))
        return layer(self, index, x, structure)

    monkeypatch.setattr(LayeredGNN, "layer", noted)
    assert load_program("main").main(["--cfg", str(config)]) == 0
    assert layers.bytes == pytest.approx(max(peaks), rel=0.25)
    assert not list((tmp_path / "results").rglob("layer_*.npy"))


def resident_mb(process: int) -> float:
    """Of a process and all that it has started."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # it has ended
        return 0.0
    own = sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024
    return own + sum(resident_mb(int(child)) for child in children)


@pytest.mark.usefixtures("forked")
def test_several_processes_take_together_what_was_foreseen(tmp_path: Path, tiny_lm: Path) -> None:
    config = write_config(tmp_path, tiny_lm, "glem_sagn")  # which they train together, as the language model
    config.write_text(config.read_text() + "accelerator: cpu\ndevices: 2\n")
    found = foreseen(config)
    (verdict,) = (verdict for verdict in found.verdicts if "memory" in verdict.resource)
    assert verdict.resource == "memory of 2 processes"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, str(MAIN), "--cfg", str(config)], env=environment) as running:
        peak = 0.0
        while running.poll() is None:
            peak = max(peak, resident_mb(running.pid))
            time.sleep(0.1)
    assert running.returncode == 0
    assert verdict.needed / 2**20 == pytest.approx(peak, rel=0.25)


def test_a_missing_dataset_is_built_before_ones_eyes(
    tmp_path: Path, tiny_lm: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, tiny_lm)
    (tmp_path / "nodes.csv").write_text(
        "id,text,label,split\n"
        + "".join(f"{node},word{node},{'ab'[node % 2]},{['train', 'valid', 'test'][node % 3]}\n" for node in range(60))
    )
    (tmp_path / "edges.csv").write_text("source,target\n" + "".join(f"{node},{node + 1}\n" for node in range(59)))
    table = ["dataset.name", "table", "dataset.tag_source", str(tmp_path), "dataset.tag_split", "[0.4, 0.3, 0.3]"]
    small = [*table, "train.mode", "glem_lm", "lm.epochs", "1"]
    main = load_program("main").main
    for is_there in (False, True):
        assert main(["--cfg", str(config), "--dry_run", *small]) == 0
        assert ("is not there yet: it is made now" in capfd.readouterr().err) != is_there


def test_what_tries_stages_ends_with_the_dry_run(tmp_path: Path, tiny_lm: Path) -> None:
    config = write_config(tmp_path, tiny_lm)
    with subprocess.Popen([sys.executable, str(MAIN), "--cfg", str(config), "--dry_run"]) as running:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        (child,) = waited(lambda: [int(name) for name in children.read_text().split() if is_trial(int(name))])
        waited(lambda: Path(f"/proc/{child}/oom_score_adj").read_text().strip() == "1000")
        running.kill()
    waited(lambda: not is_trial(child))


def is_trial(process: int) -> bool:
    try:
        return b"calibration" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def waited(ask: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 300
    while not (answer := ask()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return answer


@pytest.mark.usefixtures("forked")
def test_joint_training_takes_what_was_foreseen(tmp_path: Path, tiny_lm: Path) -> None:
    config = write_config(tmp_path, tiny_lm)
    text = config.read_text().replace("mode: glem", "mode: glem_joint").replace("layers_mp: 3", "layers_mp: 2")
    text = text.replace("gnn:\n", "gnn:\n  fan_out: [3, 2]\n").replace("batch_size: 512", "batch_size: 64")
    config.write_text(text)
    found = foreseen(config)
    assert found.fits
    assert not (tmp_path / "results").exists()
    (record,) = run(config)
    cost = found.measured["costs"]["joint"]
    assert cost["resident_mb"] == pytest.approx(record["peak_memory_mb"], rel=0.25)
    notes = record["diagnostics"]
    assert cost["texts"] == pytest.approx(notes["steps"] * notes["texts_per_step"], rel=0.1)
    assert cost["tokens"] == pytest.approx(notes["steps"] * notes["tokens_per_step"], rel=0.1)
    assert 0.2 < cost["seconds"] / record["seconds"] < 5  # other tests work beside it
    stored = sum(item.bytes for item in found.stored if not item.temporary)
    assert stored == pytest.approx(size_of(tmp_path / "results", tmp_path / "datasets"), rel=0.25)


@pytest.mark.usefixtures("forked")
def test_a_graph_of_which_a_part_is_tried_takes_what_was_foreseen(
    tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, tiny_lm)
    config.write_text(config.read_text().replace("mode: glem", "mode: glem_gnn").replace("text+static", "static"))
    whole = foreseen(config).measured
    monkeypatch.setattr(calibration, "GRAPH_AT_ONCE", 40_000)
    part = foreseen(config).measured
    assert (whole["tried_nodes"], part["tried_nodes"]) == (15_000, 5_714)
    memory = [found["costs"]["gnn_gold"]["resident_mb"] for found in (part, whole)]
    assert memory[0] == pytest.approx(memory[1], rel=0.25)


@pytest.mark.usefixtures("forked")
def test_a_run_that_does_not_fit_is_refused_with_what_to_do(
    tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, tiny_lm)
    small = ["dataset.synthetic_nodes", "600", "gnn.dim_inner", "16"]
    main = load_program("main").main
    answers, measure = [], preflight.measure

    def measured_once(*given: Any) -> dict[str, Any]:
        if not answers:
            answers.append(measure(*given))
        return answers[0]

    monkeypatch.setattr(preflight, "measure", measured_once)
    assert main(["--cfg", str(config), "--dry_run", *small]) == 0
    assert "DOES NOT FIT" not in capsys.readouterr().out
    monkeypatch.setattr(preflight, "available_bytes", lambda: 100 << 20)
    monkeypatch.setattr(preflight, "free_bytes", lambda place: 1000)
    assert main(["--cfg", str(config), "--dry_run", *small]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "DOES NOT FIT" in line]
    assert len(lines) == 2
    assert "1,000 bytes are free" in lines[0]
    assert "set out_dir or dataset.dir to a place with more room" in lines[0]
    assert "100 MB are free" in lines[1]
    assert "set " in lines[1]
    assert not (tmp_path / "results").exists()


@pytest.mark.usefixtures("forked")
def test_what_the_run_itself_refuses_the_dry_run_refuses(tmp_path: Path, tiny_lm: Path) -> None:
    config = write_config(tmp_path, tiny_lm)
    small = ["dataset.synthetic_nodes", "600", "dataset.tag_split", "[0.6, 0.2, 0.2]", "gnn.dim_inner", "16"]
    small += ["model.type", "glem_gamlp", "glem.memory_budget_gb", "4e-4"]
    main, message = load_program("main").main, "gnn.batch_size is 0 with"
    with pytest.raises(ValueError, match=message):
        main(["--cfg", str(config), *small])
    with pytest.raises(RunError, match=message):
        main(["--cfg", str(config), "--dry_run", *small])
