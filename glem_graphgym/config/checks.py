"""Checks of a whole configuration: values against their keys, names against registries, keys against each other."""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any

import torch
from torch_geometric.graphgym import register
from torch_geometric.nn.resolver import aggregation_resolver
from yacs.config import CfgNode

from glem_graphgym.config.keys import (
    LAST_SEED,
    PATHS,
    ConfigError,
    all_keys,
    flat_settings,
    settings_of,
    shown,
)
from glem_graphgym.files import expand_path
from glem_graphgym.modes import MODES
from glem_graphgym.scores import METRIC, METRICS

CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # and surrogates, which are not valid in UTF-8
# dataset.name -> function that loads the text graph of a configuration, in the order of registration.
TEXT_GRAPHS: dict[str, Callable[[CfgNode], Any]] = {}
# A condition on the configuration c, and the message if it does not hold; {group.key} is replaced by the key's value.
Rule = tuple[Callable[[CfgNode], object], str]
PLUGINS = "glem.plugins"
WORD_FEATURES = ("bow", "tfidf")
FEATURE_KINDS = ("text", "static", "raw", "file", *WORD_FEATURES)


def check_config(cfg: CfgNode) -> None:
    """Check every key against its bounds, expand ~ and $NAME in paths, then check keys against each other.

    Called whenever a run is built, so that a configuration is checked however it was loaded.

    Raises:
        ConfigError: names the key, or both keys of a contradiction.
    """
    keys = all_keys()
    keys[PLUGINS].check(cfg.glem.plugins)
    import_plugins(cfg.glem.plugins)  # may register names that the other checks look up
    for name, value in flat_settings(cfg):
        if name in keys and (keys[name].default is not None or keys[name].kind):
            keys[name].check(value)
        _check_value(name, value)
    for name in PATHS:
        group, _, key = name.rpartition(".")
        keys_of_group = cfg[group] if group else cfg
        try:
            keys_of_group[key] = expand_path(keys_of_group[key])
        except ValueError as error:
            raise ConfigError(f"{name} is '{shown(keys_of_group[key])}', but {error}") from error
    _check_names(cfg)
    check_metric(cfg)
    for kind in feature_kinds(cfg.glem.node_features) if cfg.train.mode != "standard" else []:
        if kind not in FEATURE_KINDS and not view_of(kind):
            raise ConfigError(
                f"glem.node_features is '{shown(cfg.glem.node_features)}': '{shown(kind)}' is unknown, expected "
                f"{', '.join(FEATURE_KINDS)} or text:<view>, joined by +"
            )
    check_rules(cfg, RULES if cfg.train.mode == "standard" else (*OUR_RULES, *RULES))


def import_plugins(plugins: Iterable[Any]) -> None:
    """Import each Python file or module, unless it has been imported.

    Args:
        plugins: value of ``glem.plugins``. The folder of a file is added to ``sys.path``, for its own imports.

    Raises:
        ConfigError: one cannot be imported, or another module has the name of a file.
    """
    for plugin in map(str, plugins):
        try:
            file = Path(expand_path(plugin)).resolve(strict=True) if plugin.endswith(".py") else None
            if file is not None and str(file.parent) not in sys.path:
                sys.path.append(str(file.parent))
            module = importlib.import_module(plugin if file is None else file.stem)
        except (Exception, SystemExit) as error:  # the code of a plugin can fail in any way
            raise ConfigError(
                f"{PLUGINS}: '{shown(plugin)}' cannot be imported ({type(error).__name__}: {shown(str(error))}); "
                "expected a Python file or a module on PYTHONPATH"
            ) from error
        if file is not None and (module.__file__ is None or not file.samefile(module.__file__)):
            raise ConfigError(
                f"{PLUGINS}: '{shown(plugin)}' has the name of another module, {module.__file__ or file.stem}; rename "
                "the file"
            )


