"""Settings that contradict each other, in any train mode: refused in one line that names the keys, before any stage."""

from __future__ import annotations

import numpy as np
import pytest

from tests.bad_inputs.conftest import Program

GNN = ["train.mode", "glem_gnn", "glem.node_features", "static"]
JOINT = ["train.mode", "glem_joint", "gnn.fan_out", "[2, 2]"]
GAMLP = ["model.type", "glem_gamlp"]

# what is wrong: options, and what the message must name
CONTRADICTIONS: dict[str, tuple[list[object], list[str]]] = {
    # ---- the mode and the node features
    "embeddings without an LM": (["train.mode", "glem_gnn"], ["glem.node_features", "glem_gnn"]),
    "joint training without texts": ([*JOINT, "glem.node_features", "static"], ["glem.node_features", "glem_joint"]),
    "a kind of features that there is not": (["glem.node_features", "text+words"], ["glem.node_features", "words"]),
    "a kind of features without a name": (["glem.node_features", "text+"], ["glem.node_features", "text, static, raw"]),
    "features that are named twice": (["glem.node_features", "static + text+static"], ["glem.node_features", "twice"]),
    "a file without a name": (["glem.node_features", "text+file"], ["glem.node_features", "glem.feature_file"]),
    "a name without a file": (["glem.feature_file", "x.npy"], ["glem.node_features", "glem.feature_file"]),
    "raw features of a graph without": (["glem.node_features", "text+raw"], ["glem.node_features"]),
    "text encoder inside the GNN": (
        ["dataset.node_encoder", True, "dataset.node_encoder_name", "glem_text"],
        ["train.mode", "dataset.node_encoder"],
    ),
    "a node encoder of a network without": (["dataset.node_encoder", True], ["model.type", "node_encoder is True"]),
    "an edge encoder of a network without": (
        ["dataset.edge_encoder", True, "train.mode", "standard"],
        ["model.type", "dataset.edge_encoder True"],
    ),
    "an LM as the GNN": (["model.type", "glem_lm"], ["model.type", "glem_lm"]),
    "a data set without texts": (["dataset.format", "PyG", "dataset.name", "Cora"], ["train.mode", "dataset.format"]),
    "graphs in place of nodes": (["dataset.task", "graph"], ["train.mode", "dataset.task"]),
    "regression": (["dataset.task_type", "regression"], ["train.mode", "dataset.task_type"]),
    "standard training with a node encoder of ours": (
        ["train.mode", "standard", "dataset.node_encoder", True],
        ["model.type", "dataset.node_encoder"],
    ),
    "edges in place of nodes, in GraphGym's own training": (
        ["train.mode", "standard", "dataset.task", "edge"],
        ["dataset.task is 'edge'", "TAG"],
    ),
    "regression in GraphGym's own training": (
        ["train.mode", "standard", "dataset.task_type", "regression", "metric_best", "loss"],
        ["dataset.task_type 'regression'", "TAG"],
    ),
    "the largest loss as the best": (["metric_best", "loss"], ["metric_best is 'loss'", "metric_agg", "argmin"]),
    "the lowest score as the best": (["metric_agg", "argmin"], ["metric_best is 'accuracy'", "metric_agg", "argmax"]),
    "GraphGym's own training without epochs": (["train.mode", "standard", "optim.max_epoch", 0], ["optim.max_epoch"]),
    "a sampler that GraphGym cannot run": (
        ["train.mode", "standard", "glem.node_features", "static", "train.sampler", "cluster"],
        ["train.sampler cluster", "GLEM_TRACEBACK"],
    ),
    "layers that GraphGym cannot stack": (
        [*("train.mode", "standard", "glem.node_features", "static"), "model.type", "gnn", "gnn.layers_mp", 0],
        ["model.type gnn", "mat1"],
    ),
    # ---- sampled neighbourhoods
    "joint training without sampling": (["train.mode", "glem_joint"], ["glem_joint", "gnn.fan_out"]),
    "a number too few": (["gnn.fan_out", "[3]"], ["gnn.fan_out", "gnn.layers_mp"]),
    "a number too many": ([*JOINT, "gnn.fan_out", "[3, 3, 3]"], ["gnn.fan_out", "gnn.layers_mp"]),
    "no neighbour": (["gnn.fan_out", "[3, 0]"], ["gnn.fan_out"]),
    "half a neighbour": (["gnn.fan_out", "[3, 0.5]"], ["gnn.fan_out"]),
    "sampling for hop features": ([*GAMLP, "gnn.fan_out", "[2, 2]"], ["gnn.fan_out", "model.type"]),
    "degrees that sampling takes away": (
        ["model.type", "glem_revgat", "gnn.fan_out", "[2, 2]", "gnn.symmetric_norm", True],
        ["gnn.fan_out", "gnn.symmetric_norm"],
    ),
    # ---- joint training
    "joint training of hop features": ([*JOINT, *GAMLP], ["model.type", "glem_joint"]),
    "joint training with another optimizer": ([*JOINT, "optim.optimizer", "sgd"], ["optim.optimizer", "glem_joint"]),
    "joint training with another schedule": ([*JOINT, "optim.scheduler", "cos"], ["optim.scheduler", "glem_joint"]),
    "more parts than nodes": ([*JOINT, "lm.grad_accumulation", 8], ["lm.grad_accumulation", "gnn.norm"]),
    "joint self-distillation": ([*JOINT, "gnn.distillation", 0.5], ["gnn.distillation"]),
    # ---- what hop networks can, and full-batch networks can
    "self-training of a full-batch network": ([*GNN, "gnn.rlu_rounds", 2], ["gnn.rlu_rounds", "model.type"]),
    "consistency of a full-batch network": (["gnn.scr_weight", 0.5], ["gnn.scr_weight", "model.type"]),
    "label reuse on hop features": (
        [*GNN, *GAMLP, "glem.label_input", True, "gnn.label_reuse", 1],
        ["gnn.label_reuse", "model.type"],
    ),
    "self-distillation on hop features": ([*GNN, *GAMLP, "gnn.distillation", 0.5], ["gnn.distillation", "model.type"]),
    "self-distillation on sampled neighbours": (
        ["gnn.fan_out", "[2, 2]", "gnn.distillation", 0.5],
        ["gnn.distillation", "gnn.fan_out"],
    ),
    "labels for a network that takes none": (
        ["model.type", "glem_sgc", "glem.label_input", True],
        ["glem.label_input", "model.type"],
    ),
    "reuse of labels that are not given": (["gnn.label_reuse", 1], ["gnn.label_reuse", "glem.label_input"]),
    "a norm that the network does not have": (["gnn.input_norm", "batch"], ["gnn.input_norm", "model.type"]),
    "a norm for embeddings that do not change": (["gnn.input_norm", "layer"], ["gnn.input_norm", "train.mode glem"]),
    # ---- nodes that are left out
    "smoothing of predictions that nobody makes": (
        ["glem.encode_nodes", "needed", "glem.correct_and_smooth", True],
        ["glem.encode_nodes", "glem.correct_and_smooth"],
    ),
    "inductive, but edges of test nodes decide": (
        ["glem.encode_nodes", "needed", "glem.setting", "inductive"],
        ["glem.encode_nodes", "glem.setting"],
    ),
    "structure-free, but edges of test nodes decide": (
        ["glem.encode_nodes", "needed", "glem.setting", "structure_free", "train.mode", "glem_cascade"],
        ["glem.encode_nodes", "glem.setting"],
    ),
    # ---- batches
    "unequal parts": (["lm.grad_accumulation", 3], ["lm.batch_size", "lm.grad_accumulation"]),
    "unequal E-step parts": (
        ["lm.grad_accumulation", 2, "e_step.batch_size", 7],
        ["e_step.batch_size", "lm.grad_accumulation"],
    ),
    # ---- what is trained in two ways at once
    "a GNN without epochs": (["optim.max_epoch", 0], ["optim.max_epoch"]),
    "a GNN without a learning rate": (["optim.base_lr", 0], ["optim.base_lr"]),
    "a language model without a learning rate": (["lm.lr", 0], ["lm.lr"]),
    "E-steps without a learning rate": (["e_step.lr", 0], ["e_step.lr"]),
    "adapters larger than the layers": (["lm.lora_rank", 1000], ["lm.lora_rank"]),
    "frozen layers with adapters": (["lm.freeze_layers", 1, "lm.lora_rank", 2], ["lm.freeze_layers", "lm.lora_rank"]),
    "a base in bf16 that is trained": (["lm.base_precision", "bf16"], ["lm.base_precision", "lm.lora_rank"]),
    "two half precisions": (
        ["lm.base_precision", "bf16", "lm.lora_rank", 2, "lm.precision", "16"],
        ["lm.base_precision", "lm.precision"],
    ),
    "4 bits on a processor": (
        ["lm.base_precision", "4", "lm.lora_rank", 2, "accelerator", "cpu"],
        ["lm.base_precision", "GPUs", "bf16"],
    ),
    "4 bits of random weights": (
        ["lm.base_precision", "4", "lm.lora_rank", 2, "lm.pretrained", False],
        ["lm.base_precision", "lm.pretrained"],
    ),
    "adapters that nothing has": (["lm.lora_variant", "dora"], ["lm.lora_variant", "lm.lora_rank"]),
    "adapters of no layer": (["lm.lora_rank", 2, "lm.lora_targets", "[]"], ["lm.lora_targets"]),
    "adapters of layers that there are not": (
        ["lm.lora_rank", 2, "lm.lora_targets", "[query, q_proj]"],
        ["lm.lora_targets", "q_proj", "attention.self.query, "],
    ),
    "a prompt of a column": (["lm.prompt", "{title}: {text}"], ["lm.prompt", "{title}: {text}", "{text} and"]),
    "a prompt with two texts": (["lm.prompt", "{text}, {text}"], ["lm.prompt"]),
    "a prompt as long as a text": (["lm.prompt", "abc " * 30], ["lm.prompt", "lm.max_length"]),
    "more frozen layers than there are": (["lm.freeze_layers", 9], ["lm.freeze_layers"]),
    "half of the channels": (["model.type", "glem_revgat", "gnn.rev_groups", 5], ["group"]),
    # ---- results that there are not
    "prediction as a train mode": (["train.mode", "glem_predict"], ["train.mode", "run/predict.py"]),
    "predictions of nobody": (["glem.first_predictions", "nowhere.npy"], ["glem.first_predictions", "nowhere.npy"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictory_settings_are_refused(case: str, program: Program) -> None:
    options, names = CONTRADICTIONS[case]
    program.refuses(*options, names=names)


def test_first_predictions_beyond_float16_are_refused(program: Program) -> None:
    """They would be infinite in the files of a run."""
    np.save(program.folder / "first.npy", np.full((60, 2), -1e6, dtype=np.float32))
    program.refuses("glem.first_predictions", program.folder / "first.npy", names=["first.npy", "1e+06", "65504"])


def test_graphgyms_own_training_names_what_it_does_not_read(program: Program) -> None:
    unread = ["dataset.to_undirected", True, "gnn.act", "prelu", "gnn.fan_out", "[2, 2]"]
    names = ["dataset.to_undirected (but dataset.tag_undirected)", "gnn.act", "gnn.fan_out"]
    program.accepts("train.mode", "standard", "glem.node_features", "static", *unread, says=names)


@pytest.mark.parametrize(
    "options",
    [
        ["glem.encode_nodes", "needed", "glem.setting", "inductive", "gnn.fan_out", "[2, 2]"],
        ["glem.encode_nodes", "needed", "glem.setting", "inductive", *GAMLP],
        ["glem.smooth_pseudo", True, "lm.label_smoothing", 0.99],
    ],
    ids=["sampled", "hops", "smoothed"],
)
def test_what_is_sound_runs(options: list[object], program: Program) -> None:
    program.accepts(*options, "train.mode", "glem")
