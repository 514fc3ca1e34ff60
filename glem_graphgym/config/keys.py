"""Every config key that we add to GraphGym: name, default, unit, meaning, bounds; and bounds of GraphGym's own numbers.

GraphGym's grids reach two levels (``group.key``), so no key lies deeper.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Collection, Hashable
from dataclasses import dataclass, replace
from typing import Any

from torch_geometric.graphgym.config import set_cfg
from yacs.config import CfgNode

from glem_graphgym.config.yaml_text import natural
from glem_graphgym.modes import MODES
from glem_graphgym.renamed import OLD_VALUES


class ConfigError(ValueError):
    """A key of the configuration is unknown, of the wrong type, or contradicts another; the message names it."""


KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", list: "a list such as [1, 2]"}
LARGEST = {int: 2**31 - 1, float: 1e12}  # bound of keys without one of their own: only mistakes lie beyond it
LAST_SEED = 2**32 - 1  # numpy takes no larger one
# GraphGym itself sets devices to None where it finds no GPU, and has a scheduler of that name.
NULLABLE = ("devices", "optim.scheduler")


@dataclass(frozen=True)
class Key:
    """A config key: ``group.name``, its default, whose type every value must have, unit and meaning."""

    name: str
    default: Any
    unit: str = ""
    meaning: str = ""
    choices: Collection[str] = ()  # the values it may take; empty where every value of its type will do
    low: float | None = None  # bounds of a number, or of each in a list; without ``low`` every number will do
    high: float | None = None
    below: float | None = None  # an upper bound that is itself too large
    or_minus_one: bool = False  # -1 is allowed beside the bounds, and stands for something else
    kind: type | None = None  # where the default does not tell it: of values beside None (null), of a list's items

    def check(self, value: Any) -> None:
        """Raise ConfigError with the key, the value and what is expected where these do not agree."""
        if self.choices and not (isinstance(value, Hashable) and value in self.choices):
            expected = OLD_VALUES.get((self.name, str(value)), f"expected one of: {', '.join(self.choices)}")
            raise ConfigError(f"{self.name} is '{shown(value)}', {expected}")
        if value is None and (self.default is None or self.name in NULLABLE):
            return
        is_list = isinstance(self.default, list | tuple)
        kind = self.kind or (kind_of_items(self.default) if is_list else type(self.default))
        if is_list != isinstance(value, list | tuple):
            raise unfit(self.name, value, KINDS[list if is_list or kind is None else kind])
        for item in value if is_list else [value]:
            if kind is not None and not is_a(kind, item):
                raise unfit(self.name, value, f"a list of {KINDS[kind]} each" if is_list else KINDS[kind])
            if kind in LARGEST and self.low is not None and not self._in_bounds(item, LARGEST[kind]):
                raise ConfigError(f"{self.name} is {shown(value)}, expected {self._bounds(item, LARGEST[kind])}")

    def _in_bounds(self, number: float, largest: float) -> bool:
        if self.or_minus_one and number == -1:
            return True
        high = largest if self.high is None else self.high
        return (self.low or 0) <= number <= high and (self.below is None or number < self.below)

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
    """The type of a list's items; None where its default is empty."""
    return type(default[0]) if default else None


