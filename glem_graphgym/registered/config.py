"""Every config key we add to GraphGym, each with a default, a unit and a sentence; loading, checking and dumping configs.

GraphGym's grids reach two levels (``group.key``), so no key lies deeper.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
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

from glem_graphgym.files import atomic_write, expand_path
from glem_graphgym.yaml_text import TRUTH, Scalar, Tree, YamlError, natural, parse, read_file, whole_number

log = logging.getLogger(__name__)


class ConfigError(ValueError):
    """A key of the configuration is unknown, of the wrong type, or contradicts another; the message names it."""


KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", list: "a list such as [1, 2]"}
LARGEST = {int: 2**31 - 1, float: 1e12}  # where a key has no bound of its own: beyond it there are only mistakes
LAST_SEED = 2**32 - 1  # numpy takes no larger one


@dataclass(frozen=True)
class Key:
    """A config key: ``group.name``, its default (whose type every value must have), unit and meaning.

    Attributes:
        choices: the values it may take; none where it may take all of its type.
        low, high: bounds of a number, or of each number in a list; without the lower one any number of the type will do.
        below: a bound that is itself too large.
        or_minus_one: -1 stands for something else, and is allowed beside the bounds.
    """

    name: str
    default: Any
    unit: str = ""
    meaning: str = ""
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    below: float | None = None
    or_minus_one: bool = False

    def check(self, value: Any) -> None:
        """
        Raises:
            ConfigError: names the key, the value and what is expected.
        """
        if self.choices and value not in self.choices:
            raise ConfigError(f"{self.name} is '{shown(value)}', expected one of: {', '.join(self.choices)}")
        several = isinstance(self.default, list | tuple)
        if several != isinstance(value, list | tuple):
            raise _unfit(self.name, value, KINDS[list if several else type(self.default)])
        kind = kind_of_items(self.default) if several else type(self.default)
        for item in value if several else [value]:
            if kind is not None and not _is_a(kind, item):
                raise _unfit(self.name, value, f"a list of {KINDS[kind]} each" if several else KINDS[kind])
            if kind in LARGEST and self.low is not None and not self._fits(item, LARGEST[kind]):
                raise ConfigError(f"{self.name} is {shown(value)}, expected {self._bounds(item, LARGEST[kind])}")

    def _fits(self, number: float, largest: float) -> bool:
        if self.or_minus_one and number == -1:
            return True
        largest = largest if self.high is None else self.high
        return (
            (self.low is None or number >= self.low)
            and number <= largest
            and (self.below is None or number < self.below)
        )

    def _bounds(self, number: float, largest: float) -> str:
        low = -math.inf if self.low is None else self.low
        if self.below is not None:
            text = f"at least {low:g} and below {self.below:g}"
        elif self.high is not None:
            text = f"{low:g} to {self.high:g}" if self.high < 1e6 else f"{low:g} to {self.high:,}"
        else:
            text = f"at most {largest:,}" if number > largest else f"at least {low:g}"
        return text + (", or -1" if self.or_minus_one else "")


def kind_of_items(default: list | tuple) -> type | None:
    """The type of a list's values; None where its default does not tell."""
    return type(default[0]) if default else None


def shown(value: Any) -> str:
    """A value as messages show it: on one line, and not too long."""
    text = value.text if isinstance(value, Scalar) else str(natural(value))
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _unfit(name: str, value: Any, expected: str, origin: str = "") -> ConfigError:
    where = f"{origin}: " if origin else ""
    found = f"'{shown(value)}'" if isinstance(value, Scalar | str) else shown(value)
    return ConfigError(f"{where}{name} is {found}, expected {expected}")