def check_rules(cfg: CfgNode, rules: Iterable[Rule]) -> None:
    """Raise ConfigError with the message of the first rule that does not hold."""
    values = {
        name: SimpleNamespace(**{key: shown(item) for key, item in value.items()})
        if isinstance(value, CfgNode)
        else shown(value)
        for name, value in settings_of(cfg).items()
    }
    for holds, message in rules:
        if not holds(cfg):
            raise ConfigError(message.format(**values))


def _is_file_name(text: str) -> bool:
    """Whether a text names a file in the experiment's folder that is none of the results."""
    path = PurePath(text)
    taken = not path.parts or re.fullmatch(r"-?\d+|agg|(summary|blind)\.json", path.parts[0])
    return not taken and ".." not in path.parts and not path.is_absolute()


LOWER_IS_BETTER = ("loss", "lm_loss", "gnn_loss", "mae", "mse", "rmse")
RULES: tuple[Rule, ...] = (
    (lambda c: c.dataset.format != "TAG" or (c.dataset.task == "node" and c.dataset.task_type != "regression"),
     "dataset.task is '{dataset.task}' and dataset.task_type '{dataset.task_type}', but dataset.format TAG has classes "
     "of nodes; expected 'node' and 'classification'"),
    (lambda c: c.optim.max_epoch > 0 or (c.train.mode != "standard" and not MODES[c.train.mode].gnn),
     "optim.max_epoch is {optim.max_epoch}, so the GNN would learn nothing; expected at least 1"),
    (lambda c: c.out_dir,
     "out_dir is empty, expected a folder for the results ('.' is the current one)"),
    (lambda c: _is_file_name(c.cfg_dest),
     "cfg_dest is '{cfg_dest}', expected the name of a file in the experiment's folder, such as config.yaml"),
    (lambda c: c.lm.base_precision == "32" or c.lm.lora_rank or c.train.mode == "glem_gnn",
     "lm.base_precision is '{lm.base_precision}', but lm.lora_rank 0 trains the base itself, which needs float32; "
     "expected a rank, such as 16, or lm.base_precision 32"),
    (lambda c: c.lm.base_precision == "32" or c.lm.precision != "16",
     "lm.base_precision is '{lm.base_precision}', but lm.precision 16 computes in another half precision; expected "
     "lm.precision auto, bf16 or 32"),
    (lambda c: c.lm.base_precision not in ("8", "4") or c.lm.pretrained,
     "lm.base_precision is '{lm.base_precision}', but lm.pretrained False has no weights to quantise; expected bf16 or "
     "32"),
    (lambda c: not (c.model.type.startswith("glem_") and (c.dataset.node_encoder or c.dataset.edge_encoder)),
     "model.type {model.type} has no encoders, but dataset.node_encoder is {dataset.node_encoder} and "
     "dataset.edge_encoder {dataset.edge_encoder}; expected False for both, or model.type gnn"),
    (lambda c: (c.metric_agg == "argmin") == (c.metric_best in LOWER_IS_BETTER) or c.metric_best in c.custom_metrics,
     "metric_best is '{metric_best}', of which metric_agg '{metric_agg}' would choose the worst epoch; expected argmin "
     "for losses and errors, argmax for scores"),
)  # fmt: skip

