"""Every config key that we add to GraphGym: name, default, unit, meaning, bounds; and bounds of GraphGym's own numbers.

Keys have at most two levels (``group.key``), as GraphGym's grids reach no deeper.
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
    """A configuration key is unknown, has a value of the wrong type, or contradicts another; the message names it."""


KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", list: "a list such as [1, 2]"}
LARGEST = {int: 2**31 - 1, float: 1e12}  # upper bound if a key has a lower bound alone: larger values are mistakes
LAST_SEED = 2**32 - 1  # numpy's largest seed
# None is valid here: GraphGym itself sets devices to None without a GPU, and a GraphGym scheduler is called None.
NULLABLE = ("devices", "optim.scheduler")


@dataclass(frozen=True)
class Key:
    """A config key: ``group.name``, its default (every value must have its type), unit and meaning."""

    name: str
    default: Any
    unit: str = ""
    meaning: str = ""
    choices: Collection[str] = ()  # the allowed values; empty = any value of the type
    low: float | None = None  # lower bound of a number, or of each number in a list; None = no bounds are checked
    high: float | None = None  # inclusive upper bound
    below: float | None = None  # exclusive upper bound
    or_minus_one: bool = False  # -1, with a meaning of its own, is allowed outside the bounds
    kind: type | None = None  # type of values (default None) or of a list's items (default []); None = the default's

    def check(self, value: Any) -> None:
        """Raise ConfigError if the value has the wrong type or is out of bounds; names key, value and expectation."""
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
        assert self.low is not None
        if self.or_minus_one and number == -1:
            return True
        high = largest if self.high is None else self.high
        return self.low <= number <= high and (self.below is None or number < self.below)

    def _bounds(self, number: float, largest: float) -> str:
        if self.below is not None:
            text = f"at least {self.low:g} and below {self.below:g}"
        elif self.high is not None:
            text = f"{self.low:g} to {self.high:g}" if self.high < 1e6 else f"{self.low:g} to {self.high:,}"
        else:
            text = f"at most {largest:,}" if number > largest else f"at least {self.low:g}"
        return text + (", or -1" if self.or_minus_one else "")


def kind_of_items(default: list | tuple) -> type | None:
    """The type of a list's items; None if the default is empty."""
    return type(default[0]) if default else None