def _is_a(kind: type, value: Any) -> bool:
    """Whether a value is of a type; whole numbers are numbers, truth values and what is not finite are none."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


OUR_MODES = ("glem", "glem_lm", "glem_gnn", "glem_cascade", "glem_joint", "glem_predict")
AS_LM = "-1 = as in lm"

KEYS = (
    # ---- what runs ------------------------------------------------------------------------------------------------
    Key(
        "train.mode", "standard", "", "What is run: stock GraphGym training, GLEM, or a part of it as a baseline.",
        choices=("standard", *OUR_MODES),
    ),
    # ---- the graph ------------------------------------------------------------------------------------------------
    Key("dataset.tag_source", "", "path", "Packages file (debian) or folder of tables (table); empty = the default source."),
    Key("dataset.tag_split", [0.1, 0.1, 0.8], "shares", "Train, valid and test shares where the data has no split of its own.", low=0, high=1),
    Key("dataset.tag_seed", 0, "", "Seed of a random split and of generated graphs.", low=0, high=LAST_SEED),
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
    Key("lm.lr", 2e-5, "", "Peak learning rate.", low=0, high=100),
    Key("lm.weight_decay", 0.01, "", "AdamW weight decay of matrices (not of norms and biases).", low=0),
    Key("lm.warmup_epochs", 0.6, "epochs", "Linear warm-up of the learning rate.", low=0),
    Key("lm.decay", "linear", "", "Learning rate after warm-up.", choices=("linear", "cosine", "constant")),
    Key("lm.label_smoothing", 0.0, "share", "Of gold labels' mass, spread over all classes.", low=0, below=1),
    Key("lm.dropout", -1.0, "share", "Hidden dropout of the encoder; -1 = as pretrained.", low=0, below=1, or_minus_one=True),
    Key("lm.attention_dropout", -1.0, "share", "Attention dropout of the encoder; -1 = as pretrained.", low=0, below=1, or_minus_one=True),
    Key("lm.head_dropout", 0.1, "share", "Dropout before the classifier.", low=0, below=1),
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
    Key("glem.em_iterations", 1, "iterations", "EM iterations; -1 = until neither model's validation score rises.", low=0, or_minus_one=True),
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
    Key("glem.lm_epochs", -1, "epochs", f"E-step: {AS_LM}.epochs.", low=0, or_minus_one=True),
    Key("glem.lm_lr", -1.0, "", f"E-step: {AS_LM}.lr.", low=0, high=100, or_minus_one=True),
    Key("glem.lm_batch_size", -1, "texts", f"E-step: {AS_LM}.batch_size.", low=1, or_minus_one=True),
    Key("glem.lm_warmup_epochs", -1.0, "epochs", f"E-step: {AS_LM}.warmup_epochs.", low=0, or_minus_one=True),
    Key("glem.lm_label_smoothing", -1.0, "share", f"E-step: {AS_LM}.label_smoothing.", low=0, below=1, or_minus_one=True),
    Key("glem.smooth_pseudo", False, "", "E-step: label smoothing of pseudo-labels too, as in the published runs; False = of gold labels alone."),
    Key("glem.lm_dropout", -1.0, "share", f"E-step: {AS_LM}.dropout.", low=0, below=1, or_minus_one=True),
    Key("glem.lm_attention_dropout", -1.0, "share", f"E-step: {AS_LM}.attention_dropout.", low=0, below=1, or_minus_one=True),
    Key("glem.lm_head_dropout", -1.0, "share", f"E-step: {AS_LM}.head_dropout.", low=0, below=1, or_minus_one=True),
    Key("glem.node_features", "text", "", "Node features of the GNN: text (embeddings of the trained LM), static (of the untuned LM), raw, file, or several joined by +."),
    Key("glem.feature_file", "", "path", "Features (N, F) for node_features file: .npy or .pt, in node order."),
    Key("glem.input_norm", True, "", "Standardise every column of the node features (our train modes); glem_joint: layer norm of the embeddings."),
    Key("glem.label_input", False, "", "Labels as further input of the GNN, a target's own label hidden."),
    Key("glem.label_input_rate", 0.5, "share", "Gold labels given as input in an epoch, below 1; the others are its targets (networks on the graph itself; those on hop features see four fifths).", low=0, below=1),
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
    Key("gnn.attention_dropout", 0.0, "share", "Dropout of attention weights (glem_gat, glem_revgat, glem_sagn, glem_gamlp).", low=0, below=1),
    Key("gnn.edge_drop", 0.0, "share", "Edges dropped in every training step (glem_revgat).", low=0, below=1),
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
    Key("gnn.consistency_threshold", 0.8, "share", "Top probability of the teacher above which a node counts.", low=0, below=1),
    Key("gnn.ema", 0.99, "share", "Decay of the mean teacher's weights, a step.", low=0, below=1),
    Key("gnn.label_layers", 4, "layers", "Layers of the net on label hops (glem_sagn, glem_gamlp).", low=1),
    Key("gnn.label_dropout", 0.5, "share", "Dropout of the net on label hops (glem_sagn, glem_gamlp).", low=0, below=1),
    Key("gnn.precision", "32", "", "Precision of the M-step, as lm.precision.", choices=("auto", "32", "bf16", "16")),
    Key("gnn.input_dropout", 0.0, "share", "Dropout of the input features (our networks but glem_sgc).", low=0, below=1),
    Key("gnn.input_norm", False, "", "Batch norm of the input features in the network, as GLEM's authors have it, in place of glem.input_norm (glem_revgat, glem_gamlp)."),
    Key("gnn.hidden_bias", True, "", "Biases in all layers; False = in the last one alone, as GLEM's authors have it (glem_gcn)."),
    Key("gnn.residual", False, "", "Add a layer's input to its output where widths agree (glem_mlp, glem_gcn, glem_sage, glem_gat); glem_gamlp: the features to what attention gathers."),
    Key("optim.patience", 0, "evaluations", "M-step: stop after so many validations without a better score; 0 = never.", low=0),
    Key("optim.clip", 0.0, "norm", "M-step: upper bound of the gradient norm; 0 = none.", low=0),
    Key("optim.warmup_epochs", 0.0, "epochs", "Linear warm-up of the schedulers linear_warmup, cosine_warmup, constant_warmup.", low=0),
)  # fmt: skip


# Of GraphGym's own numbers, what makes sense; their defaults stand in GraphGym.
STOCK_KEYS = (
    Key("seed", 0, low=0, high=LAST_SEED),
    Key("round", 4, low=0, high=15),
    Key("num_workers", 0, low=0),
    Key("num_threads", 6, low=1),
    Key("dataset.split", [0.8, 0.1, 0.1], low=0, high=1),
    Key("dataset.encoder_dim", 128, low=1),
    Key("dataset.edge_dim", 128, low=1),
    Key("dataset.edge_message_ratio", 0.8, low=0, high=1),
    Key("dataset.edge_negative_sampling_ratio", 1.0, low=0),
    Key("train.batch_size", 16, low=1),
    Key("train.node_per_graph", 32, low=1),
    Key("train.eval_period", 10, low=1),
    Key("train.ckpt_period", 100, low=1),
    Key("train.epoch_resume", -1, low=0, or_minus_one=True),
    Key("train.iter_per_epoch", 32, low=1),
    Key("train.walk_length", 4, low=1),
    Key("train.neighbor_sizes", [20, 15, 10, 5], low=0, or_minus_one=True),
    Key("val.node_per_graph", 32, low=1),
    Key("model.thresh", 0.5, low=0, high=1),
    Key("gnn.layers_pre_mp", 0, low=0),
    Key("gnn.layers_mp", 2, low=0),
    Key("gnn.layers_post_mp", 0, low=0),
    Key("gnn.dim_inner", 16, low=1),
    Key("gnn.skip_every", 1, low=1),
    Key("gnn.dropout", 0.0, low=0, below=1),
    Key("gnn.att_heads", 1, low=1),
    Key("gnn.keep_edge", 0.5, low=0, high=1),
    Key("optim.base_lr", 0.01, low=0, high=1000),
    Key("optim.weight_decay", 5e-4, low=0),
    Key("optim.momentum", 0.9, low=0, below=1),
    Key("optim.steps", [30, 60, 90], low=0),
    Key("optim.lr_decay", 0.1, low=0),
    Key("optim.max_epoch", 200, low=0),
    Key("bn.eps", 1e-5, low=0),
    Key("bn.mom", 0.1, low=0, high=1),
)

# Folders and files (lm.model: a hub id, too), in which ~ and $NAME are written out.
PATHS = ("out_dir", "dataset.dir", "dataset.tag_source", "lm.model", "glem.feature_file", "glem.first_predictions")

# GraphGym itself sets devices to None where it finds no GPU, and has a scheduler of that name.
NULLABLE = ("devices", "optim.scheduler")


@register_config("glem_graphgym")
def add_keys(cfg: CfgNode) -> None:
    """Add every key of `KEYS` with its default, making the groups that GraphGym does not have."""
    for key in KEYS:
        group, name = key.name.split(".")
        if group not in cfg:
            cfg[group] = CfgNode()
        cfg[group][name] = key.default


# ---- loading --------------------------------------------------------------------------------------------------------


def load_config(cfg: CfgNode, file: str | Path, options: Iterable[str] = ()) -> None:
    """Set ``cfg`` to defaults, then the YAML ``file``, then ``options`` (key value key value …), and check it.

    The default's type decides how a value is read: ``007`` is a text for ``out_dir`` and no number for ``seed``. Of a
    key that is given twice on the command line the last value counts, with a warning.

    Raises:
        ConfigError: names the file or key, what was found and what was expected.
    """
    try:
        tree = read_file(Path(file))
    except YamlError as error:
        raise ConfigError(f"--cfg {file}: {error}") from error
    set_cfg(cfg)
    defaults = cfg.clone()
    _merge(cfg, typed_values(tree, defaults, str(file)))
    options = list(options)
    if len(options) % 2:
        raise ConfigError(f"options must be pairs 'key value'; '{shown(options[-1])}' stands alone")
    for name, count in Counter(options[::2]).items():
        if count > 1:
            last = options[1::2][len(options) // 2 - 1 - options[::2][::-1].index(name)]
            log.warning(f"{name} is given {count} times on the command line; the last value counts: {shown(last)}")
    for name, text in zip(options[::2], options[1::2], strict=True):
        group, _, key = name.rpartition(".")
        value = _typed_on_command_line(text)
        _merge(cfg, typed_values({group: {key: value}} if group else {key: value}, defaults, "command line"))
    _check_choice("dataset.task", cfg.dataset.task, ("node", "edge", "graph", "link_pred"))
    assert_cfg(cfg)
    check_config(cfg)


def _typed_on_command_line(text: str) -> Tree:
    """What a shell passes on has lost its quotes; where there are others within them, they count as in YAML."""
    if text[:1] in ("'", '"'):
        try:
            tree = parse(text)
        except YamlError:
            return Scalar(text)
        return tree if isinstance(tree, Scalar) else Scalar(text)
    return Scalar(text, quoted=not text)


def _merge(cfg: CfgNode, values: dict) -> None:
    for name, value in values.items():
        if isinstance(cfg[name], CfgNode):
            _merge(cfg[name], value)
        else:
            cfg[name] = value


def typed_values(tree: dict[str, Tree], defaults: CfgNode, origin: str, prefix: str = "") -> dict[str, Any]:
    """The keys and values of ``tree``, each value in the type of its default.

    Args:
        origin: where they come from, for messages.

    Raises:
        ConfigError: a key is unknown, or its value is of another type.
    """
    values: dict[str, Any] = {}
    for name, value in tree.items():
        full = f"{prefix}{name}"
        if name not in defaults:
            raise ConfigError(f"{origin}: unknown key '{shown(full)}'{_nearest(defaults, prefix, name)}")
        if not isinstance(defaults[name], CfgNode):
            values[name] = _typed(defaults[name], value, full, origin)
        elif isinstance(value, dict):
            values[name] = typed_values(value, defaults[name], origin, f"{full}.")
        else:
            found = "nothing" if isinstance(value, Scalar) and value.is_nothing else f"the value {shown(value)}"
            raise ConfigError(f"{origin}: '{full}' is a group of keys, found {found}")
    return values


def _nearest(defaults: CfgNode, prefix: str, name: str) -> str:
    group, _, key = name.partition(".")
    if not prefix and isinstance(defaults.get(group), CfgNode) and key in defaults[group]:
        return f"; in a file, write '{group}:' and below it, indented, '{key}: ...'"
    close = difflib.get_close_matches(name, [str(key) for key in defaults], n=1, cutoff=0.5)
    return (
        f"; did you mean '{prefix}{close[0]}'?" if close else f"; known here: {', '.join(sorted(map(str, defaults)))}"
    )


def _typed(default: Any, value: Tree, name: str, origin: str) -> Any:
    """``value`` in the type of ``default``; a list may stand for a tuple.

    Nothing (``null``) fits where it is the default, and in `NULLABLE` keys; a default of None takes everything.
    """
    if isinstance(value, Scalar) and value.is_nothing and (default is None or name in NULLABLE):
        return None
    if default is None:
        return natural(value)
    if isinstance(value, Scalar) and not value.text and not value.quoted:
        raise ConfigError(f"{origin}: {name} has no value, expected {KINDS[_kind_of(default)]}")
    if isinstance(default, list | tuple):
        items = _list_of(value)
        if items is None:
            raise _unfit(name, value, KINDS[list], origin)
        kind = kind_of_items(default)
        return type(default)(
            [natural(item) if kind is None else _converted(kind, item, name, origin) for item in items]
        )
    return _converted(type(default), value, name, origin)


def _kind_of(default: Any) -> type:
    return list if isinstance(default, tuple) else type(default)


def _list_of(value: Tree) -> list[Tree] | None:
    """A list, also one that stands in a text, as on the command line; None where it is none."""
    if isinstance(value, Scalar):
        try:
            tree = parse(value.text)
        except YamlError:
            return None
        return tree if isinstance(tree, list) else None
    return value if isinstance(value, list) else None


def _converted(kind: type, value: Tree, name: str, origin: str) -> Any:
    """A text, or the number or boolean that a text is."""
    if not isinstance(value, Scalar):
        raise _unfit(name, value, KINDS.get(kind, kind.__name__), origin)
    text = value.text
    try:
        if kind is str:
            return text
        if kind is bool:
            return TRUTH[text.strip().lower()]
        number = whole_number(text) if kind is int else float(text)
    except (KeyError, ValueError) as error:
        raise _unfit(name, value, KINDS[kind], origin) from error
    if not abs(number) < math.inf:
        raise _unfit(name, value, "a finite number", origin)
    return number


# ---- checking -------------------------------------------------------------------------------------------------------


def check_config(cfg: CfgNode) -> None:
    """Write out ~ and $NAME in paths, then check every key against its bounds, and keys against each other.

    Whoever builds a run calls this, so that a configuration is checked whichever way it was loaded.

    Raises:
        ConfigError: names the key; of a contradiction both.
    """
    set_cfg(pristine := CfgNode())
    keys = {name: Key(name, default) for name, default in _flat(pristine)}
    keys |= {key.name: key for key in (*STOCK_KEYS, *KEYS)}
    for name, value in _flat(cfg):
        if name in keys and keys[name].default is not None and not (value is None and name in NULLABLE):
            keys[name].check(value)
        _check_value(name, value)
    for name in PATHS:
        group, _, last = name.rpartition(".")
        node = cfg[group] if group else cfg
        try:
            node[last] = expand_path(node[last])
        except ValueError as error:
            raise ConfigError(f"{name} is '{shown(node[last])}', but {error}") from error
    _check_names(cfg)
    _check_results(cfg)
    _check_fan_out(cfg.gnn.fan_out)
    if cfg.devices is not None and (not _is_a(int, cfg.devices) or not 1 <= cfg.devices <= 1024):
        raise ConfigError(
            f"devices is {shown(cfg.devices)}, expected the number of processes on this machine (one per GPU), at least 1"
        )
    if cfg.train.mode == "standard":
        if cfg.dataset.node_encoder and cfg.model.type.startswith("glem_"):
            raise ConfigError(
                f"model.type {cfg.model.type} has no node encoder, but dataset.node_encoder is True; expected model.type gnn"
            )
        return
    if cfg.dataset.format != "TAG":
        raise ConfigError(
            f"train.mode {cfg.train.mode} needs texts: dataset.format is '{shown(cfg.dataset.format)}', expected 'TAG'"
        )
    if cfg.dataset.task != "node" or cfg.dataset.task_type != "classification":
        raise ConfigError(
            f"train.mode {cfg.train.mode} classifies nodes: dataset.task is '{cfg.dataset.task}' and dataset.task_type "
            f"'{shown(cfg.dataset.task_type)}', expected 'node' and 'classification'"
        )
    for name, size in (("lm.batch_size", cfg.lm.batch_size), ("glem.lm_batch_size", cfg.glem.lm_batch_size)):
        if size > 0 and size % cfg.lm.accumulate:
            raise ConfigError(f"{name} {size} cannot be cut into lm.accumulate {cfg.lm.accumulate} equal parts")
    if cfg.accelerator not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"accelerator is '{shown(cfg.accelerator)}', expected auto, cpu or cuda")
    for name in ("lm.model", "dataset.dir"):
        if not cfg[name.partition(".")[0]][name.partition(".")[2]]:
            raise ConfigError(
                f"{name} is empty, expected {'a hub id or a folder' if name == 'lm.model' else 'a folder'}"
            )
    _check_shares(cfg.dataset.tag_split)
    _check_features(cfg)
    _check_sampling(cfg)
    _check_encoded(cfg)
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


def _flat(cfg: CfgNode) -> Iterator[tuple[str, Any]]:
    """Every key and its value, without what GraphGym adds while it runs."""
    for name, value in settings_of(cfg).items():
        if isinstance(value, CfgNode):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield name, value


def _check_value(name: str, value: Any) -> None:
    """Refuse what no key can mean, of any plugin: control characters in a text, and numbers that are not finite."""
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, str) and any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in item):
            raise ConfigError(f"{name} is {item[:80]!r}, expected a text without line breaks and control characters")
        if isinstance(item, str) and not item.isascii() and not _is_unicode(item):
            raise ConfigError(f"{name} is {item[:80]!r}, expected a text that UTF-8 can write")
        if isinstance(item, float) and not math.isfinite(item):
            raise ConfigError(f"{name} is {shown(value)}, expected finite numbers")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- what comes after the last stage, and must not fail then --------------------------------------------------------

OUR_METRICS = ("accuracy", "loss", "lm_accuracy", "lm_loss", "gnn_accuracy", "gnn_loss")
STOCK_METRICS = {
    "regression": ("mae", "mse", "rmse"),
    "classification_multi": ("accuracy",),
    "classification_binary": ("accuracy", "precision", "recall", "f1", "auc"),
}


def _check_results(cfg: CfgNode) -> None:
    if not cfg.out_dir:
        raise ConfigError("out_dir is empty, expected a folder for the results ('.' is the current one)")
    parts = PurePath(cfg.cfg_dest).parts
    taken = not parts or parts[0] == "agg" or re.fullmatch(r"-?\d+", parts[0])
    if taken or ".." in parts or PurePath(cfg.cfg_dest).is_absolute():
        raise ConfigError(
            f"cfg_dest is '{shown(cfg.cfg_dest)}', expected the name of a file in the experiment's folder, such as config.yaml"
        )
    check_metric(cfg)


def check_metric(cfg: CfgNode, task_type: str | None = None) -> None:
    """Check ``metric_best`` against the scores that a run will have.

    Args:
        task_type: GraphGym's kind of task, where the data has told it; None: as ``dataset.task_type`` says.

    Raises:
        ConfigError: names the metrics that there are.
    """
    task_type = task_type or cfg.dataset.task_type
    known: tuple[str, ...] = OUR_METRICS
    if cfg.train.mode == "standard":
        known = tuple(cfg.custom_metrics) or STOCK_METRICS.get(task_type, STOCK_METRICS["classification_binary"])
        known = (*known, "loss")
    if {"auc", "accuracy"} & set(known):
        known = ("auto", *known)
    _check_choice("metric_best", cfg.metric_best, known)


def _check_shares(shares: list[float]) -> None:
    if len(shares) != 3 or not all(share > 0 for share in shares) or sum(shares) > 1 + 1e-6:
        raise ConfigError(
            f"dataset.tag_split is {shares}, expected three shares above 0 for train, valid and test, together at most 1"
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


# ---- names that GraphGym looks up only while it runs ----------------------------------------------------------------

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
            raise ConfigError(f"gnn.agg is '{shown(g.agg)}', expected one of: {known}") from error


def _check_choice(name: str, value: Any, known: Collection[Any]) -> None:
    if value not in list(known):  # a value may be a list, which no registry can look up
        names = ", ".join(str(other) for other in known if other is not None)
        raise ConfigError(f"{name} is '{shown(value)}', expected one of: {names}")


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


def check_seeds(first: int, count: int) -> None:
    """
    Raises:
        ConfigError: the last of ``count`` seeds is too large.
    """
    if first + count - 1 > LAST_SEED:
        raise ConfigError(
            f"seed is {first} and --repeat {count}, so the last seed would be {first + count - 1}; expected at most {LAST_SEED}"
        )


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
                f"glem.node_features is '{shown(cfg.glem.node_features)}': '{shown(kind)}' is unknown, "
                f"expected {', '.join(FEATURE_KINDS)}, joined by +"
            )
    if "text" in kinds and cfg.train.mode == "glem_gnn":
        raise ConfigError(
            "glem.node_features is 'text', the embeddings of a trained LM, but train.mode glem_gnn trains none; "
            "expected static, raw or file (or train.mode glem_cascade)"
        )
    if cfg.train.mode == "glem_joint" and "text" not in kinds:
        raise ConfigError(
            f"glem.node_features is '{shown(cfg.glem.node_features)}', but train.mode glem_joint trains the text encoder as "
            "node encoder; expected text, alone or joined by + with others"
        )
    if ("file" in kinds) != bool(cfg.glem.feature_file):
        raise ConfigError(
            f"glem.node_features '{shown(cfg.glem.node_features)}' and glem.feature_file '{shown(cfg.glem.feature_file)}' disagree: "
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


def _check_fan_out(fan_out: list[int]) -> None:
    if not all(type(count) is int and (count > 0 or count == -1) for count in fan_out):
        raise ConfigError(
            f"gnn.fan_out is {shown(fan_out)}, expected whole numbers, each at least 1, or -1 for all neighbours"
        )


def _check_sampling(cfg: CfgNode) -> None:
    fan_out, joint = cfg.gnn.fan_out, cfg.train.mode == "glem_joint"
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
