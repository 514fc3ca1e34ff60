"""The dry run: which stages and files a run has, what fits, and what is said about what does not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.memory_check import gnn_remedy, joint_remedy, lm_remedy
from glem_graphgym.config import ConfigError, load_config
from glem_graphgym.data.csr import nodes_within
from glem_graphgym.data.synthetic import make_synthetic
from glem_graphgym.plan import calibration, preflight
from glem_graphgym.plan.calibration import Calibration, Cost, among_processes, sharded_mb
from glem_graphgym.plan.disk_sizes import layer_file_bytes
from glem_graphgym.plan.preflight import (
    Planned,
    Preflight,
    Stored,
    Verdict,
    common_files,
    disk_verdicts,
    examine,
    memory_verdicts,
    planned_stages,
    print_needs,
    resident_of_all,
    run_files,
    verdict_line,
)

COST: dict[str, Any] = {
    **{"resident_mb": 900.0, "mapped_mb": 100.0, "accelerator_mb": 0.0, "seconds": 90.0, "texts": 5, "tokens": 50},
    **{"model": "LM", "data_parallel": False},
}


def configure(**keys: Any) -> None:
    cfg.dataset.format = "TAG"
    cfg.dataset.task, cfg.dataset.task_type = "node", "classification"
    cfg.train.mode = "glem"
    for name, value in keys.items():
        group, _, key = name.partition("__")
        cfg[group][key] = value


N, C, H = 1000, 7, 32
NAMES = ("lm_gold", "gnn_gold", "e_step_1", "m_step_1")


def recorded(names: Sequence[str] = NAMES) -> list[dict[str, Any]]:
    """Stages as the trial answers them; those of one kind cost the same."""
    stages = []
    for place, name in enumerate(names):
        model = "LM" if name.startswith(("lm", "e_step")) else "GNN"
        arrays = {"logits": [N, C], **({"embeddings": [N, H]} if model == "LM" or name == "joint" else {})}
        about = {"model": model, "arrays": arrays, "weights": 4_000 if model == "LM" else 300, "shared": None}
        stages.append({"folder": f"{place:02d}_{name}", "cost": re.sub(r"_\d+$", "_1", name), **about})
    return stages


def measured(stages: list[dict[str, Any]] | None = None, **costs: dict[str, Any]) -> dict[str, Any]:
    stages = stages or recorded()
    folders = [stage["folder"] for stage in stages]
    return {
        "graph": {"name": "toy", "nodes": N, "edges": 3000, "classes": C},
        "tokens": {"total": 5000, "cached": False, "folder": "/data/tokens/t", "bytes": 10_000},
        "static": None,
        "hops": None,
        "layers": 0,
        "accelerator": "cpu",
        "processes": 1,
        "program_mb": 300.0,
        "stages": stages,
        "courses": [[*(folders[: place + 1] for place in range(len(folders))), folders]],
        "costs": costs or {stage["cost"]: {**COST, "model": stage["model"]} for stage in stages},
    }


# ---- stages -------------------------------------------------------------------------------------------------------


def test_a_finished_stage_is_done_unless_it_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "stages" / "00_lm_gold").mkdir(parents=True)
    (tmp_path / "stages" / "01_gnn_gold").mkdir()
    (tmp_path / "stages" / "00_lm_gold" / "stage.json").write_text("{}")
    assert [stage.done for stage in planned_stages(measured(), tmp_path)] == [True, False, False, False]
    assert not any(stage.done for stage in planned_stages(measured(), tmp_path, overwrite=True))


def test_a_mode_without_stages_is_refused(tmp_path: Path) -> None:
    configure(train__mode="standard")
    with pytest.raises(ConfigError, match=r"train\.mode is 'standard'.*glem_cascade"):
        examine(cfg, [tmp_path])


def test_a_stage_that_runs_share_is_done_where_another_has_done_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure()
    answer = measured()
    answer["stages"][0]["shared"] = str(tmp_path / "shared")
    monkeypatch.setattr(preflight, "measure", lambda *_: answer)
    for there in (False, True):
        found = examine(cfg, [tmp_path / "0", tmp_path / "1"])
        assert [stage.done for stage in found.stages[:5]] == [there, False, False, False, False]
        (tmp_path / "shared").mkdir(exist_ok=True)


# ---- disk ---------------------------------------------------------------------------------------------------------


def test_files_of_a_run_have_the_sizes_of_their_arrays(tmp_path: Path) -> None:
    found = measured()
    stored = {item.what: item for item in run_files(found, tmp_path, planned_stages(found, tmp_path))}
    assert stored["00_lm_gold: logits float16 (1,000, 7), embeddings float16 (1,000, 32)"].bytes == 2 * N * (C + H)
    assert stored["03_m_step_1: logits float16 (1,000, 7)"].bytes == 2 * N * C
    assert stored["weights of 4 stages"].bytes == 2 * (4_000 + 300)


def test_weights_are_those_of_the_worst_course_that_are_not_there_yet(tmp_path: Path) -> None:
    found, (first, gnn, em, m) = measured(), [stage["folder"] for stage in recorded()]
    found["courses"] = [[[first], [first, gnn, em], [em, m]], [[first], [first, gnn], [first, em, m]]]
    for done, kept, count, most in ((False, 8_300, 3, 0), (True, 4_300, 2, 0)):
        if done:
            (tmp_path / "stages" / first).mkdir(parents=True)
            (tmp_path / "stages" / first / "stage.json").write_text("{}")
        stored = {item.what: item for item in run_files(found, tmp_path, planned_stages(found, tmp_path))}
        assert stored[f"weights of {count} stages"].bytes == kept
        assert ("weights that are deleted again" in stored) == (most > 0)
    found["courses"].append([[first, gnn, em, m], []])
    stored = {item.what: item for item in run_files(found, tmp_path, planned_stages(found, tmp_path))}
    deleted = stored["weights that are deleted again"]
    assert (deleted.bytes, deleted.temporary) == (300, True)


def test_what_is_there_already_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "free_bytes", lambda place: 1_000)
    stored = [Stored("a", str(tmp_path / "new" / "a"), 900), Stored("b", str(tmp_path), 5_000, done=True)]
    (verdict,) = disk_verdicts(cfg, stored, {})
    assert (verdict.needed, verdict.available, verdict.fits) == (900, 1_000, True)
    (verdict,) = disk_verdicts(cfg, [*stored, Stored("c", str(tmp_path), 101)], {})
    assert not verdict.fits
    (verdict,) = disk_verdicts(cfg, [*stored, Stored("c", str(tmp_path), 101)], {tmp_path: 50})
    assert verdict.fits


def test_overwriting_frees_what_has_no_other_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure()
    monkeypatch.setattr(preflight, "measure", lambda *_: measured())
    monkeypatch.setattr(preflight, "free_bytes", lambda place: 0)
    (tmp_path / "0" / "stages").mkdir(parents=True)
    for name in ("own", "shared"):
        (tmp_path / "0" / "stages" / name).write_bytes(b"x" * 70)
    (tmp_path / "elsewhere").hardlink_to(tmp_path / "0" / "stages" / "shared")
    for overwrite in (False, True):
        found = examine(cfg, [tmp_path / "0"], overwrite)
        assert sum(verdict.available for verdict in found.verdicts if "disk" in verdict.resource) == 70 * overwrite


def test_what_one_seed_removes_again_is_free_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "free_bytes", lambda place: 1_000)
    kept = [Stored("logits", str(tmp_path / seed), 100) for seed in "01"]
    passing = [
        Stored(what, str(tmp_path / seed), size, temporary=True, run=seed)
        for seed, size in (("0", 30), ("1", 40))
        for what in ("weights", "hops")
    ]
    (verdict,) = disk_verdicts(cfg, [*kept, *passing], {})
    assert verdict.needed == 2 * 100 + 2 * 40


HOPS = {"fixed": False, "folder": "/data/hops", "cached": False, "bytes": 1000, "temporary": 700, "labels": 90}
OPERATORS = [
    {"folder": "/data/hops/operator-a", "bytes": 50, "cached": True},
    {"folder": "", "bytes": 60, "cached": False},
]


def test_hops_of_embeddings_pass_and_those_of_fixed_features_stay_for_all_seeds(tmp_path: Path) -> None:
    found = {**measured(), "hops": {**HOPS, "operators": OPERATORS}}
    plan = planned_stages(found, tmp_path)
    hops = {item.what: item for item in run_files(found, tmp_path, plan) if "hop" in item.what}
    assert [(what, item.bytes, item.temporary) for what, item in hops.items()] == [
        ("hop features of one M-step", 1700, True)
    ]
    shared = [(item.bytes, item.done) for item in common_files(found) if item.what != "tokens"]
    assert shared == [(50, True), (60, False)]
    found["hops"].update(fixed=True)
    hops = {item.what: item for item in run_files(found, tmp_path, plan) if "hop" in item.what}
    assert {what: (item.bytes, item.path) for what, item in hops.items()} == {
        "hop features, while they are made": (700, "/data/hops"),
        "label hops of one M-step": (90, str(tmp_path / "working")),
    }
    assert [(item.bytes, item.done) for item in common_files(found)][-1] == (1000, False)
    found["hops"].update(cached=True, labels=0)
    assert not any("hop" in item.what for item in run_files(found, tmp_path, plan))
    assert [(item.bytes, item.done) for item in common_files(found)][-1] == (1000, True)
    found["hops"].update(cached=False)
    finished = [replace(stage, done=True) for stage in plan]
    assert not any("hop" in item.what for item in run_files(found, tmp_path, finished))


def test_outputs_of_layers_pass_and_are_there_while_a_gnn_predicts(tmp_path: Path) -> None:
    for name, there in (("gnn_gold", True), ("joint", True), ("lm_gold", False)):
        found = {**measured(recorded([name])), "layers": 800}
        for done in (False, True):
            plan = [replace(stage, done=done) for stage in planned_stages(found, tmp_path)]
            files = [(item.bytes, item.temporary) for item in run_files(found, tmp_path, plan) if "layers" in item.what]
            assert files == ([(800, True)] if there and not done else [])


@pytest.mark.parametrize(
    ("accelerator", "data_parallel", "seconds"), [("cuda", True, 30.0), ("cuda", False, 90.0), ("cpu", True, 90.0)]
)
def test_processes_share_the_time_of_what_they_do_together_where_each_has_an_accelerator(
    accelerator: str, data_parallel: bool, seconds: float
) -> None:
    assert among_processes(Cost(**{**COST, "data_parallel": data_parallel}), 3, accelerator).seconds == seconds


@pytest.mark.parametrize(
    ("layers", "frozen", "expected"),
    [
        (3, 0, 5 * 1300 - 900),  # whole at a time: two of the layers, and the head
        (3, 3, 1300 + 4 * 100 - 900),
        (0, 0, 5 * 100 - 100),
    ],
)
def test_processes_split_what_training_keeps_of_each_weight(layers: int, frozen: int, expected: int) -> None:
    """Layers of 400 bytes and a head of 100: weights and, of trained ones, gradients, two moments and the best."""
    backbone = torch.nn.Module()
    backbone.layer = torch.nn.ModuleList(torch.nn.Linear(10, 10, bias=False) for _ in range(layers))
    backbone.config = SimpleNamespace(num_hidden_layers=3)  # type: ignore[assignment]
    for layer in backbone.layer[:frozen]:
        layer.requires_grad_(False)
    model: Any = torch.nn.Module()
    model.encoder, model.head = torch.nn.Module(), torch.nn.Linear(5, 5, bias=False)
    model.encoder.backbone = backbone
    assert sharded_mb(model) == pytest.approx(expected / 2**20)


def test_outputs_of_layers_on_disk() -> None:
    """Of a first layer those of the nodes within as many hops as there are further layers, and so on; two at a time."""
    configure(model__type="glem_gcn", gnn__dim_inner=16)
    graph, asked = make_synthetic(num_nodes=400, feature_dim=6, words_per_text=4), np.arange(3)
    reach = [len(nodes_within(graph.rowptr, graph.col, asked, hops)) for hops in range(4)]
    assert 3 == reach[0] < reach[1] < reach[2]
    for layers, whole, some in (
        (1, 0, 0),
        (2, graph.num_nodes, reach[1]),
        (3, 2 * graph.num_nodes, reach[2] + reach[1]),
        (4, 2 * graph.num_nodes, reach[3] + reach[2]),
    ):
        configure(gnn__layers_mp=layers)
        for predicted, rows in ((None, whole), (asked, some)):
            assert layer_file_bytes(cfg, graph, 32, predicted) == 4 * rows * 16


# ---- memory -------------------------------------------------------------------------------------------------------


def test_memory_is_that_of_the_largest_stage_that_is_still_to_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    configure()
    monkeypatch.setattr(preflight, "available_bytes", lambda: 1000 << 20)
    costs = {
        "lm_gold": {**COST, "resident_mb": 5000.0},
        "gnn_gold": {**COST, "model": "GNN"},
        "e_step": {**COST, "resident_mb": 1300.0},
    }
    stages = [Planned("00", "lm_gold", done=True), Planned("01", "gnn_gold", False), Planned("02", "e_step", False)]
    (verdict,) = memory_verdicts(cfg, measured(**costs), stages)
    assert (verdict.stage, verdict.needed, verdict.fits) == ("e_step", 1200 << 20, False)
    assert "lm.grad_accumulation 2 or more" in verdict.remedy
    assert "lm.gradient_checkpointing True" in verdict.remedy
    (verdict,) = memory_verdicts(cfg, measured(**costs), stages[:2])
    assert (verdict.stage, verdict.fits) == ("gnn_gold", True)
    assert "gnn.dim_inner below" in verdict.remedy
    assert memory_verdicts(cfg, measured(**costs), stages[:1]) == []


def test_memory_is_that_of_all_processes_and_of_the_one_that_starts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    configure()
    monkeypatch.setattr(preflight, "available_bytes", lambda: 1 << 40)
    sizes = (("lm_gold", 500.0, True), ("gnn_gold", 900.0, False))
    costs = {name: {**COST, "resident_mb": mb + 100.0, "data_parallel": shared} for name, mb, shared in sizes}
    kinds = ["lm_gold", "gnn_gold"]
    found = {**measured(**costs), "processes": 3}
    assert resident_of_all(found, kinds) == {"lm_gold": 3 * 500 + 300, "gnn_gold": 900 + 2 * 500 + 300}
    shared = {**found, "costs": {name: {**cost, "data_parallel": True} for name, cost in costs.items()}}
    assert resident_of_all(shared, kinds)["gnn_gold"] == 3 * 900 + 300
    assert resident_of_all({**found, "processes": 1}, kinds) == {"lm_gold": 500, "gnn_gold": 900}
    assert resident_of_all(found, ["gnn_gold"]) == {"gnn_gold": 900 + 2 * 300 + 300}  # who waits has done nothing yet
    (verdict,) = memory_verdicts(cfg, found, [Planned(kind, kind, done=False) for kind in kinds])
    assert (verdict.resource, verdict.needed, verdict.stage) == ("memory of 3 processes", 2200 << 20, "gnn_gold")


def test_an_accelerator_has_a_verdict_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    configure()
    monkeypatch.setattr(preflight, "available_bytes", lambda: 1 << 40)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100 << 20, 200 << 20))
    found = {**measured(gnn_gold={**COST, "accelerator_mb": 101.0}), "accelerator": "cuda"}
    memory, accelerator = memory_verdicts(cfg, found, [Planned("01_gnn_gold", "gnn_gold", False)])
    assert memory.fits
    assert (accelerator.resource, accelerator.needed, accelerator.fits) == ("accelerator memory", 101 << 20, False)


@pytest.mark.parametrize(
    ("settings", "by_blocks", "on_disk", "expected"),
    [
        ({"model__type": "glem_sage"}, False, False, 400 * 10),
        ({"model__type": "glem_sage", "glem__memory_budget_gb": 0.5}, True, False, 10 + 512),
        ({"model__type": "glem_gamlp", "gnn__batch_size": 8}, False, False, 10 + 1000),  # hop features may fill a half
        ({"model__type": "glem_gamlp", "gnn__batch_size": 8}, False, True, 10),  # they are read from disk
        ({"model__type": "glem_gamlp"}, False, True, 400 * 10),  # a batch of all nodes grows with the graph
    ],
)
def test_of_an_accelerators_memory_only_what_grows_with_the_graph_is_extrapolated(
    settings: dict[str, Any], by_blocks: bool, on_disk: bool, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial on 1 / 400 of the graph took 10 MB of an accelerator that has 2000 MB."""
    configure(**settings)
    monkeypatch.setattr(calibration, "free_on_gpu", lambda device: 2000 << 20)
    tried = object.__new__(Calibration)
    tried.cfg, tried.accelerator, tried.by_blocks = cfg, "cuda", by_blocks
    tried.sizes = {"hops": {"rows": 1} if on_disk else None}
    assert tried._accelerator_mb(400, 10.0) == expected
    assert tried._accelerator_mb(1, 10.0) == 10.0


