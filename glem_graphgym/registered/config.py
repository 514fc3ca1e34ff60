"""Every config key we add to GraphGym, each with a default, a unit and a sentence; loading, checking and dumping configs.

GraphGym's grids reach two levels (``group.key``), so no key lies deeper.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch_geometric.graphgym.config import assert_cfg, set_cfg
from torch_geometric.graphgym.register import (
    act_dict,
    edge_encoder_dict,
    head_dict,
    layer_dict,
    loader_dict,
    loss_dict,
    metric_dict,
    network_dict,
    node_encoder_dict,
    optimizer_dict,
    pooling_dict,
    register_config,
    scheduler_dict,
    stage_dict,
)
from torch_geometric.nn.resolver import aggregation_resolver
from yacs.config import CfgNode

from glem_graphgym.files import atomic_write


class ConfigError(ValueError):
    """A key of the configuration is unknown, of the wrong type, or contradicts another; the message names it."""


@dataclass(frozen=True)
class Key:
    """A config key: ``group.name``, its default (whose type every value must have), unit and meaning.

    ``allowed`` is a tuple of the values it may take, or a pair (low, high) for numbers when ``span`` is set.
    """

    name: str
    default: Any
    unit: str
    meaning: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    def check(self, value: Any) -> None:
        if self.choices and value not in self.choices:
            raise ConfigError(f"{self.name} is '{value}', expected one of: {', '.join(self.choices)}")
        if value is None or value != value:
            raise ConfigError(f"{self.name} is {value}, expected {type(self.default).__name__}")
        if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
            bounds = f"at least {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"
            raise ConfigError(f"{self.name} is {value}, expected {bounds}")


AS_LM = "-1 = as in lm"

KEYS = (
    # ---- what runs ------------------------------------------------------------------------------------------------
    Key(
        "train.mode", "standard", "", "What is run: stock GraphGym training, GLEM, or a part of it as a baseline.",
        choices=("standard", "glem", "glem_lm", "glem_gnn", "glem_cascade", "glem_joint", "glem_predict"),
    ),
    # ---- the graph ------------------------------------------------------------------------------------------------
    Key("dataset.tag_source", "", "path", "Packages file (debian) or folder of tables (table); empty = the default source."),
    Key("dataset.tag_split", [0.1, 0.1, 0.8], "shares", "Train, valid and test shares where the data has no split of its own."),
    Key("dataset.tag_seed", 0, "", "Seed of a random split and of generated graphs.", low=0),
    Key("dataset.tag_max_nodes", 0, "nodes", "Upper bound for a smaller variant of the debian graph; 0 = all.", low=0),
    Key("dataset.labels_per_source", 5, "nodes", "Packages of one source that may carry a label (debian).", low=1),
    Key("dataset.min_class_size", 20, "nodes", "Classes with fewer labelled nodes are left unlabelled (debian).", low=1),
    Key("dataset.synthetic_nodes", 1000, "nodes", "Size of a generated graph.", low=10),
    Key("dataset.synthetic_classes", 4, "classes", "Classes of a generated graph.", low=2),
    Key("dataset.synthetic_degree", 8.0, "edges", "Mean degree of a generated graph.", low=0),
    Key("dataset.synthetic_text_signal", 0.5, "share", "How much a generated text tells of its class: 0 nothing, 1 all.", low=0, high=1),
    Key("dataset.synthetic_structure_signal", 0.5, "share", "How much generated edges tell of the class: 0 nothing, 1 all.", low=0, high=1),
    Key("dataset.synthetic_words", 12, "words", "Words in a generated text.", low=1),
    Key("dataset.synthetic_features", 0, "columns", "Raw node features of a generated graph; 0 = none.", low=0),
    # ---- the language model ---------------------------------------------------------------------------------------
    Key("lm.model", "sentence-transformers/all-MiniLM-L6-v2", "", "Hugging Face encoder: hub id or local folder."),
    Key("lm.pretrained", True, "", "Load pretrained weights; False = same architecture, random weights."),
    Key(
        "lm.pooling", "auto", "",
        "Text embedding: mean over tokens, first or last token; auto = as the model's modules.json says (with its Dense "
        "modules), else last for causal models and mean for others.",
        choices=("auto", "mean", "cls", "last"),
    ),
    Key("lm.max_length", 128, "tokens", "Longest text, special tokens included.", low=3),
    Key("lm.shrink_dim", 0, "dims", "Width of a linear bottleneck whose output is the embedding; 0 = none.", low=0),
    Key("lm.epochs", 3, "epochs", "Passes over the gold nodes; 0 = as pretrained.", low=0),
    Key("lm.batch_size", 32, "texts", "Texts an optimizer step (glem_joint: gold nodes, without their neighbours).", low=1),
    Key("lm.accumulate", 1, "parts", "Parts in which a batch goes through the model, to save memory.", low=1),
    Key("lm.lr", 2e-5, "", "Peak learning rate.", low=0),
    Key("lm.weight_decay", 0.01, "", "AdamW weight decay of matrices (not of norms and biases).", low=0),
    Key("lm.warmup_epochs", 0.6, "epochs", "Linear warm-up of the learning rate.", low=0),
    Key("lm.decay", "linear", "", "Learning rate after warm-up.", choices=("linear", "cosine", "constant")),
    Key("lm.label_smoothing", 0.0, "share", "Of gold labels' mass, spread over all classes.", low=0, high=1),
    Key("lm.dropout", -1.0, "share", "Hidden dropout of the encoder; -1 = as pretrained.", low=-1, high=1),
    Key("lm.attention_dropout", -1.0, "share", "Attention dropout of the encoder; -1 = as pretrained.", low=-1, high=1),
    Key("lm.head_dropout", 0.1, "share", "Dropout before the classifier.", low=0, high=1),
    Key("lm.clip", 1.0, "norm", "Upper bound of the gradient norm; 0 = none.", low=0),
    Key("lm.evals_per_epoch", 1, "", "Validations an epoch; the best one's weights are kept.", low=1),
    Key("lm.patience", 0, "evaluations", "Stop after so many without a better score; 0 = never.", low=0),
    Key("lm.precision", "auto", "", "bf16 where the hardware is fast at it, else 32 (16 on older GPUs).", choices=("auto", "32", "bf16", "16")),
    Key("lm.attention", "auto", "", "Attention implementation of transformers (eager, sdpa, flash_attention_2) or our own on CPU (glem_cpu); auto picks by device."),
    Key("lm.gradient_checkpointing", False, "", "Less memory, about a third more time."),
    Key("lm.freeze_layers", 0, "layers", "Lowest transformer layers kept as pretrained, with the embeddings; 0 = train all.", low=0),
    Key("lm.lora_rank", 0, "", "LoRA adapters on all linear layers instead of full fine-tuning; 0 = full (extra `lora`).", low=0),
    Key("lm.infer_tokens", 0, "tokens", "Padded tokens of an inference batch; 0 = by device.", low=0),
    Key("lm.part_tokens", 0, "tokens", "Padded tokens of a part of a step's texts, which are encoded part after part (glem_joint); 0 = by device.", low=0),
    # ---- EM -------------------------------------------------------------------------------------------------------
    Key("glem.order", "lm_first", "", "Which step opens an EM iteration.", choices=("lm_first", "gnn_first")),
    Key("glem.em_iterations", 1, "iterations", "EM iterations; -1 = until neither model's validation score rises.", low=-1),
    Key("glem.em_max_iterations", 10, "iterations", "Bound when em_iterations is -1.", low=1),
    Key("glem.alpha", 0.8, "weight", "Weight α of the pseudo-label term in the E-step.", low=0, high=1),
    Key("glem.beta", 0.05, "weight", "Weight β of the pseudo-label term in the M-step.", low=0, high=1),
    Key("glem.targets", "soft", "", "Pseudo-labels as distributions or as classes.", choices=("soft", "hard")),
    Key("glem.temperature", 0.2, "", "T of soft pseudo-labels, softmax(logits / T).", low=1e-3),
    Key("glem.lm_pseudo_ratio", 1.0, "nodes a gold node", "Pseudo nodes drawn for the E-step.", low=0),
    Key("glem.gnn_pseudo_ratio", 1.0, "nodes a gold node", "Pseudo nodes drawn for the M-step.", low=0),
    Key("glem.lm_redraw", "step", "", "When the E-step draws anew: once a step or every epoch.", choices=("step", "epoch")),
    Key("glem.gnn_redraw", "epoch", "", "When the M-step draws anew: once a step or every epoch.", choices=("step", "epoch")),
    Key("glem.confidence", 1.0, "share", "Pseudo nodes kept, the most confident; 1 = all.", low=0.0, high=1),
    Key("glem.pseudo_nodes", "all", "", "Which unlabelled nodes may get pseudo-labels.", choices=("all", "valid_test")),
    Key("glem.lm_init", "pretrained", "", "Where an E-step's LM starts.", choices=("pretrained", "previous", "gold")),
    Key("glem.lm_init_first", "same", "", "The same for the first E-step.", choices=("same", "pretrained", "previous", "gold")),
    Key("glem.lm_epochs", -1, "epochs", f"E-step: {AS_LM}.epochs.", low=-1),
    Key("glem.lm_lr", -1.0, "", f"E-step: {AS_LM}.lr."),
    Key("glem.lm_batch_size", -1, "texts", f"E-step: {AS_LM}.batch_size."),
    Key("glem.lm_warmup_epochs", -1.0, "epochs", f"E-step: {AS_LM}.warmup_epochs."),
    Key("glem.lm_label_smoothing", -1.0, "share", f"E-step: {AS_LM}.label_smoothing.", high=1),
    Key("glem.smooth_pseudo", False, "", "E-step: label smoothing of pseudo-labels too, as in the published runs; False = of gold labels alone."),
    Key("glem.lm_dropout", -1.0, "share", f"E-step: {AS_LM}.dropout.", high=1),
    Key("glem.lm_attention_dropout", -1.0, "share", f"E-step: {AS_LM}.attention_dropout.", high=1),
    Key("glem.lm_head_dropout", -1.0, "share", f"E-step: {AS_LM}.head_dropout.", high=1),
    Key("glem.node_features", "text", "", "Node features of the GNN: text (embeddings of the trained LM), static (of the untuned LM), raw, file, or several joined by +."),
    Key("glem.feature_file", "", "path", "Features (N, F) for node_features file: .npy or .pt, in node order."),
    Key("glem.input_norm", True, "", "Standardise every column of the node features (our train modes); glem_joint: layer norm of the embeddings."),
    Key("glem.label_input", False, "", "Labels as further input of the GNN, a target's own label hidden."),
    Key("glem.label_input_rate", 0.5, "share", "Gold labels given as input in an epoch, below 1; the others are its targets (networks on the graph itself; those on hop features see four fifths).", low=0, high=1),
    Key("glem.setting", "transductive", "", "inductive: test nodes unseen in training; structure_free: moreover without edges when predicted.", choices=("transductive", "inductive", "structure_free")),
    Key("glem.first_predictions", "", "path", "Logits (N, C), .npy or .pt, that take the place of the first step's teacher."),
    Key("glem.ensemble", False, "", "A further row GLEM-LM+GNN: both together, weighted by validation."),
    Key("glem.correct_and_smooth", False, "", "A further row: Correct & Smooth after the best GNN."),
    Key("glem.cs_correct_layers", 50, "propagations", "Correct & Smooth: propagations of the residuals.", low=0),
    Key("glem.cs_correct_alpha", 1.0, "share", "Correct & Smooth: how far a residual spreads.", low=0, high=1),
    Key("glem.cs_smooth_layers", 50, "propagations", "Correct & Smooth: propagations of the predictions.", low=0),
    Key("glem.cs_smooth_alpha", 0.8, "share", "Correct & Smooth: how far a prediction spreads.", low=0, high=1),
    Key("glem.encode_nodes", "all", "", "Nodes that the LM encodes: all, or those that are trained on, scored or pseudo-labelled, with their neighbours as far as the GNN sees.", choices=("all", "needed")),
    Key("glem.memory_budget_gb", 0.0, "GB", "Memory for graph and features, at most four fifths of the machine's; what exceeds it stays on disk (networks on hop features, sampled glem_sage, glem_gcn, glem_gat, glem_mlp) or is refused; 0 = all in memory.", low=0),
    Key("glem.share_lm_gold", False, "", "Keep the LM fine-tuned on gold under dataset.dir; runs with the same LM settings and seed share it."),
    Key("glem.keep_weights", "needed", "", "Weights kept on disk: of the models that are still needed, or of every stage.", choices=("needed", "all")),
    # ---- keys beside GraphGym's own -------------------------------------------------------------------------------
    Key("gnn.norm", "batch", "", "Normalisation between layers of the full-batch networks glem_*.", choices=("batch", "layer", "none")),
    Key("gnn.attention_dropout", 0.0, "share", "Dropout of attention weights (glem_gat, glem_revgat, glem_sagn, glem_gamlp).", low=0, high=1),
    Key("gnn.edge_drop", 0.0, "share", "Edges dropped in every training step (glem_revgat).", low=0, high=1),
    Key("gnn.group", 2, "groups", "Groups of channels in a reversible block (glem_revgat).", low=2),
    Key("gnn.attend_destination", False, "", "Attention looks at the target node too (glem_revgat)."),
    Key("gnn.symmetric_norm", False, "", "Attention times D^-1/2 on both sides, as in GCN (glem_revgat)."),
    Key("gnn.hops", 3, "hops", "Hop features: propagations of the input (glem_sgc, glem_sign, glem_sagn, glem_gamlp).", low=0),
    Key("gnn.label_hops", 5, "hops", "With glem.label_input: how far labels are propagated (glem_sagn, glem_gamlp).", low=1),
    Key("gnn.batch_size", 0, "nodes", "Nodes an optimizer step of a network on hop features, or with gnn.fan_out; 0 = all of an epoch's.", low=0),
    Key("gnn.fan_out", [], "neighbours", "Neighbours drawn a node, hop after hop, one number a layer; -1 = all; [] = full batch. Prediction never samples."),
    Key("gnn.hop_attention", "recursive", "", "Attention over hops (glem_gamlp).", choices=("recursive", "jk")),
    Key("gnn.hop_activation", "leaky_relu", "", "Of the attention scores (glem_gamlp).", choices=("sigmoid", "relu", "leaky_relu")),
    Key("gnn.label_reuse", 0, "passes", "With glem.label_input: how many times predictions fill in the labels that are not given, before the pass that counts (full-batch networks).", low=0),
    Key("gnn.distillation", 0.0, "share", "Of the loss on gold labels that a teacher's predictions have: the same network, trained before (self-distillation; full-batch networks); 0 = off.", low=0, high=1),
    Key("gnn.distillation_temperature", 1.0, "", "T of self-distillation.", low=1e-3),
    Key("gnn.stages", 1, "stages", "Self-training on gold labels (RLU): further stages learn the confident predictions of the one before (networks on hop features); 1 = none.", low=1),
    Key("gnn.stage_threshold", 0.9, "share", "Top probability above which a node is a target of the next stage.", low=0, high=1),
    Key("gnn.stage_weight", 0.5, "weight", "Weight of these nodes' term in the loss.", low=0, high=1),
    Key("gnn.consistency", 0.0, "weight", "Consistency of unlabelled nodes with a mean teacher (SCR; networks on hop features); 0 = off.", low=0),
    Key("gnn.consistency_threshold", 0.8, "share", "Top probability of the teacher above which a node counts.", low=0, high=1),
    Key("gnn.ema", 0.99, "share", "Decay of the mean teacher's weights, a step.", low=0, high=1),
    Key("gnn.label_layers", 4, "layers", "Layers of the net on label hops (glem_sagn, glem_gamlp).", low=1),
    Key("gnn.label_dropout", 0.5, "share", "Dropout of the net on label hops (glem_sagn, glem_gamlp).", low=0, high=1),
    Key("gnn.precision", "32", "", "Precision of the M-step, as lm.precision.", choices=("auto", "32", "bf16", "16")),
    Key("gnn.input_dropout", 0.0, "share", "Dropout of the input features (our networks but glem_sgc).", low=0, high=1),
    Key("gnn.input_norm", False, "", "Batch norm of the input features in the network, as GLEM's authors have it, in place of glem.input_norm (glem_revgat, glem_gamlp)."),
    Key("gnn.hidden_bias", True, "", "Biases in all layers; False = in the last one alone, as GLEM's authors have it (glem_gcn)."),
    Key("gnn.residual", False, "", "Add a layer's input to its output where widths agree (glem_mlp, glem_gcn, glem_sage, glem_gat); glem_gamlp: the features to what attention gathers."),
    Key("optim.patience", 0, "evaluations", "M-step: stop after so many validations without a better score; 0 = never.", low=0),
    Key("optim.clip", 0.0, "norm", "M-step: upper bound of the gradient norm; 0 = none.", low=0),
    Key("optim.warmup_epochs", 0.0, "epochs", "Linear warm-up of the schedulers linear_warmup, cosine_warmup, constant_warmup.", low=0),
)  # fmt: skip


@register_config("glem_graphgym")
def add_keys(cfg: CfgNode) -> None:
    """Add every key of `KEYS` with its default, making the groups that GraphGym does not have."""
    for key in KEYS:
        group, name = key.name.split(".")
        if group not in cfg:
            cfg[group] = CfgNode()
        cfg[group][name] = key.default


def load_config(cfg: CfgNode, file: str | Path, options: Iterable[str] = ()) -> None:
    """Set ``cfg`` to defaults, then the YAML ``file``, then ``options`` (key value key value …), and check it.

    Integers become floats where the default is a float, and so do numbers that YAML reads as text (``2e-5``).

    Raises:
        ConfigError: names the file or key, what was found and what was expected.
    """
    file = Path(file)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"--cfg {file}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--cfg {file}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--cfg {file}: expected 'key: value' lines, found {type(values).__name__}")
    set_cfg(cfg)
    defaults = cfg.clone()
    _merge(cfg, values, defaults, str(file))
    options = list(options)
    if len(options) % 2:
        raise ConfigError(f"options must be pairs 'key value'; '{options[-1]}' stands alone")
    for name, text in zip(options[::2], options[1::2], strict=True):
        group, _, key = name.rpartition(".")
        value = yaml.safe_load(text) if text else ""
        _merge(cfg, {group: {key: value}} if group else {key: value}, defaults, "command line")
    _check_choice("dataset.task", cfg.dataset.task, ("node", "edge", "graph", "link_pred"))
    assert_cfg(cfg)
    check_config(cfg)


def _merge(cfg: CfgNode, values: dict, defaults: CfgNode, origin: str, prefix: str = "") -> None:
    for name, value in values.items():
        full = f"{prefix}{name}"
        if name not in cfg:
            raise ConfigError(f"{origin}: unknown key '{full}'{_nearest(cfg, prefix, str(name))}")
        if isinstance(cfg[name], CfgNode):
            if not isinstance(value, dict):
                raise ConfigError(f"{origin}: '{full}' is a group of keys, found the value {value!r}")
            _merge(cfg[name], value, defaults[name], origin, f"{full}.")
        else:
            cfg[name] = _coerced(defaults[name], value, full, origin)


def _nearest(cfg: CfgNode, prefix: str, name: str) -> str:
    close = difflib.get_close_matches(name, [str(key) for key in cfg], n=1, cutoff=0.5)
    return f"; did you mean '{prefix}{close[0]}'?" if close else f"; known here: {', '.join(sorted(map(str, cfg)))}"


# GraphGym itself sets devices to None where it finds no GPU, and has a scheduler of that name.
NULLABLE = ("devices", "optim.scheduler")


def _coerced(default: Any, value: Any, name: str, origin: str) -> Any:
    """``value`` in the type of ``default``; a list may stand for a tuple, an int for a float.

    None fits where it is the default, and in `NULLABLE` keys; a default of None takes everything.
    """
    if value is None and default is not None and name not in NULLABLE:
        raise ConfigError(f"{origin}: {name} is None, expected {type(default).__name__}")
    if isinstance(default, float) and not isinstance(value, bool) and isinstance(value, int | float | str):
        try:
            return float(value)
        except ValueError:
            pass
    elif default is None or value is None or type(value) is type(default):
        return value
    elif isinstance(default, str) and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    elif isinstance(default, list | tuple) and isinstance(value, list | tuple):
        return type(default)(value)
    elif isinstance(default, list | tuple) and isinstance(value, str):
        parsed = yaml.safe_load(value)
        if isinstance(parsed, list):
            return type(default)(parsed)
    raise ConfigError(f"{origin}: {name} is {value!r} ({type(value).__name__}), expected {type(default).__name__}")


def check_config(cfg: CfgNode) -> None:
    """Check every key of ours against its bounds, and keys against each other; contradictions name both."""
    for key in KEYS:
        group, name = key.name.split(".")
        key.check(cfg[group][name])
    _check_names(cfg)
    if cfg.devices is not None and cfg.devices < 1:
        raise ConfigError(
            f"devices is {cfg.devices}, expected the number of processes on this machine (one a GPU), at least 1"
        )
    if cfg.train.mode == "standard":
        if cfg.dataset.node_encoder and cfg.model.type.startswith("glem_"):
            raise ConfigError(
                f"model.type {cfg.model.type} has no node encoder, but dataset.node_encoder is True; expected model.type gnn"
            )
        return
    if cfg.dataset.format != "TAG":
        raise ConfigError(
            f"train.mode {cfg.train.mode} needs texts: dataset.format is '{cfg.dataset.format}', expected 'TAG'"
        )
    if cfg.dataset.task != "node" or cfg.dataset.task_type != "classification":
        raise ConfigError(
            f"train.mode {cfg.train.mode} classifies nodes: dataset.task is '{cfg.dataset.task}' and dataset.task_type "
            f"'{cfg.dataset.task_type}', expected 'node' and 'classification'"
        )
    for name, size in (("lm.batch_size", cfg.lm.batch_size), ("glem.lm_batch_size", cfg.glem.lm_batch_size)):
        if size == 0 or (size > 0 and size % cfg.lm.accumulate):
            raise ConfigError(f"{name} {size} cannot be cut into lm.accumulate {cfg.lm.accumulate} equal parts")
    if cfg.train.eval_period < 1 or cfg.optim.max_epoch < 0:
        raise ConfigError(
            f"train.eval_period is {cfg.train.eval_period} and optim.max_epoch {cfg.optim.max_epoch}, expected at least "
            "1 and at least 0"
        )
    _check_features(cfg)
    _check_sampling(cfg)
    _check_encoded(cfg)
    for name in BELOW_ONE:
        group, _, last = name.partition(".")
        if (value := cfg[group][last]) >= 1:
            raise ConfigError(f"{name} is {value}, expected a share below 1")
    _check_input_norm(cfg)
    if cfg.lm.freeze_layers and cfg.lm.lora_rank:
        raise ConfigError(
            f"lm.freeze_layers is {cfg.lm.freeze_layers}, but lm.lora_rank {cfg.lm.lora_rank} freezes all layers and "
            "trains adapters in each; set one of them to 0"
        )
    if cfg.gnn.label_reuse and not cfg.glem.label_input:
        raise ConfigError(
            f"gnn.label_reuse is {cfg.gnn.label_reuse}, but no labels are given; set glem.label_input to True"
        )
    if cfg.dataset.node_encoder and cfg.train.mode != "glem_predict" and cfg.dataset.node_encoder_name == "glem_text":
        raise ConfigError(
            f"train.mode {cfg.train.mode} with dataset.node_encoder_name glem_text would train the text encoder inside "
            "the GNN; use train.mode standard for that, or dataset.node_encoder False"
        )


def _check_input_norm(cfg: CfgNode) -> None:
    if not cfg.gnn.input_norm:
        return
    if cfg.glem.input_norm:
        raise ConfigError(
            "gnn.input_norm and glem.input_norm are both True, expected one of them; set the other to False"
        )
    if cfg.model.type not in ("glem_revgat", "glem_gamlp"):
        raise ConfigError(
            f"gnn.input_norm is True, but model.type {cfg.model.type} has no norm of its input (glem_revgat and "
            "glem_gamlp have); set glem.input_norm instead"
        )


# ---- names that GraphGym looks up only while it runs --------------------------------------------------------------

SAMPLERS = ("full_batch", "neighbor", "random_node", "saint_rw", "saint_node", "saint_edge", "cluster")
TASK_TYPES = ("classification", "regression", "classification_binary", "classification_multi")
GENERAL_LAYERS = ("generalconv", "generaledgeconv", "generalsampleedgeconv")


def _check_names(cfg: CfgNode) -> None:
    """Check names against GraphGym's registries, plugins' names among them, and against what its code compares with.

    Raises:
        ConfigError: names the key.
    """
    _check_choice("print", cfg.print, ("stdout", "file", "both"))
    _check_choice("metric_agg", cfg.metric_agg, ("argmax", "argmin"))
    _check_choice("train.sampler", cfg.train.sampler, SAMPLERS)
    _check_choice("val.sampler", cfg.val.sampler, SAMPLERS)
    _check_choice("optim.optimizer", cfg.optim.optimizer, optimizer_dict)
    _check_choice("optim.scheduler", cfg.optim.scheduler, scheduler_dict)
    _check_choice("model.size_average", cfg.model.size_average, ("mean", "sum"))
    for metric in cfg.custom_metrics:
        _check_choice("custom_metrics", metric, metric_dict)
    if not cfg.custom_metrics:
        _check_choice("dataset.task_type", cfg.dataset.task_type, TASK_TYPES)
    # Losses and loaders see every name, and not all are registered under that which they answer to.
    if _ours_alone(loss_dict):
        _check_choice("model.loss_fun", cfg.model.loss_fun, ("cross_entropy", "mse", *loss_dict))
    if _ours_alone(loader_dict):
        _check_choice("dataset.format", cfg.dataset.format, ("PyG", "OGB", "TAG"))
    if cfg.dataset.format == "TAG":
        from glem_graphgym.registered.loader import GRAPHS  # which imports this module

        _check_choice("dataset.name", cfg.dataset.name, GRAPHS)
    _check_choice("model.type", cfg.model.type, network_dict)
    if cfg.model.type == "gnn" or cfg.model.type.startswith("glem_"):  # other networks may read keys in their own way
        _check_parts(cfg)


def _check_parts(cfg: CfgNode) -> None:
    """Names of what GraphGym's GNN is made of, of which our networks read none."""
    g = cfg.gnn
    _check_choice("gnn.layer_type", g.layer_type, layer_dict)
    _check_choice("gnn.stage_type", g.stage_type, stage_dict)
    _check_choice("gnn.act", g.act, act_dict)
    _check_choice("gnn.head", g.head, head_dict)
    if g.head == "graph":
        _check_choice("model.graph_pooling", cfg.model.graph_pooling, pooling_dict)
    if g.head in ("edge", "link_pred"):
        _check_choice("model.edge_decoding", cfg.model.edge_decoding, ("dot", "cosine_similarity", "concat"))
    if cfg.dataset.node_encoder:
        _check_choice("dataset.node_encoder_name", cfg.dataset.node_encoder_name, node_encoder_dict)
    if cfg.dataset.edge_encoder:
        _check_choice("dataset.edge_encoder_name", cfg.dataset.edge_encoder_name, edge_encoder_dict)
    if g.layer_type in GENERAL_LAYERS:
        _check_choice("gnn.self_msg", g.self_msg, ("none", "add", "concat"))
        _check_choice("gnn.msg_direction", g.msg_direction, ("single", "both"))
        try:
            aggregation_resolver(g.agg)
        except (ValueError, TypeError) as error:
            known = "add, mean, max, or another aggregation of torch_geometric.nn that needs no arguments"
            raise ConfigError(f"gnn.agg is '{g.agg}', expected one of: {known}") from error