OUR_RULES: tuple[Rule, ...] = (
    (lambda c: c.dataset.format == "TAG",
     "train.mode {train.mode} needs texts: dataset.format is '{dataset.format}', expected 'TAG'"),
    (lambda c: (c.dataset.task, c.dataset.task_type) == ("node", "classification"),
     "train.mode {train.mode} classifies nodes: dataset.task is '{dataset.task}' and dataset.task_type "
     "'{dataset.task_type}', expected 'node' and 'classification'"),
    (lambda c: c.lm.batch_size % c.lm.grad_accumulation == 0,
     "lm.batch_size {lm.batch_size} is no multiple of lm.grad_accumulation, {lm.grad_accumulation}"),
    (lambda c: (c.e_step.batch_size or 0) % c.lm.grad_accumulation == 0,
     "e_step.batch_size {e_step.batch_size} is no multiple of lm.grad_accumulation, {lm.grad_accumulation}"),
    (lambda c: c.accelerator in ("auto", "cpu", "cuda"),
     "accelerator is '{accelerator}', expected auto, cpu or cuda"),
    (lambda c: c.lm.model,
     "lm.model is empty, expected a hub id or a folder"),
    (lambda c: c.dataset.dir,
     "dataset.dir is empty, expected a folder"),
    (lambda c: len(c.dataset.tag_split) == 3 and min(c.dataset.tag_split) > 0
     and sum(value for value in c.dataset.tag_split if value <= 1) <= 1 + 1e-6,
     "dataset.tag_split is {dataset.tag_split}, expected three numbers above 0 for train, valid and test: shares, "
     "together at most 1, or numbers of nodes"),
    (lambda c: len(kinds := feature_kinds(c.glem.node_features)) == len(set(kinds)),
     "glem.node_features is '{glem.node_features}', which names features twice; expected each kind once"),
    (lambda c: c.train.mode != "glem_gnn" or not trains_features(c.glem.node_features),
     "glem.node_features is '{glem.node_features}', the embeddings of a trained LM, but train.mode glem_gnn trains "
     "none; expected static, raw, file, bow or tfidf (or train.mode glem_cascade)"),
    (lambda c: c.train.mode != "glem_joint" or "text" in feature_kinds(c.glem.node_features),
     "glem.node_features is '{glem.node_features}', but train.mode glem_joint trains the text encoder as node encoder; "
     "expected text, alone or joined by + with others"),
    (lambda c: c.train.mode != "glem_joint" or not any(map(view_of, feature_kinds(c.glem.node_features))),
     "glem.node_features is '{glem.node_features}', but train.mode glem_joint encodes one text per node; expected no "
     "text:<view>"),
    (lambda c: ("file" in feature_kinds(c.glem.node_features)) == bool(c.glem.feature_file),
     "glem.node_features '{glem.node_features}' and glem.feature_file '{glem.feature_file}' disagree: a file is given "
     "if and only if 'file' is one of the features"),
    (lambda c: c.gnn.fan_out or c.train.mode != "glem_joint",
     "train.mode glem_joint trains on sampled neighbourhoods, but gnn.fan_out is []; expected one number for each "
     "layer (gnn.layers_mp {gnn.layers_mp}), such as [5, 3]"),
    (lambda c: len(c.gnn.fan_out) in (0, c.gnn.layers_mp),
     "gnn.fan_out is {gnn.fan_out}, but gnn.layers_mp is {gnn.layers_mp}; expected one number per layer"),
    (lambda c: not (c.gnn.fan_out and c.model.type == "glem_revgat" and c.gnn.symmetric_norm),
     "gnn.fan_out {gnn.fan_out} leaves gnn.symmetric_norm True without the degrees that it scales by; set "
     "gnn.symmetric_norm to False, or gnn.fan_out to []"),
    (lambda c: c.train.mode != "glem_joint" or (c.optim.optimizer, c.optim.scheduler) == ("adamw", "none"),
     "optim.optimizer is '{optim.optimizer}' and optim.scheduler '{optim.scheduler}', but train.mode glem_joint trains "
     "LM and GNN with one AdamW whose rates follow lm.warmup_epochs and lm.decay; expected 'adamw' and 'none'"),
    (lambda c: c.glem.encode_nodes == "all" or not c.glem.correct_and_smooth,
     "glem.correct_and_smooth smooths the predictions of all nodes, but glem.encode_nodes is 'needed'; set it to "
     "'all', or glem.correct_and_smooth to False"),
    (lambda c: c.gnn.input_norm != "batch" or c.model.type in ("glem_revgat", "glem_gamlp"),
     "gnn.input_norm is 'batch', but model.type {model.type} has no norm of its input (glem_revgat and glem_gamlp "
     "have); expected standardise or none"),
    (lambda c: c.gnn.input_norm != "layer" or c.train.mode == "glem_joint",
     "gnn.input_norm is 'layer', but train.mode {train.mode} does not change text embeddings while it trains the GNN; "
     "expected standardise, batch or none"),
    (lambda c: c.optim.base_lr > 0 or c.train.mode == "glem_lm",
     "optim.base_lr is {optim.base_lr}, so the GNN would learn nothing; expected a number above 0"),
    (lambda c: 0 not in (c.lm.lr, c.e_step.lr) or c.train.mode == "glem_gnn",
     "lm.lr is {lm.lr} and e_step.lr {e_step.lr}, so the language model would learn nothing; expected numbers above 0 "
     "(lm.epochs 0 keeps it as pretrained)"),
    (lambda c: not (c.lm.freeze_layers and c.lm.lora_rank),
     "lm.freeze_layers is {lm.freeze_layers}, but lm.lora_rank {lm.lora_rank} freezes all layers and trains adapters "
     "in each; set one of them to 0"),
    (lambda c: c.lm.lora_rank or c.lm.lora_variant == "lora",
     "lm.lora_variant is '{lm.lora_variant}', but lm.lora_rank is 0, which trains all weights; expected a rank, such "
     "as 16"),
    (lambda c: c.lm.strategy == "ddp" or c.train.mode != "glem_joint",
     "lm.strategy is 'fsdp', but in train.mode glem_joint the first process trains alone; expected ddp"),
    (lambda c: c.lm.strategy == "ddp" or c.lm.precision != "16",
     "lm.strategy is 'fsdp', but the scaled gradients of lm.precision 16 cannot be sharded; expected bf16 or 32"),
    (lambda c: c.lm.strategy == "ddp" or c.lm.base_precision not in ("8", "4"),
     "lm.strategy is 'fsdp', but weights of lm.base_precision {lm.base_precision} cannot be sharded; expected bf16 or "
     "32"),
    (lambda c: c.lm.lora_targets,
     "lm.lora_targets is [], expected [all-linear], [attention] or names of layers; lm.lora_rank 0 trains all weights"),
    (lambda c: c.glem.label_input or not c.gnn.label_reuse,
     "gnn.label_reuse is {gnn.label_reuse}, but no labels are given; set glem.label_input to True"),
    (lambda c: not (c.dataset.node_encoder and c.dataset.node_encoder_name == "glem_text"),
     "train.mode {train.mode} with dataset.node_encoder_name glem_text would train the text encoder inside the GNN; "
     "use train.mode standard for that, or dataset.node_encoder False"),
)  # fmt: skip