def test_remedies_name_only_what_is_left_to_do() -> None:
    configure(lm__gradient_checkpointing=True, lm__batch_size=4, lm__grad_accumulation=4)
    assert "grad_accumulation" not in lm_remedy(cfg)
    assert "gradient_checkpointing" not in lm_remedy(cfg)
    cfg.gnn.fan_out = [5, 3]
    assert joint_remedy(cfg) == "set gnn.fan_out to less than [5, 3], or take train.mode glem"
    cfg.model.type = "glem_sage"
    assert "glem_gamlp" in gnn_remedy(cfg)
    cfg.model.type = "glem_sagn"
    assert "gnn.hops below 3" in gnn_remedy(cfg)


# ---- how it is said -----------------------------------------------------------------------------------------------


def test_a_verdict_says_what_is_needed_what_there_is_and_what_to_do() -> None:
    line = verdict_line(Verdict("memory", 3 << 30, 1 << 30, "e_step", "set lm.grad_accumulation 2"))
    assert line == "memory: DOES NOT FIT; e_step needs 3.0 GB, 1.0 GB are free; set lm.grad_accumulation 2"
    line = verdict_line(Verdict("disk at /data", 3 << 30, 1 << 40, "", "set out_dir elsewhere"))
    assert line == "disk at /data: fits; the run needs 3.0 GB, 1.0 TB are free"


