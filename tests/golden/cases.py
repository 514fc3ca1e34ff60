"""The golden runs: what each changes in one small configuration, and how its predictions are had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch_geometric.graphgym.config import cfg, set_cfg

from tests.bad_inputs.conftest import PREAMBLE, load_program
from tests.started import finish, start_main

RECORD = Path(__file__).with_name("record.npz")

# Small steps of the language model, and the GNN by SGD: Adam makes a step of lr of a gradient that is but rounding, and
# another processor rounds in another way.
CONFIG = (
    PREAMBLE
    + """dataset: {{format: TAG, name: synthetic, dir: {folder}/datasets, tag_split: [0.3, 0.2, 0.3],
  synthetic_nodes: 100, synthetic_classes: 3, synthetic_words: 4, synthetic_features: 6}}
lm: {{model: {lm}, epochs: 2, batch_size: 8, max_length: 16, precision: 32, lr: 0.001, warmup_epochs: 0.5,
  evals_per_epoch: 2}}
model: {{type: glem_sage}}
gnn: {{layers_mp: 2, layers_post_mp: 1, dim_inner: 16, dropout: 0.2, precision: 32}}
optim: {{optimizer: sgd, base_lr: 0.2, scheduler: none, max_epoch: 4}}
train: {{mode: glem, eval_period: 2}}
e_step: {{epochs: 1}}
glem: {{em_iterations: 1, lm_pseudo_ratio: 1.0, gnn_pseudo_ratio: 0.5}}
"""
)

HOPS = {"optim.base_lr": 0.05, "gnn.hops": 2, "gnn.batch_size": 16}
SAMPLED = {"gnn.fan_out": "[3,3]", "gnn.batch_size": 12}
JOINT = {
    "train.mode": "glem_joint",
    "gnn.fan_out": "[3,3]",
    "glem.node_features": "text+raw",
    "optim.optimizer": "adamw",
    "optim.base_lr": 0.001,
}
ON_GOLD = {"train.mode": "glem_gnn", "glem.node_features": "raw"}
ALL = {"glem.node_features": "text+static+raw", "glem.label_input": True}

CASES: dict[str, dict[str, object]] = {
    "glem": {},
    "glem_gnn_first": {"glem.order": "gnn_first", "glem.em_iterations": 2, "glem.lm_redraw": "epoch"},
    "glem_hard_filtered": {"glem.targets": "hard", "glem.confidence": 0.8, "glem.temperature": 2.0},
    "glem_inductive": {"glem.setting": "inductive", **ALL},
    "glem_structure_free": {"glem.setting": "structure_free", "model.type": "glem_gcn"},
    "glem_until_plateau": {"glem.em_iterations": -1, "glem.em_max_iterations": 2, "glem.lm_init": "previous"},
    "glem_accumulated": {
        "lm.grad_accumulation": 2,
        "lm.decay": "cosine",
        "lm.label_smoothing": 0.1,
        "glem.smooth_pseudo": True,
    },
    "glem_lora": {"lm.lora_rank": 2},
    "glem_revgat": {"model.type": "glem_revgat", "optim.base_lr": 0.05, "gnn.att_heads": 2, **ALL},
    "glem_gat_smoothed": {
        "model.type": "glem_gat",
        "gnn.att_heads": 2,
        "glem.correct_and_smooth": True,
        "glem.ensemble": True,
    },
    "glem_sampled": {**SAMPLED, **ALL},
    "glem_sampled_on_disk": {**SAMPLED, **ALL, "glem.memory_budget_gb": 7e-5},
    "glem_hops": {"model.type": "glem_gamlp", **HOPS, **ALL},
    "glem_hops_on_disk": {"model.type": "glem_gamlp", **HOPS, **ALL, "glem.memory_budget_gb": 1e-4},
    "glem_sagn": {"model.type": "glem_sagn", **HOPS, **ALL},
    "glem_bf16": {"lm.precision": "bf16", "gnn.precision": "bf16"},
    "glem_needed": {"glem.encode_nodes": "needed", "glem.pseudo_nodes": "valid_test"},
    "glem_two_processes": {"devices": 2, "model.type": "glem_gamlp", **HOPS},
    "lm": {"train.mode": "glem_lm"},
    "cascade": {"train.mode": "glem_cascade", "model.type": "glem_sign", **HOPS},
    "gnn_static": {"train.mode": "glem_gnn", "glem.node_features": "static"},
    "gnn_distilled": {**ON_GOLD, "gnn.distillation": 0.5},
    "gnn_label_reuse": {**ON_GOLD, "glem.label_input": True, "gnn.label_reuse": 1},
    "gnn_self_trained": {**ON_GOLD, "model.type": "glem_sagn", **HOPS, "gnn.rlu_rounds": 2, "gnn.rlu_threshold": 0.4},
    "gnn_consistent": {
        **ON_GOLD,
        "model.type": "glem_gamlp",
        **HOPS,
        "gnn.scr_weight": 1.0,
        "gnn.scr_threshold": 0.3,
    },
    "gnn_mlp": {**ON_GOLD, "model.type": "glem_mlp", "glem.correct_and_smooth": True},
    "gnn_sgc": {**ON_GOLD, "model.type": "glem_sgc", **HOPS},
    "joint": JOINT,
    "joint_two_processes": {**JOINT, "devices": 2},
    "joint_on_disk": {**JOINT, "glem.memory_budget_gb": 6e-5},
}


def arguments_of(name: str, folder: Path, lm: Path) -> list[str]:
    """Arguments of ``run/main.py`` for a run in ``folder`` with the language model ``lm``."""
    (folder / "small.yaml").write_text(CONFIG.format(folder=folder, lm=lm))
    options = [str(word) for option in CASES[name].items() for word in option]
    return ["--cfg", str(folder / "small.yaml"), *options]


def predictions_of(name: str, folder: Path, lm: Path) -> dict[str, np.ndarray]:
    """Stage -> its float16 logits (N, C), of that run."""
    arguments = arguments_of(name, folder, lm)
    if devices := CASES[name].get("devices"):
        finish(start_main(arguments, int(str(devices))))
    else:
        set_cfg(cfg)
        assert load_program("main").main(arguments) == 0
    stages = sorted((folder / "results" / "small" / "0" / "stages").iterdir())
    return {stage.name: np.load(stage / "logits.npy") for stage in stages if stage.name[0] != "."}