def _check_choice(name: str, value: Any, known: Collection[Any]) -> None:
    if value not in list(known):  # a value may be a list, which no registry can look up
        names = ", ".join(str(other) for other in known if other is not None)
        raise ConfigError(f"{name} is '{value}', expected one of: {names}")


def _ours_alone(registry: Mapping[str, Any]) -> bool:
    return all(found.__module__.startswith("glem_graphgym.") for found in registry.values())


def check_devices(cfg: CfgNode, started: int | None) -> None:
    """Check ``devices`` against what is there.

    Args:
        started: processes that somebody has started on this machine; None where this is the only one.

    Raises:
        ConfigError: names the key.
    """
    if started is not None and cfg.train.mode == "standard":
        raise ConfigError("train.mode standard is GraphGym's own training; start it as one process")
    if started is not None and cfg.devices not in (None, 1, started):
        raise ConfigError(
            f"devices is {cfg.devices}, but {started} processes were started on this machine; start {cfg.devices}, or "
            "leave devices out"
        )
    count, gpus = started or cfg.devices or 1, torch.cuda.device_count()
    if count > 1 and cfg.accelerator in ("auto", "cuda") and 0 < gpus < count:
        raise ConfigError(f"{count} processes are asked for (devices), but torch sees {gpus} GPUs; expected one each")