def shown(value: Any) -> str:
    """A value for messages: on one line, at most 80 characters."""
    text = " ".join((value if isinstance(value, str) else str(natural(value))).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def unfit(name: str, value: Any, expected: str, origin: str = "") -> ConfigError:
    where = f"{origin}: " if origin else ""
    found = f"'{shown(value)}'" if isinstance(value, str) else shown(value)
    return ConfigError(f"{where}{name} is {found}, expected {expected}")


def is_a(kind: type, value: Any) -> bool:
    """Whether a value is of a type: integers count as floats; booleans and infinity do not count as numbers."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


LM_KEYS = (
    Key("lm.model", "sentence-transformers/all-MiniLM-L6-v2", "", "Hugging Face encoder: hub id or local folder."),
    Key("lm.pretrained", True, "", "Load pretrained weights; False = same architecture, random weights."),
    Key(
        "lm.pooling", "auto", "",
        "Text embedding: mean over tokens, first (cls) or last token; auto = as the model's modules.json says, Dense "
        "modules included, else last for causal models and mean for others.",
        choices=("auto", "mean", "cls", "last"),
    ),
    Key("lm.bidirectional", False, "", "Let a causal model attend in both directions (as LLM2Vec does); auto pooling is then the mean."),
    Key(
        "lm.prompt", "auto", "",
        "Words put before each text, or a template with {text}; empty = none; auto = the default prompt that the "
        "model's config_sentence_transformers.json names, if any.",
    ),
    Key("lm.max_length", 128, "tokens", "Maximum tokens per text, special tokens included; longer texts are truncated.", low=3),
    Key("lm.shrink_dim", 0, "dims", "Width of a linear bottleneck whose output is the embedding; 0 = none.", low=0),
    Key("lm.epochs", 3, "epochs", "Epochs over the gold nodes; 0 = keep the pretrained weights.", low=0),
    Key("lm.batch_size", 32, "texts", "Texts per optimizer step (glem_joint: gold nodes, without their neighbours).", low=1),
    Key("lm.grad_accumulation", 1, "micro-batches", "Micro-batches per optimizer step, to save memory.", low=1),
    Key("lm.lr", 2e-5, "", "Peak learning rate.", low=0, high=100),
    Key("lm.weight_decay", 0.01, "", "AdamW weight decay of matrices; norms and biases have none.", low=0),
    Key("lm.warmup_epochs", 0.6, "epochs", "Linear warm-up of the learning rate.", low=0),
    Key("lm.decay", "linear", "", "Learning-rate schedule after warm-up.", choices=("linear", "cosine", "constant")),
    Key("lm.label_smoothing", 0.0, "share", "Share of a gold label that is spread over all classes.", low=0, below=1),
    Key("lm.dropout", -1.0, "share", "Hidden dropout of the encoder; -1 = as pretrained.", low=0, below=1, or_minus_one=True),
    Key("lm.attention_dropout", -1.0, "share", "Attention dropout of the encoder; -1 = as pretrained.", low=0, below=1, or_minus_one=True),
    Key("lm.head_dropout", 0.1, "share", "Dropout before the classifier.", low=0, below=1),
    Key("lm.evals_per_epoch", 1, "", "Validations per epoch; the weights of the best one are kept.", low=1),
    Key("lm.precision", "auto", "", "Precision of the LM; auto on a CPU = bf16 if measured to be faster, else 32; auto on a GPU = bf16 if supported, else 16.", choices=("auto", "32", "bf16", "16")),
    Key("lm.attention", "auto", "", "Attention implementation: one of transformers' (eager, sdpa, flash_attention_2), or ours for CPUs (glem_cpu; glem_cpu_256_64 = sdpa from 256 tokens per text in training and from 64 in inference); auto = measured on a CPU, transformers' default on a GPU."),
    Key("lm.gradient_checkpointing", False, "", "Recompute activations: less memory, about a third more time."),
    Key(
        "lm.strategy", "ddp", "",
        "Strategy of several processes: ddp = a copy of all weights in each; fsdp = weights, gradients and optimizer "
        "state sharded among them, for models larger than a GPU.",
        choices=("ddp", "fsdp"),
    ),
    Key("lm.freeze_layers", 0, "layers", "Number of lowest transformer layers to freeze, together with the embedding layer; 0 = train all.", low=0),
    Key("lm.lora_rank", 0, "", "Rank of LoRA adapters (extra `lora`); only they and the head are trained; 0 = full fine-tuning.", low=0),
    Key("lm.lora_alpha", 0.0, "", "Scale of the adapters' output, which is multiplied by lora_alpha / lora_rank; 0 = twice the rank.", low=0),
    Key("lm.lora_dropout", 0.1, "share", "Dropout before the adapters.", low=0, below=1),
    Key("lm.lora_targets", ["all-linear"], "", "Linear layers with adapters: all-linear, attention, or names of layers (or their ends), such as [query, value]."),
    Key("lm.lora_variant", "lora", "", "Kind of adapters: rslora divides by the square root of the rank; dora also learns a magnitude per output.", choices=("lora", "rslora", "dora")),
    Key("lm.base_precision", "32", "", "Storage of the weights that LoRA freezes: bf16 = 2 bytes per weight, 8 and 4 = that many bits (GPUs; extra `bits`). Adapters and head are float32.", choices=("32", "bf16", "8", "4")),
    Key("lm.infer_tokens", 0, "tokens", "Padded tokens per inference batch; 0 = a default for the device.", low=0),
    Key("lm.micro_batch_tokens", 0, "tokens", "Padded tokens per micro-batch of texts in training (glem_joint); 0 = a default for the device.", low=0),
)  # fmt: skip

# lm.* keys that an E-step may override; null = train as on gold labels.
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
        "train.mode", "standard", "", "What to run: GraphGym's own training (standard), GLEM (glem), or a baseline.",
        choices=ChainMap[str, Any](MODES, {"standard": None}),  # a view of MODES: modes added later are choices too
    ),
    # ---- the graph ------------------------------------------------------------------------------------------------
    Key("dataset.tag_source", "", "path", "Source of the graph. table: a folder of tables, or one table of nodes; pyg: a file; wikics: a folder; debian: a Packages file, apt (this machine's package lists), or empty (the graph that comes with the package)."),
    Key("dataset.tag_columns", [], "", "Columns of tables under other names, each as ours=theirs, such as [text=abstract, label=venue]. Ours: id, text, label, split, features, neighbours, source, target, text:<view>.", kind=str),
    Key("dataset.tag_text", "", "", "Template that makes a text of several columns of a table, such as {title}. {abstract}; empty = the column text."),
    Key("dataset.tag_split", [0.1, 0.1, 0.8], "shares", "Shares of train, valid and test if the data has no split of its own; for your own files, numbers of nodes too. The remaining nodes are in no split.", low=0),
    Key("dataset.tag_shots", 0, "nodes per class", "Training nodes kept per class; the other training nodes become unlabelled; 0 = keep all.", low=0),
    Key("dataset.tag_valid_share", 0.0, "share", "Share of the training nodes to validate on if the data's split has no validation nodes.", low=0, below=1),
    Key("dataset.tag_undirected", True, "", "Use edges in both directions; False = messages pass from source to target only."),
    Key("dataset.tag_seed", 0, "", "Seed of a random split, of tag_shots and of generated graphs.", low=0, high=LAST_SEED),
    Key("dataset.tag_max_nodes", 0, "nodes", "Keep only this many of the best connected nodes of a graph that comes with the package; 0 = all.", low=0),
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
    Key("glem.em_iterations", 1, "iterations", "EM iterations; -1 = until an iteration raises neither model's validation score.", low=0, or_minus_one=True),
    Key("glem.em_max_iterations", 10, "iterations", "Maximum number of EM iterations if em_iterations is -1.", low=1),
    Key("glem.alpha", 0.8, "weight", "Weight α of the pseudo-label term in the E-step.", low=0, high=1),
    Key("glem.beta", 0.05, "weight", "Weight β of the pseudo-label term in the M-step.", low=0, high=1),
    Key("glem.targets", "soft", "", "Pseudo-labels as distributions (soft) or one-hot classes (hard).", choices=("soft", "hard")),
    Key("glem.temperature", 0.2, "", "T of soft pseudo-labels, softmax(logits / T).", low=1e-3),
    Key("glem.lm_pseudo_ratio", 1.0, "nodes per gold node", "Pseudo-labelled nodes drawn for the E-step.", low=0),
    Key("glem.gnn_pseudo_ratio", 1.0, "nodes per gold node", "Pseudo-labelled nodes drawn for the M-step.", low=0),
    Key("glem.lm_redraw", "step", "", "How often the E-step draws its pseudo-labelled nodes: once per step, or anew in every epoch.", choices=("step", "epoch")),
    Key("glem.confidence", 1.0, "share", "Share of the unlabelled nodes, the most confident ones, from which pseudo-labelled nodes are drawn; 1 = all.", low=0.0, high=1),
    Key("glem.pseudo_nodes", "all", "", "Unlabelled nodes that may get pseudo-labels: all, or only validation and test nodes.", choices=("all", "valid_test")),
    Key("glem.lm_init", "pretrained", "", "Weights that the LM of an E-step starts from: pretrained, the previous LM's, or those fine-tuned on gold labels.", choices=("pretrained", "previous", "gold")),
    Key("glem.lm_init_first", "same", "", "Weights that the LM of the first E-step starts from; same = as lm_init.", choices=("same", "pretrained", "previous", "gold")),
    Key("glem.smooth_pseudo", False, "", "Smooth pseudo-labels too in E-steps, as in the published runs; False = smooth gold labels only."),
    Key("glem.class_weights", "none", "", "Class weights in the losses of LM and GNN, on gold and pseudo-labels, in all modes but standard: balanced = n / (C n_c) for n gold nodes, n_c of them in class c, and C classes that have gold nodes.", choices=("none", "balanced")),
    Key("glem.node_features", "text", "", "Node features of the GNN: text (embeddings of the trained LM), text:<view> (embeddings of an LM fine-tuned on gold labels on a further text of the nodes), static (embeddings of the untuned LM), raw (the dataset's own), file, bow or tfidf (words of the texts); join several by +."),
    Key("glem.vocabulary", 1000, "words", "Columns of the node features bow and tfidf: the most frequent words, without stop words.", low=1),
    Key("glem.feature_file", "", "path", "Features (N, F) for node_features file: .npy or .pt, rows in node order."),
    Key("glem.label_input", False, "", "Add labels to the GNN's input; each training target's own label is hidden."),
    Key("glem.setting", "transductive", "", "transductive = training sees all nodes; inductive = training sees no test nodes; structure_free = as inductive, and test nodes are predicted without their edges.", choices=("transductive", "inductive", "structure_free")),
    Key("glem.first_predictions", "", "path", "Predictions that replace the teacher of the first EM step and get their own row in the results: logits (N, C) as .npy or .pt, or a CSV of each node's classes, the most probable first."),
    Key("glem.ensemble", False, "", "Add the row GLEM-LM+GNN: an ensemble of both models, with weights chosen by validation."),
    Key("glem.correct_and_smooth", False, "", "Add a row: Correct & Smooth after the best GNN."),
    Key("glem.cs_correct_alpha", 1.0, "share", "Correct & Smooth: α of the correction, the neighbours' share in each of 50 propagations of the residuals.", low=0, high=1),
    Key("glem.cs_smooth_alpha", 0.8, "share", "Correct & Smooth: α of the smoothing, the neighbours' share in each of 50 propagations of the predictions.", low=0, high=1),
    Key("glem.encode_nodes", "all", "", "Nodes whose texts the LM encodes: all; needed = nodes that are trained on, scored or pseudo-labelled, and the neighbours that the GNN reaches from them.", choices=("all", "needed")),
    Key("glem.memory_budget_gb", 0.0, "GB", "Memory for graph and features (a GB is 2^30 bytes), at most four fifths of the machine's. Larger data stays on disk (networks on hop features; glem_sage, glem_gcn, glem_gat and glem_mlp with gnn.fan_out) or the run is refused; 0 = all in memory.", low=0),
    Key("glem.share_lm_gold", False, "", "Keep the LM fine-tuned on gold labels under dataset.dir, for all runs with the same LM settings and seed."),
    Key("glem.search_trials", 0, "trials", "Number of search trials that led to these settings, for the leaderboard; run/search.py sets it.", low=0),
    Key("glem.track", "none", "", "Live tracking by Weights & Biases, MLflow or trackio, in all modes but standard; for TensorBoard, set GraphGym's tensorboard_each_run.", choices=("none", "wandb", "mlflow", "trackio")),
    Key("glem.plugins", [], "", "Python files or modules to import first, such as [my_network.py]: this configuration can use the networks, datasets, train modes and keys that they register.", kind=str),
    Key("glem.checkpoint_minutes", 10.0, "minutes", "Time between the checkpoints from which a killed stage resumes.", low=0),
    Key("glem.keep_weights", "needed", "", "Weights to keep on disk: those of the models that are still needed, or of every stage.", choices=("needed", "all")),
    # ---- keys beside GraphGym's own -------------------------------------------------------------------------------
    Key("gnn.norm", "batch", "", "Norm between layers (glem_mlp, glem_gcn, glem_sage, glem_gat, glem_revgat).", choices=("batch", "layer", "none")),
    Key("gnn.attention_dropout", 0.0, "share", "Dropout of attention weights (glem_gat, glem_revgat, glem_sagn, glem_gamlp).", low=0, below=1),
    Key("gnn.edge_drop", 0.0, "share", "Share of edges dropped in every training step (glem_revgat).", low=0, below=1),
    Key("gnn.rev_groups", 2, "groups", "Groups of channels in a reversible block (glem_revgat).", low=2),
    Key("gnn.symmetric_norm", False, "", "Scale attention by D^-1/2 on both sides, as in GCN (glem_revgat)."),
    Key("gnn.hops", 3, "hops", "Propagations of the features (glem_sgc, glem_sign, glem_sagn, glem_gamlp).", low=0),
    Key("gnn.label_hops", 5, "hops", "With glem.label_input: propagations of the labels (glem_sagn, glem_gamlp).", low=1),
    Key("gnn.batch_size", 0, "nodes", "Nodes per optimizer step of a network on hop features, or with gnn.fan_out; 0 = one step per epoch, on all its nodes.", low=0),
    Key("gnn.fan_out", [], "neighbours", "Neighbours sampled per node, one number per layer; -1 = all; [] = full batch. Prediction never samples.", kind=int, low=1, or_minus_one=True),
    Key("gnn.hop_activation", "leaky_relu", "", "Activation of the attention scores over hops (glem_gamlp).", choices=("sigmoid", "relu", "leaky_relu")),
    Key("gnn.label_reuse", 0, "passes", "With glem.label_input: passes whose predictions fill in the labels that are not given, before the pass that counts (full-batch networks).", low=0),
    Key("gnn.distillation", 0.0, "share", "Self-distillation on gold labels (full-batch networks): weight of the distance to a first network's predictions in the loss of a second one; 0 = off.", low=0, high=1),
    Key("gnn.distillation_temperature", 1.0, "", "Self-distillation: T of both networks' distributions.", low=1e-3),
    Key("gnn.rlu_rounds", 1, "rounds", "Rounds of training on gold labels (RLU; networks on hop features); each after the first also learns the previous round's confident predictions; 1 = no self-training.", low=1),
    Key("gnn.rlu_threshold", 0.9, "share", "RLU: top probability above which an unlabelled node becomes a target of the next round.", low=0, high=1),
    Key("gnn.rlu_weight", 0.5, "weight", "RLU: weight of these targets' term in the loss.", low=0, high=1),
    Key("gnn.scr_weight", 0.0, "weight", "Weight of the loss that draws predictions of unlabelled nodes towards a mean teacher's (SCR; networks on hop features); 0 = off.", low=0),
    Key("gnn.scr_threshold", 0.8, "share", "SCR: top probability of the teacher above which an unlabelled node counts.", low=0, below=1),
    Key("gnn.label_dropout", 0.5, "share", "Dropout in the network on label hops (glem_sagn, glem_gamlp).", low=0, below=1),
    Key("gnn.precision", "32", "", "Precision of the M-step, as lm.precision; tf32 = float32 with matrix products in TensorFloat-32 on a GPU; auto on a GPU = tf32.", choices=("auto", "32", "tf32", "bf16", "16")),
    Key("gnn.input_dropout", 0.0, "share", "Dropout of the input features (all GNNs glem_* but glem_sgc).", low=0, below=1),
    Key(
        "gnn.input_norm", "standardise", "",
        "Norm of the GNN's input: standardise = each column of the node features, before training; batch = batch norm "
        "in the network, as in the code of GLEM's authors (glem_revgat, glem_gamlp); layer = layer norm of the text "
        "embeddings, which change in training, and standardised other features (glem_joint, where standardise means "
        "the same).",
        choices=("none", "standardise", "batch", "layer"),
    ),
    Key("gnn.hidden_bias", True, "", "Biases in all layers; False = in the last layer only, as in the code of GLEM's authors (glem_gcn)."),
    Key("gnn.residual", False, "", "Add a layer's input to its output where widths agree (glem_mlp, glem_gcn, glem_sage, glem_gat), or a linear map of the features to the output of the attention over hops (glem_gamlp)."),
    Key("gnn.linear_skip", False, "", "Add a linear map of a layer's input to its output, before the norm (glem_mlp, glem_gcn, glem_sage, glem_gat)."),
    Key("gnn.readout", "layer", "", "Source of the logits (glem_mlp, glem_gcn, glem_sage, glem_gat): layer = the last layer; linear = a linear map of the last layer, which becomes a hidden one; sum = a linear map of the sum of all layers (jumping knowledge).", choices=("layer", "linear", "sum")),
    Key("gnn.global_layers", 1, "layers", "Layers of attention among all nodes, after the local layers (polynormer).", low=1),
    Key("gnn.local_epochs", 0, "epochs", "Epochs at the start in which only the local layers are trained (polynormer).", low=0),
    Key("gnn.self_loops", False, "", "Include the node itself in the mean over its neighbours (glem_sage)."),
    Key("optim.patience", 0, "evaluations", "M-step: stop after this many validations without a better score; 0 = never.", low=0),
    Key("optim.warmup_epochs", 0.0, "epochs", "Linear warm-up of the schedulers linear_warmup, cosine_warmup, constant_warmup.", low=0),
)  # fmt: skip


# Bounds of GraphGym's own numeric keys; their defaults are GraphGym's.
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

# Keys whose values are paths, in which ~ and $NAME are expanded; lm.model may also be a hub id.
PATHS = ("out_dir", "dataset.dir", "dataset.tag_source", "lm.model", "glem.feature_file", "glem.first_predictions")


def all_keys() -> dict[str, Key]:
    """Name -> key: GraphGym's, other plugins' and ours."""
    set_cfg(pristine := CfgNode())
    keys = {name: Key(name, default, **STOCK_BOUNDS.get(name, {})) for name, default in flat_settings(pristine)}
    return keys | {key.name: key for key in KEYS}


def flat_settings(cfg: CfgNode) -> list[tuple[str, Any]]:
    """(``name`` or ``group.name``, value) for every key that users may set."""
    flat: list[tuple[str, Any]] = []
    for name, value in settings_of(cfg).items():
        is_group = isinstance(value, CfgNode)
        flat += [(f"{name}.{key}", inner) for key, inner in value.items()] if is_group else [(name, value)]
    return flat


def settings_of(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` with the keys that users may set, without those that GraphGym adds while it runs."""
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