def check_choice(name: str, value: Any, allowed: Collection[Any]) -> None:
    if value not in list(allowed):  # a value may be a list, which is not hashable
        names = ", ".join(str(choice) for choice in allowed if choice is not None)
        raise ConfigError(f"{name} is '{shown(value)}', expected one of: {names}")


def _check_value(name: str, value: Any) -> None:
    """Refuse control characters in texts, and numbers that are not finite, for every key of any plugin."""
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, float) and not math.isfinite(item):
            raise ConfigError(f"{name} is {shown(value)}, expected finite numbers")
        if isinstance(item, str) and CONTROL_CHARACTERS.search(item.replace("\n", "") if name == "lm.prompt" else item):
            raise ConfigError(f"{name} is {item[:80]!r}, expected a text without line breaks and control characters")


def feature_kinds(node_features: str) -> list[str]:
    return [kind.strip() for kind in node_features.split("+")]


def view_of(kind: str) -> str:
    """The view of a kind of node features: ``abstract`` for ``text:abstract``, "" for kinds without a view."""
    return kind.removeprefix("text:") if re.fullmatch(r"text:[\w-]+", kind) else ""


def trains_features(node_features: str) -> bool:
    """Whether some node features are embeddings of a trained LM, so that they change from one M-step to the next."""
    return any(kind.startswith("text") for kind in feature_kinds(node_features))


def reads_texts(cfg: CfgNode) -> bool:
    """Whether a run of this configuration feeds the nodes' texts to a language model."""
    if cfg.dataset.format != "TAG":
        return False
    if "static" in feature_kinds(cfg.glem.node_features):
        return True
    if cfg.train.mode == "standard":
        text_encoder = cfg.dataset.node_encoder and cfg.dataset.node_encoder_name == "glem_text"
        return text_encoder or cfg.model.type == "glem_lm"
    return cfg.train.mode != "glem_gnn"