# Shares that at 1 leave nothing to learn from.
BELOW_ONE = (
    *("gnn.ema", "gnn.consistency_threshold", "glem.label_input_rate"),
    *(f"{group}{name}" for group in ("lm.", "glem.lm_")
      for name in ("dropout", "attention_dropout", "head_dropout", "label_smoothing")),
    *(f"gnn.{name}" for name in ("dropout", "input_dropout", "attention_dropout", "label_dropout", "edge_drop")),
)  # fmt: skip

FEATURE_KINDS = ("text", "static", "raw", "file")


def feature_kinds(node_features: str) -> list[str]:
    return [part.strip() for part in node_features.split("+")]


def reads_texts(cfg: CfgNode) -> bool:
    """Whether a run of this configuration gives the nodes' texts to a language model."""
    if cfg.dataset.format != "TAG":
        return False
    if "static" in feature_kinds(cfg.glem.node_features):
        return True
    if cfg.train.mode == "standard":
        text_encoder = cfg.dataset.node_encoder and cfg.dataset.node_encoder_name == "glem_text"
        return text_encoder or cfg.model.type == "glem_lm"
    return cfg.train.mode != "glem_gnn"


def _check_features(cfg: CfgNode) -> None:
    kinds = feature_kinds(cfg.glem.node_features)
    for kind in kinds:
        if kind not in FEATURE_KINDS:
            raise ConfigError(
                f"glem.node_features is '{cfg.glem.node_features}': '{kind}' is unknown, "
                f"expected {', '.join(FEATURE_KINDS)}, joined by +"
            )
    if "text" in kinds and cfg.train.mode == "glem_gnn":
        raise ConfigError(
            "glem.node_features is 'text', the embeddings of a trained LM, but train.mode glem_gnn trains none; "
            "expected static, raw or file (or train.mode glem_cascade)"
        )
    if cfg.train.mode == "glem_joint" and "text" not in kinds:
        raise ConfigError(
            f"glem.node_features is '{cfg.glem.node_features}', but train.mode glem_joint trains the text encoder as "
            "node encoder; expected text, alone or joined by + with others"
        )
    if ("file" in kinds) != bool(cfg.glem.feature_file):
        raise ConfigError(
            f"glem.node_features '{cfg.glem.node_features}' and glem.feature_file '{cfg.glem.feature_file}' disagree: "
            "a file is given if and only if 'file' is one of the features"
        )