def shown(value: Any) -> str:
    """A value as messages show it: on one line, and not too long."""
    text = " ".join((value if isinstance(value, str) else str(natural(value))).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def unfit(name: str, value: Any, expected: str, origin: str = "") -> ConfigError:
    where = f"{origin}: " if origin else ""
    found = f"'{shown(value)}'" if isinstance(value, str) else shown(value)
    return ConfigError(f"{where}{name} is {found}, expected {expected}")


def is_a(kind: type, value: Any) -> bool:
    """Whether a value is of a type: whole numbers are numbers; truth values and infinity are none."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


LM_KEYS = (
    Key("lm.model", "sentence-transformers/all-MiniLM-L6-v2", "", "Hugging Face encoder: hub id or local folder."),
    Key("lm.pretrained", True, "", "Load pretrained weights; False = same architecture, random weights."),
    Key(
        "lm.pooling", "auto", "",
        "Text embedding: mean over tokens, first or last token; auto = what the model's modules.json says (with its "
        "Dense modules), else last for causal models and mean for others.",
        choices=("auto", "mean", "cls", "last"),
    ),
    Key("lm.bidirectional", False, "", "Let a causal model attend in both directions (as LLM2Vec does); auto pooling is then the mean."),
    Key(
        "lm.prompt", "auto", "",
        "What stands before each text, or a template with {text}; empty = nothing; auto = the default prompt that the "
        "model's config_sentence_transformers.json names, if any.",
    ),
    Key("lm.max_length", 128, "tokens", "Longest text, special tokens included.", low=3),
    Key("lm.shrink_dim", 0, "dims", "Width of a linear bottleneck whose output is the embedding; 0 = none.", low=0),
    Key("lm.epochs", 3, "epochs", "Passes over the gold nodes; 0 = as pretrained.", low=0),
    Key("lm.batch_size", 32, "texts", "Texts per optimizer step (glem_joint: gold nodes, without their neighbours).", low=1),
    Key("lm.grad_accumulation", 1, "micro-batches", "Micro-batches per optimizer step, to save memory.", low=1),
    Key("lm.lr", 2e-5, "", "Peak learning rate.", low=0, high=100),
    Key("lm.weight_decay", 0.01, "", "AdamW weight decay of matrices, not of norms and biases.", low=0),
    Key("lm.warmup_epochs", 0.6, "epochs", "Linear warm-up of the learning rate.", low=0),
    Key("lm.decay", "linear", "", "Course of the learning rate after warm-up.", choices=("linear", "cosine", "constant")),
    Key("lm.label_smoothing", 0.0, "share", "Share of a gold label that is spread over all classes.", low=0, below=1),
    Key("lm.dropout", -1.0, "share", "Hidden dropout of the encoder; -1 = as pretrained.", low=0, below=1, or_minus_one=True),
    Key("lm.attention_dropout", -1.0, "share", "Attention dropout of the encoder; -1 = as pretrained.", low=0, below=1, or_minus_one=True),
    Key("lm.head_dropout", 0.1, "share", "Dropout before the classifier.", low=0, below=1),
    Key("lm.evals_per_epoch", 1, "", "Validations per epoch; the weights of the best one are kept.", low=1),
    Key("lm.precision", "auto", "", "auto = bf16 where the hardware is faster at it, which is measured on a CPU, else 32 (16 on older GPUs).", choices=("auto", "32", "bf16", "16")),
    Key("lm.attention", "auto", "", "Attention implementation of transformers (eager, sdpa, flash_attention_2) or our own on CPU (glem_cpu; glem_cpu_256_64 leaves 256 tokens or more in training, and 64 in inference, to sdpa); auto = measured on a CPU."),
    Key("lm.gradient_checkpointing", False, "", "Recompute activations: less memory, about a third more time."),
    Key(
        "lm.strategy", "ddp", "",
        "Of several processes: ddp has all weights in each; fsdp splits weights, gradients and optimizer among them, for "
        "models larger than a GPU.",
        choices=("ddp", "fsdp"),
    ),
    Key("lm.freeze_layers", 0, "layers", "Lowest transformer layers that stay as pretrained, with the embeddings; 0 = train all.", low=0),
    Key("lm.lora_rank", 0, "", "Rank of LoRA adapters, beside which only the head is trained; 0 = full fine-tuning (extra `lora`).", low=0),
    Key("lm.lora_alpha", 0.0, "", "Scale of the adapters: their output is multiplied by it and divided by the rank; 0 = twice the rank.", low=0),
    Key("lm.lora_dropout", 0.1, "share", "Dropout before the adapters.", low=0, below=1),
    Key("lm.lora_targets", ["all-linear"], "", "Linear layers with adapters: all-linear, attention, or (ends of) their names, such as [query, value]."),
    Key("lm.lora_variant", "lora", "", "Kind of adapters: rslora divides by the rank's root, dora learns a length per output too.", choices=("lora", "rslora", "dora")),
    Key("lm.base_precision", "32", "", "Weights that LoRA leaves as pretrained: bf16 keeps them in 2 bytes each, 8 and 4 in as many bits (GPUs; extra `bits`). Adapters and head are float32.", choices=("32", "bf16", "8", "4")),
    Key("lm.infer_tokens", 0, "tokens", "Padded tokens per inference batch; 0 = by device.", low=0),
    Key("lm.micro_batch_tokens", 0, "tokens", "Padded tokens of texts that are encoded at a time in training (glem_joint); 0 = by device.", low=0),
)  # fmt: skip

# How the LM is trained in an E-step, where that differs from how it is fine-tuned on gold labels.
DROPOUTS = ("dropout", "attention_dropout", "head_dropout")
E_STEP = ("epochs", "lr", "batch_size", "warmup_epochs", "label_smoothing", *DROPOUTS)
E_STEP_KEYS = tuple(
    replace(key, name=f"e_step.{name}", default=None, kind=type(key.default), meaning=f"{key.name} in E-steps; null = the same.")
    for key in LM_KEYS
    if (name := key.name.removeprefix("lm.")) in E_STEP
)  # fmt: skip

KEYS = (
    # ---- what runs ------------------------------------------------------------------------------------------------
    Key(
        "train.mode", "standard", "", "What to run: GraphGym's own training, GLEM, or a part of it as a baseline.",
        choices=ChainMap[str, Any](MODES, {"standard": None}),  # a mode that is added later is one of them
    ),
    # ---- the graph ------------------------------------------------------------------------------------------------
    Key("dataset.tag_source", "", "path", "Folder of tables, or one table of nodes (table); file of a graph (pyg); folder of wikics; Packages file, or apt = this machine's lists (debian; empty = frozen in the package)."),
    Key("dataset.tag_columns", [], "", "Columns of tables under other names, each as ours=theirs, such as [text=abstract, label=venue]; ours: id, text, label, split, features, neighbours, source, target, text:<view>.", kind=str),
    Key("dataset.tag_text", "", "", "Texts made of several columns of a table, such as {title}. {abstract}; empty = the column text."),
    Key("dataset.tag_split", [0.1, 0.1, 0.8], "shares", "Shares of train, valid and test, if the data has no split of its own; table: or numbers of nodes. The rest is in no split.", low=0),
    Key("dataset.tag_shots", 0, "nodes per class", "Training nodes that are kept of each class, as unlabelled as the rest are the others; 0 = all.", low=0),
    Key("dataset.tag_valid_share", 0.0, "share", "Share of the training nodes that validate, where the data's split has no validation nodes.", low=0, below=1),
    Key("dataset.tag_undirected", True, "", "Edges of tables count in both directions; False = messages go from source to target alone."),
    Key("dataset.tag_seed", 0, "", "Seed of a random split, of tag_shots and of generated graphs.", low=0, high=LAST_SEED),
    Key("dataset.tag_max_nodes", 0, "nodes", "Most nodes in a smaller variant of a graph that the package carries; 0 = all.", low=0),
    Key("dataset.synthetic_nodes", 1000, "nodes", "Size of a generated graph.", low=10),
    Key("dataset.synthetic_classes", 4, "classes", "Classes of a generated graph.", low=2),
    Key("dataset.synthetic_degree", 8.0, "edges", "Mean degree of a generated graph.", low=0),
    Key("dataset.synthetic_text_signal", 0.5, "share", "How much generated texts reveal of the class: 0 = nothing, 1 = everything.", low=0, high=1),
    Key("dataset.synthetic_structure_signal", 0.5, "share", "How much generated edges reveal of the class: 0 = nothing, 1 = everything.", low=0, high=1),
    Key("dataset.synthetic_words", 12, "words", "Words in a generated text.", low=1),
    Key("dataset.synthetic_features", 0, "columns", "Raw node features of a generated graph; 0 = none.", low=0),
    *LM_KEYS,
    *E_STEP_KEYS,
    # ---- EM -------------------------------------------------------------------------------------------------------
    Key("glem.order", "lm_first", "", "Which step comes first in an EM iteration.", choices=("lm_first", "gnn_first")),
    Key("glem.em_iterations", 1, "iterations", "EM iterations; -1 = until no model's validation score rises.", low=0, or_minus_one=True),
    Key("glem.em_max_iterations", 10, "iterations", "Most EM iterations if em_iterations is -1.", low=1),
    Key("glem.alpha", 0.8, "weight", "Weight α of the pseudo-label term in the E-step.", low=0, high=1),
    Key("glem.beta", 0.05, "weight", "Weight β of the pseudo-label term in the M-step.", low=0, high=1),
    Key("glem.targets", "soft", "", "Pseudo-labels as distributions or as classes.", choices=("soft", "hard")),
    Key("glem.temperature", 0.2, "", "T of soft pseudo-labels, softmax(logits / T).", low=1e-3),
    Key("glem.lm_pseudo_ratio", 1.0, "nodes per gold node", "Pseudo-labelled nodes drawn for the E-step.", low=0),
    Key("glem.gnn_pseudo_ratio", 1.0, "nodes per gold node", "Pseudo-labelled nodes drawn for the M-step.", low=0),
    Key("glem.lm_redraw", "step", "", "When the E-step draws its pseudo-labelled nodes: once per step, or in every epoch.", choices=("step", "epoch")),
    Key("glem.confidence", 1.0, "share", "Share of pseudo-labelled nodes that are kept, the most confident ones; 1 = all.", low=0.0, high=1),
    Key("glem.pseudo_nodes", "all", "", "Unlabelled nodes that may get pseudo-labels.", choices=("all", "valid_test")),
    Key("glem.lm_init", "pretrained", "", "Weights that the LM of an E-step starts from.", choices=("pretrained", "previous", "gold")),
    Key("glem.lm_init_first", "same", "", "Weights that the LM of the first E-step starts from; same = as lm_init.", choices=("same", "pretrained", "previous", "gold")),
    Key("glem.smooth_pseudo", False, "", "E-step: smooth pseudo-labels too, as in the published runs; False = only gold labels."),
    Key("glem.class_weights", "none", "", "Weights of the classes in the losses of LM and GNN: balanced = n / (C n_c) of n gold nodes, n_c of class c, C classes that have any; for gold and pseudo-labels, in all modes but standard.", choices=("none", "balanced")),
    Key("glem.node_features", "text", "", "Node features of the GNN: text (embeddings of the trained LM), text:<view> (of an LM fine-tuned on gold on a further text of the nodes), static (of the untuned LM), raw, file, bow or tfidf (words of the texts); several are joined by +."),
    Key("glem.vocabulary", 1000, "words", "Columns of the node features bow and tfidf: the most frequent words, stop words left out.", low=1),
    Key("glem.feature_file", "", "path", "Features (N, F) for node_features file: .npy or .pt, in node order."),
    Key("glem.label_input", False, "", "Labels are a further input of the GNN; a target's own label is hidden."),
    Key("glem.setting", "transductive", "", "inductive = test nodes are not seen in training; structure_free = and are predicted without their edges.", choices=("transductive", "inductive", "structure_free")),
    Key("glem.first_predictions", "", "path", "Predictions that replace the first step's teacher, and are a row of their own: logits (N, C), .npy or .pt, or a CSV of each node's classes, the most probable first."),
    Key("glem.ensemble", False, "", "A further row GLEM-LM+GNN: both models together, weighted by validation."),
    Key("glem.correct_and_smooth", False, "", "A further row: Correct & Smooth after the best GNN."),
    Key("glem.cs_correct_alpha", 1.0, "share", "Correct & Smooth: share of a residual that spreads in each of 50 propagations.", low=0, high=1),
    Key("glem.cs_smooth_alpha", 0.8, "share", "Correct & Smooth: share of a prediction that spreads in each of 50 propagations.", low=0, high=1),
    Key("glem.encode_nodes", "all", "", "Nodes that the LM encodes: all, or those that are trained on, scored or pseudo-labelled and their neighbours as far as the GNN sees.", choices=("all", "needed")),
    Key("glem.memory_budget_gb", 0.0, "GB", "Memory for graph and features (a GB is 2^30 bytes), at most four fifths of the machine's. What exceeds it stays on disk (networks on hop features, sampled glem_sage, glem_gcn, glem_gat, glem_mlp) or is refused; 0 = all in memory.", low=0),
    Key("glem.share_lm_gold", False, "", "Keep the LM that is fine-tuned on gold under dataset.dir, for all runs with the same LM settings and seed."),
    Key("glem.search_trials", 0, "trials", "How many trials of a search found these settings, for the leaderboard; run/search.py sets it.", low=0),
    Key("glem.track", "none", "", "Live tracking by Weights & Biases, MLflow or trackio, in all modes but standard; by TensorBoard with GraphGym's tensorboard_each_run.", choices=("none", "wandb", "mlflow", "trackio")),
    Key("glem.checkpoint_minutes", 10.0, "minutes", "Time between the checkpoints from which a killed stage goes on.", low=0),
    Key("glem.keep_weights", "needed", "", "Weights that stay on disk: of the models that are still needed, or of every stage.", choices=("needed", "all")),
    # ---- keys beside GraphGym's own -------------------------------------------------------------------------------
    Key("gnn.norm", "batch", "", "Norm between layers of the full-batch networks glem_*.", choices=("batch", "layer", "none")),
    Key("gnn.attention_dropout", 0.0, "share", "Dropout of attention weights (glem_gat, glem_revgat, glem_sagn, glem_gamlp).", low=0, below=1),
    Key("gnn.edge_drop", 0.0, "share", "Share of edges dropped in every training step (glem_revgat).", low=0, below=1),
    Key("gnn.rev_groups", 2, "groups", "Groups of channels in a reversible block (glem_revgat).", low=2),
    Key("gnn.symmetric_norm", False, "", "Scale attention by D^-1/2 on both sides, as in GCN (glem_revgat)."),
    Key("gnn.hops", 3, "hops", "Propagations of the features (glem_sgc, glem_sign, glem_sagn, glem_gamlp).", low=0),
    Key("gnn.label_hops", 5, "hops", "With glem.label_input: propagations of the labels (glem_sagn, glem_gamlp).", low=1),
    Key("gnn.batch_size", 0, "nodes", "Nodes per optimizer step of a network on hop features, or with gnn.fan_out; 0 = all nodes of an epoch.", low=0),
    Key("gnn.fan_out", [], "neighbours", "Neighbours drawn per node, one number per layer; -1 = all; [] = full batch. Prediction never samples.", kind=int, low=1, or_minus_one=True),
    Key("gnn.hop_activation", "leaky_relu", "", "Activation of the attention scores over hops (glem_gamlp).", choices=("sigmoid", "relu", "leaky_relu")),
    Key("gnn.label_reuse", 0, "passes", "With glem.label_input: passes in which predictions fill in the labels that are not given, before the pass that counts (full-batch networks).", low=0),
    Key("gnn.distillation", 0.0, "share", "Self-distillation: share of the loss on gold labels that comes from the same network, trained before (full-batch networks); 0 = off.", low=0, high=1),
    Key("gnn.distillation_temperature", 1.0, "", "Self-distillation: T of both distributions.", low=1e-3),
    Key("gnn.rlu_rounds", 1, "rounds", "Rounds of training on gold labels (RLU); each after the first also learns the confident predictions of the previous one (networks on hop features); 1 = no self-training.", low=1),
    Key("gnn.rlu_threshold", 0.9, "share", "RLU: top probability above which a node is a target of the next round.", low=0, high=1),
    Key("gnn.rlu_weight", 0.5, "weight", "RLU: weight of these nodes' term in the loss.", low=0, high=1),
    Key("gnn.scr_weight", 0.0, "weight", "Weight of the consistency of unlabelled nodes with a mean teacher (SCR; networks on hop features); 0 = off.", low=0),
    Key("gnn.scr_threshold", 0.8, "share", "SCR: top probability of the teacher above which a node counts.", low=0, below=1),
    Key("gnn.label_dropout", 0.5, "share", "Dropout of the net on label hops (glem_sagn, glem_gamlp).", low=0, below=1),
    Key("gnn.precision", "32", "", "Precision of the M-step, as lm.precision; tf32: 32 with the matrix products of a GPU in TensorFloat-32, which is auto there.", choices=("auto", "32", "tf32", "bf16", "16")),
    Key("gnn.input_dropout", 0.0, "share", "Dropout of the input features (our networks, without glem_sgc).", low=0, below=1),
    Key(
        "gnn.input_norm", "standardise", "",
        "Norm of the GNN's input: standardise = every column of the node features, before training; batch = batch norm in "
        "the network, as in the code of GLEM's authors (glem_revgat, glem_gamlp); layer = layer norm of the text "
        "embeddings, which change in training, and other features standardised (glem_joint; standardise means the same "
        "there).",
        choices=("none", "standardise", "batch", "layer"),
    ),
    Key("gnn.hidden_bias", True, "", "Biases in all layers; False = only in the last layer, as in the code of GLEM's authors (glem_gcn)."),
    Key("gnn.residual", False, "", "Add a layer's input to its output where widths agree (glem_mlp, glem_gcn, glem_sage, glem_gat), or the features to what attention gathers (glem_gamlp)."),
    Key("gnn.linear_skip", False, "", "Add a linear map of a layer's input to its output, before the norm (glem_mlp, glem_gcn, glem_sage, glem_gat)."),
    Key("gnn.readout", "layer", "", "What gives the logits of these networks: the last layer; a linear map of the last layer, which is a hidden one then; or of the sum of all layers (jumping knowledge).", choices=("layer", "linear", "sum")),
    Key("gnn.global_layers", 1, "layers", "Layers of attention between all nodes on top of the local ones (polynormer).", low=1),
    Key("gnn.local_epochs", 0, "epochs", "Epochs in which the local layers alone are trained (polynormer).", low=0),
    Key("gnn.self_loops", False, "", "Count a node among its own neighbours where a mean is taken over them (glem_sage)."),
    Key("optim.patience", 0, "evaluations", "M-step: stop after this many validations without a better score; 0 = never.", low=0),
    Key("optim.warmup_epochs", 0.0, "epochs", "Linear warm-up of the schedulers linear_warmup, cosine_warmup, constant_warmup.", low=0),
)  # fmt: skip


# Bounds of GraphGym's own numbers; their defaults are GraphGym's.
STOCK_BOUNDS: dict[str, dict[str, Any]] = {name: bounds for names, bounds in (
    ("num_workers dataset.edge_negative_sampling_ratio gnn.layers_pre_mp gnn.layers_mp gnn.layers_post_mp", {"low": 0}),
    ("optim.weight_decay optim.steps optim.lr_decay optim.max_epoch bn.eps", {"low": 0}),
    ("num_threads dataset.encoder_dim dataset.edge_dim train.batch_size train.node_per_graph", {"low": 1}),
    ("train.eval_period train.ckpt_period train.iter_per_epoch train.walk_length val.node_per_graph", {"low": 1}),
    ("gnn.dim_inner gnn.skip_every gnn.att_heads", {"low": 1}),
    ("dataset.split dataset.edge_message_ratio model.thresh gnn.keep_edge bn.mom", {"low": 0, "high": 1}),
    ("gnn.dropout optim.momentum", {"low": 0, "below": 1}),
    ("train.epoch_resume train.neighbor_sizes", {"low": 0, "or_minus_one": True}),
    ("seed", {"low": 0, "high": LAST_SEED}),
    ("devices", {"low": 1, "high": 1024}),
    ("round", {"low": 0, "high": 15}),
    ("optim.base_lr", {"low": 0, "high": 1000}),
) for name in names.split()}  # fmt: skip

# Folders and files (lm.model: a hub id, too), in which ~ and $NAME are expanded.
PATHS = ("out_dir", "dataset.dir", "dataset.tag_source", "lm.model", "glem.feature_file", "glem.first_predictions")


def all_keys() -> dict[str, Key]:
    """Name -> key, of GraphGym, other plugins and ours."""
    set_cfg(pristine := CfgNode())
    keys = {name: Key(name, default, **STOCK_BOUNDS.get(name, {})) for name, default in flat_settings(pristine)}
    return keys | {key.name: key for key in KEYS}


def flat_settings(cfg: CfgNode) -> list[tuple[str, Any]]:
    """(``name`` or ``group.name``, value) of every key that a user sets."""
    flat: list[tuple[str, Any]] = []
    for name, value in settings_of(cfg).items():
        is_group = isinstance(value, CfgNode)
        flat += [(f"{name}.{key}", inner) for key, inner in value.items()] if is_group else [(name, value)]
    return flat


def settings_of(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` with the keys that a user sets, and none of those that GraphGym adds while it runs."""
    copy = cfg.clone()
    for key in ("share", "run_dir", "params"):
        copy.pop(key, None)
    return copy


def keys_table() -> str:
    """All our keys as a Markdown table, for docs/config.md."""
    lines = ["| key | default | unit | meaning |", "|---|---|---|---|"]
    for key in KEYS:
        values = f" ({' / '.join(key.choices)})" if key.choices else ""
        default = "''" if key.default == "" else "null" if key.default is None else key.default
        lines.append(f"| `{key.name}` | `{default}` | {key.unit} | {key.meaning}{values} |")
    return "\n".join(lines) + "\n"