# Metrics of our train modes. Those in `METRICS` also select models; the others only choose rows of GraphGym's tables.
OUR_METRICS = (*METRICS, "loss", "lm_accuracy", "lm_loss", "gnn_accuracy", "gnn_loss")
STOCK_METRICS = {
    "regression": ("mae", "mse", "rmse"),
    "classification_multi": ("accuracy",),
    "classification_binary": ("accuracy", "precision", "recall", "f1", "auc"),
}


def metric_of(cfg: CfgNode) -> str:
    """The score that our train modes select models by: ``metric_best`` if it is in `METRICS`, else accuracy."""
    return cfg.metric_best if cfg.train.mode != "standard" and cfg.metric_best in METRICS else METRIC


def check_metric(cfg: CfgNode, task_type: str | None = None) -> None:
    """Check ``metric_best`` against the scores that a run will have.

    Args:
        task_type: GraphGym's task type as found in the data; None = ``dataset.task_type``.

    Raises:
        ConfigError: names the valid metrics.
    """
    task_type = task_type or cfg.dataset.task_type
    allowed: tuple[str, ...] = OUR_METRICS
    if cfg.train.mode == "standard":
        stock = STOCK_METRICS.get(task_type, STOCK_METRICS["classification_binary"])
        allowed = (*(cfg.custom_metrics or stock), "loss")
    if {"auc", "accuracy"} & set(allowed):
        allowed = ("auto", *allowed)
    check_choice("metric_best", cfg.metric_best, allowed)