def _check_encoded(cfg: CfgNode) -> None:
    """`glem.encode_nodes: needed` leaves predictions of other nodes out, so nothing may ask for them."""
    g = cfg.glem
    if g.encode_nodes == "all":
        return
    if g.correct_and_smooth:
        raise ConfigError(
            "glem.correct_and_smooth smooths the predictions of all nodes, but glem.encode_nodes is 'needed'; set it to "
            "'all', or glem.correct_and_smooth to False"
        )


def _check_sampling(cfg: CfgNode) -> None:
    fan_out, joint = cfg.gnn.fan_out, cfg.train.mode == "glem_joint"
    if not all(type(count) is int and (count > 0 or count == -1) for count in fan_out):
        raise ConfigError(
            f"gnn.fan_out is {fan_out}, expected whole numbers, each at least 1, or -1 for all neighbours"
        )
    if joint and not fan_out:
        raise ConfigError(
            "train.mode glem_joint trains on sampled neighbourhoods, but gnn.fan_out is []; expected one number a layer, "
            f"such as {[5] * cfg.gnn.layers_mp} for gnn.layers_mp {cfg.gnn.layers_mp}"
        )
    if fan_out and len(fan_out) != cfg.gnn.layers_mp:
        raise ConfigError(
            f"gnn.fan_out is {fan_out}, but gnn.layers_mp is {cfg.gnn.layers_mp}; expected one number a layer"
        )
    if fan_out and cfg.model.type == "glem_revgat" and cfg.gnn.symmetric_norm:
        raise ConfigError(
            f"gnn.fan_out {fan_out} leaves gnn.symmetric_norm True without the degrees that it scales by; set "
            "gnn.symmetric_norm to False, or gnn.fan_out to []"
        )
    if joint and (cfg.optim.optimizer, cfg.optim.scheduler) != ("adamw", "none"):
        raise ConfigError(
            f"optim.optimizer is '{cfg.optim.optimizer}' and optim.scheduler '{cfg.optim.scheduler}', but train.mode "
            "glem_joint trains LM and GNN with one AdamW whose rates follow lm.warmup_epochs and lm.decay; expected "
            "'adamw' and 'none'"
        )


def dump_config(cfg: CfgNode, file: Path) -> None:
    """Write a YAML that loads again: without what GraphGym sets while it runs."""
    with atomic_write(file, "w") as stream:
        stream.write(settings_of(cfg).dump())


def settings_of(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` with the keys that a user sets, and none of those that GraphGym adds while it runs."""
    copy = cfg.clone()
    for key in ("share", "run_dir", "params"):
        copy.pop(key, None)
    return copy


def keys_table() -> str:
    """All keys as a Markdown table, for the README."""
    lines = ["| key | default | unit | meaning |", "|---|---|---|---|"]
    for key in KEYS:
        values = f" ({' / '.join(key.choices)})" if key.choices else ""
        default = "''" if key.default == "" else key.default
        lines.append(f"| `{key.name}` | `{default}` | {key.unit} | {key.meaning}{values} |")
    return "\n".join(lines) + "\n"