def test_the_tables_name_every_stage_and_file() -> None:
    stages = [Planned("00_lm_gold", "lm_gold", True), Planned("01_gnn_gold", "gnn_gold", False)]
    stored = [Stored("logits", "/results/x", 5 << 20)]
    found = Preflight(measured(), stages, stored, [Verdict("memory", 1, 2, "gnn_gold", "")])
    assert found.seconds() == 90.0
    out = StringIO()
    print_needs(found, "toy", Console(file=out, width=160))
    for part in (
        "about 5,000 tokens",
        "00_lm_gold",
        "is there already",
        "01_gnn_gold",
        "900 MB",
        "/results/x",
        "5.0 MB",
    ):
        assert part in out.getvalue()
    assert "about 2 min" in out.getvalue()


# ---- a trial that fails -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_goes_wrong_in_the_trial_is_said_here(tmp_path: Path, tiny_lm: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        f"out_dir: {tmp_path}/results\n"
        f"dataset: {{format: TAG, name: synthetic, dir: {tmp_path}/data, synthetic_nodes: 200}}\n"
        f"lm: {{model: {tiny_lm}}}\ngnn: {{layers_mp: 0}}\nmodel: {{type: glem_sage}}\n"
        "train: {mode: glem_cascade}\n"
    )
    load_config(cfg, file)
    with pytest.raises(RuntimeError, match=r"gnn\.layers_mp is 0"):
        examine(cfg, [tmp_path / "results" / "0"])
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "data").exists()