def check_devices(cfg: CfgNode, started: int | None) -> None:
    """Check ``devices`` against the started processes and the GPUs.

    Args:
        started: number of the run's processes on this machine, started by a launcher; None = this process alone.

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
    if count == 1 and started is None and cfg.lm.strategy == "fsdp":
        raise ConfigError(
            "lm.strategy is 'fsdp', which shards the language model among several processes, but this run has one; set "
            "devices to the number of GPUs, or lm.strategy to ddp"
        )
    by_srun = started is not None and "RANK" not in os.environ  # srun may show each process only its own GPUs
    if count > 1 and cfg.accelerator in ("auto", "cuda") and 0 < gpus < count and not by_srun:
        raise ConfigError(f"{count} processes are asked for (devices), but torch sees {gpus} GPUs; expected one each")


def check_seeds(first: int, count: int) -> None:
    """Refuse ``count`` seeds from ``first`` if the last one exceeds `LAST_SEED`."""
    if (last := first + count - 1) > LAST_SEED:
        raise ConfigError(
            f"seed is {first} and --repeat {count}, so the last seed would be {last}; expected at most {LAST_SEED}"
        )


# ---- keys that our train modes do not read --------------------------------------------------------------------------

# Key of GraphGym's own training -> the keys to set instead, if any.
UNREAD = {name: instead for names, instead in (
    ("custom_metrics", "metric_best"),
    ("dataset.split dataset.split_mode dataset.shuffle_split", "dataset.tag_split"),
    ("dataset.transductive", "glem.setting"),
    ("dataset.to_undirected", "dataset.tag_undirected"),
    ("train.batch_size", "lm.batch_size and gnn.batch_size"),
    ("train.sampler train.neighbor_sizes", "gnn.fan_out"),
    ("train.enable_ckpt train.ckpt_period", "glem.checkpoint_minutes"),
    ("dataset.transform dataset.remove_feature dataset.cache_save dataset.cache_load train.sample_node", ""),
    ("train.node_per_graph train.radius train.iter_per_epoch train.walk_length train.skip_train_eval", ""),
    ("train.epoch_resume train.ckpt_clean val.sampler val.sample_node val.node_per_graph val.radius", ""),
    ("model.loss_fun model.size_average model.thresh model.match_upper", ""),
) for name in names.split()}  # fmt: skip


def unread_keys(cfg: CfgNode) -> list[str]:
    """Changed keys that a run on a text graph does not read; each with the key to set instead.

    GraphGym's own training reads all but those of the graph.
    """
    keys, settings = all_keys(), dict(flat_settings(cfg))
    changed = [name for name in UNREAD if settings[name] != keys[name].default]
    if cfg.train.mode == "standard":
        return [f"{name} (but {UNREAD[name]})" for name in changed if UNREAD[name].startswith("dataset.")]
    if cfg.model.loss_fun == "glem_pseudo_label":  # it is the loss of these modes
        changed.remove("model.loss_fun")
    unread = [f"{name} (but {UNREAD[name]})" if UNREAD[name] else name for name in changed]
    if cfg.optim.warmup_epochs and cfg.optim.scheduler in ("none", "step", "cos", None):
        unread.append("optim.warmup_epochs (but with optim.scheduler constant_warmup, linear_warmup or cosine_warmup)")
    return unread


# ---- names that GraphGym looks up late, during the run --------------------------------------------------------------

SAMPLERS = ("full_batch", "neighbor", "random_node", "saint_rw", "saint_node", "saint_edge", "cluster")
TASK_TYPES = ("classification", "regression", "classification_binary", "classification_multi")
GENERAL_LAYERS = ("generalconv", "generaledgeconv", "generalsampleedgeconv")


def _check_names(cfg: CfgNode) -> None:
    """Check names against GraphGym's registries, plugins' entries included, and against names hard-coded in it."""
    d, g = cfg.dataset, cfg.gnn
    choices: dict[str, Collection[Any]] = {
        "print": ("stdout", "file", "both"),
        "metric_agg": ("argmax", "argmin"),
        "train.sampler": SAMPLERS,
        "val.sampler": SAMPLERS,
        "optim.optimizer": register.optimizer_dict,
        "optim.scheduler": register.scheduler_dict,
        "model.size_average": ("mean", "sum"),
    }
    for metric in cfg.custom_metrics:
        check_choice("custom_metrics", metric, register.metric_dict)
    if not cfg.custom_metrics:
        choices["dataset.task_type"] = TASK_TYPES
    # A plugin's loss or loader may answer to any name, whatever it is registered as: check names only without plugins.
    if _only_ours(register.loss_dict):
        choices["model.loss_fun"] = ("cross_entropy", "mse", *register.loss_dict)
    if _only_ours(register.loader_dict):
        choices["dataset.format"] = ("PyG", "OGB", "TAG")
    if d.format == "TAG":
        choices["dataset.name"] = TEXT_GRAPHS
    choices["model.type"] = register.network_dict
    if cfg.model.type == "gnn" or cfg.model.type.startswith("glem_"):  # other networks may give keys other meanings
        choices |= {
            "gnn.layer_type": register.layer_dict,
            "gnn.stage_type": register.stage_dict,
            "gnn.act": register.act_dict,
            "gnn.head": register.head_dict,
        }
        if g.head == "graph":
            choices["model.graph_pooling"] = register.pooling_dict
        if g.head in ("edge", "link_pred"):
            choices["model.edge_decoding"] = ("dot", "cosine_similarity", "concat")
        if d.node_encoder:
            choices["dataset.node_encoder_name"] = register.node_encoder_dict
        if d.edge_encoder:
            choices["dataset.edge_encoder_name"] = register.edge_encoder_dict
        if g.layer_type in GENERAL_LAYERS:
            choices |= {"gnn.self_msg": ("none", "add", "concat"), "gnn.msg_direction": ("single", "both")}
    values = dict(flat_settings(cfg))
    for name, allowed in choices.items():
        check_choice(name, values[name], allowed)
    if "gnn.self_msg" in choices:
        try:
            aggregation_resolver(g.agg)
        except (ValueError, TypeError) as error:
            allowed_names = "add, mean, max, or another aggregation of torch_geometric.nn that needs no arguments"
            raise ConfigError(f"gnn.agg is '{shown(g.agg)}', expected one of: {allowed_names}") from error


def _only_ours(registry: Mapping[str, Any]) -> bool:
    return all(entry.__module__.startswith("glem_graphgym.") for entry in registry.values())
