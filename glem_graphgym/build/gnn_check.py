"""Checks of the GNN before a run: its settings and a training step on a few nodes, so that no LM is trained in vain."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from glem_graphgym.build.gnn import NETWORKS, build_gnn, gnn_optimizer, sees_hops
from glem_graphgym.build.language_model import as_config_error, gnn_hardware, hardware_for, random_state_kept
from glem_graphgym.build.memory_check import check_memory, stage_remedy
from glem_graphgym.build.sizes import feature_width, is_joint
from glem_graphgym.config import ConfigError, all_keys, check_rules
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.em.m_step import GNNSettings
from glem_graphgym.em.pseudo_labels import num_confident, num_drawn
from glem_graphgym.em.sampled_step import num_batches
from glem_graphgym.hardware import Hardware
from glem_graphgym.memory import naming_out_of_memory
from glem_graphgym.models.propagation import Adjacency

NODES = 8  # of the ring that the network is tried on
# gnn.* that the learners read; `_RULES` and `OUR_RULES` refuse those that do not fit.
KEYS_OF_TRAINING = {
    *("precision", "input_norm", "fan_out", "label_reuse", "distillation", "distillation_temperature"),
    *("rlu_rounds", "rlu_threshold", "rlu_weight", "scr_weight", "scr_threshold"),
}
log = logging.getLogger(__name__)


# Rules as in `OUR_RULES`, on networks and how they are trained.
_RULES = (
    (lambda c: not sees_hops(c) or c.train.mode != "glem_joint",
     "model.type {model.type} propagates features once, before it is trained, but train.mode glem_joint trains the "
     "text encoder that makes them; expected a full-batch network such as glem_sage"),
    (lambda c: not (sees_hops(c) and c.gnn.fan_out),
     "gnn.fan_out is {gnn.fan_out}, but model.type {model.type} trains on hop features, which need no sampling; set it "
     "to []"),
    (lambda c: not (c.gnn.label_reuse and _trains_in_batches(c)),
     "gnn.label_reuse is {gnn.label_reuse}, but model.type {model.type} with gnn.fan_out {gnn.fan_out} never has the "
     "predictions of all nodes in training; expected 0, or a full-batch network"),
    (lambda c: not (c.gnn.distillation and _trains_in_batches(c)),
     "gnn.distillation is {gnn.distillation}, but model.type {model.type} with gnn.fan_out {gnn.fan_out} never has the "
     "predictions of all nodes in training; expected 0, or a full-batch network"),
    (lambda c: _trains_in_batches(c) or c.glem.encode_nodes == "all" or c.glem.setting == "transductive",
     "glem.setting is '{glem.setting}', but with glem.encode_nodes 'needed' the edges of test nodes decide which texts "
     "model.type {model.type} is trained on; set glem.encode_nodes to 'all', or sample neighbours (gnn.fan_out)"),
    (lambda c: c.gnn.rlu_rounds == 1 or sees_hops(c),
     "gnn.rlu_rounds is {gnn.rlu_rounds}, but model.type {model.type} sees the whole graph in every step; expected 1, "
     "or a network on hop features (glem_sgc, glem_sign, glem_sagn, glem_gamlp)"),
    (lambda c: c.gnn.scr_weight == 0 or sees_hops(c),
     "gnn.scr_weight is {gnn.scr_weight}, but model.type {model.type} sees the whole graph in every step; expected "
     "0.0, or a network on hop features (glem_sgc, glem_sign, glem_sagn, glem_gamlp)"),
)  # fmt: skip


def _trains_in_batches(cfg: CfgNode) -> bool:
    return bool(sees_hops(cfg) or cfg.gnn.fan_out)


def check_gnn(cfg: CfgNode, graph: TextGraph, candidates: int) -> bool:
    """Check, before any long work, that the GNN can run: its settings, the network itself, and memory.

    Called by runs and by dry runs.

    Args:
        candidates: number of nodes that may get pseudo-labels.

    Returns:
        See `check_memory`.

    Raises:
        ValueError: names the keys, or ``model.type``.
    """
    check_rules(cfg, _RULES)
    if is_joint(cfg):
        _check_micro_batches(cfg, len(graph.split["train"]))
    if unused := unused_keys(cfg):
        log.warning("model.type %s does not use %s: set without effect", cfg.model.type, ", ".join(unused))
    smallest_batch = _smallest_batch(cfg, graph, candidates)
    check_network(cfg, graph.num_classes, max(1, feature_width(cfg, graph)), smallest_batch)
    return check_memory(cfg, graph, candidates)


def unused_keys(cfg: CfgNode) -> list[str]:
    """Keys of ``gnn.*`` that differ from their default, but have no effect on a network of ours."""
    if cfg.model.type not in NETWORKS:
        return []  # what layers of GraphGym read is not known
    read_keys = {*NETWORKS[cfg.model.type].keys.values()}
    if cfg.train.mode != "standard":
        read_keys |= KEYS_OF_TRAINING
        if sees_hops(cfg) or (cfg.gnn.fan_out and not is_joint(cfg)):
            read_keys.add("batch_size")
    if sees_hops(cfg):
        read_keys |= {"hops", "label_hops"} if cfg.glem.label_input else {"hops"}
    defaults = {key.removeprefix("gnn."): value.default for key, value in all_keys().items() if key.startswith("gnn.")}
    defaults |= {"head": cfg.gnn.head, "layers_post_mp": 1}  # set by GraphGym itself
    return sorted(f"gnn.{name}" for name in defaults.keys() - read_keys if cfg.gnn[name] != defaults[name])


def _smallest_batch(cfg: CfgNode, graph: TextGraph, candidates: int) -> int:
    """Number of nodes in the smallest training batch of any M-step; batch norm needs at least two."""
    gold = len(graph.split["train"])
    if is_joint(cfg):
        return max(1, gold // num_batches(gold, cfg.lm.batch_size) // cfg.lm.grad_accumulation)
    if not _trains_in_batches(cfg):
        return graph.num_nodes
    if cfg.glem.label_input and not sees_hops(cfg):  # only gold nodes whose labels are no input are targets
        gold = max(1, int(gold * (1 - GNNSettings.label_input_rate)))
    target_counts = [gold]
    if cfg.train.mode == "glem":
        drawn = num_drawn(num_confident(candidates, cfg.glem.confidence), cfg.glem.gnn_pseudo_ratio, gold)
        target_counts.append(gold + drawn)
    return min(count // num_batches(count, cfg.gnn.batch_size) for count in target_counts)


def _check_micro_batches(cfg: CfgNode, num_gold: int) -> None:
    """Refuse joint training whose micro-batches (``lm.grad_accumulation``) are empty or too small for batch norm."""
    smallest_batch = num_gold // num_batches(num_gold, cfg.lm.batch_size)
    most_micro_batches = max(1, smallest_batch // (2 if cfg.gnn.norm == "batch" else 1))
    if cfg.lm.grad_accumulation > most_micro_batches:
        raise ConfigError(
            f"lm.grad_accumulation is {cfg.lm.grad_accumulation}, but a batch has {smallest_batch} of the {num_gold:,} "
            f"training nodes and gnn.norm is '{cfg.gnn.norm}'; expected at most {most_micro_batches} parts"
        )


# ---- the network, tried on a few nodes -------------------------------------------------------------------------------


def check_network(cfg: CfgNode, num_classes: int, width: int, smallest_batch: int = NODES) -> None:
    """Build the GNN and its optimizer, then run a forward and backward pass and a prediction on a tiny graph.

    The random state is left unchanged.

    Args:
        num_classes: C.
        width: columns D of the node features, without labels.
        smallest_batch: number of nodes in the smallest training batch.

    Raises:
        ConfigError: the GNN cannot be built, trained or used to predict; names ``model.type`` or the keys at fault.
        ValueError: a network of ours refuses a setting.
    """
    mode, joint = cfg.train.mode, is_joint(cfg)
    hardware = hardware_for(cfg, cfg.lm.precision) if joint else gnn_hardware(cfg)
    if cfg.model.type == "glem_lm":
        raise ConfigError(
            f"model.type {cfg.model.type} is the language model, for train.mode standard, but train.mode {mode} trains "
            "a GNN; expected one, such as glem_sage (the language model is what lm.* describes)"
        )
    label_width = num_classes if cfg.glem.label_input else 0
    name, memory_remedy = f"model.type {cfg.model.type}", stage_remedy(cfg, "GNN")
    with random_state_kept(hardware), naming_out_of_memory(f"trying {name} on {NODES} nodes", memory_remedy):
        with as_config_error(f"{name} cannot be built", "expected settings that it takes", named=ValueError):
            network = build_gnn(cfg, width if sees_hops(cfg) else width + label_width, num_classes)
        if cfg.glem.label_input and getattr(network, "label_hops", 1) == 0:
            raise ConfigError(f"glem.label_input is True, but {name} takes no labels; set it to False")
        if smallest_batch < 2 and any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()
        ):
            size = "lm.batch_size / lm.grad_accumulation" if joint else "gnn.batch_size"
            raise ConfigError(
                f"{size} leaves a training batch of one node, and batch norm (gnn.norm {cfg.gnn.norm}) in {name} needs "
                f"at least two; raise {size}, label more nodes, or set gnn.norm to layer or none"
            )
        if not joint:
            optimizer = f"optim.optimizer {cfg.optim.optimizer} with optim.scheduler {cfg.optim.scheduler}"
            with as_config_error(f"{optimizer} cannot be made for {name}", "expected others, or other settings"):
                gnn_optimizer(cfg)(network.parameters())
        with as_config_error(
            f"{name} cannot be the GNN of train.mode {mode}",
            f"expected a network that takes a batch with x (n, {width}) and edge_index, and gives logits "
            f"(n, {num_classes}) and labels",
        ):
            _try_step(cfg, network, (width, label_width, num_classes), hardware)


def _try_step(cfg: CfgNode, network: nn.Module, widths: tuple[int, int, int], hardware: Hardware) -> None:
    """Run a forward and backward pass, then a prediction, on `NODES` nodes.

    ``widths``: columns of the node features, of the labels in the input (0 without labels), and of the logits.
    """
    (width, label_width, num_classes), device = widths, hardware.device
    ring = torch.stack([torch.arange(NODES), torch.arange(NODES).roll(1)])
    adjacency = Adjacency.from_edge_index(torch.cat([ring, ring.flip(0)], dim=1), NODES).to(device)

    def output() -> Any:
        """The network's output for new features; with hop features, also for label hops (or None)."""
        if sees_hops(cfg):
            hops = torch.rand(cfg.gnn.hops + 1, NODES, width).to(device, hardware.dtype)
            return network(hops, torch.rand(1, NODES, label_width).to(device, hardware.dtype) if label_width else None)
        return network(torch.rand(NODES, width + label_width).to(device, hardware.dtype), adjacency)

    network.to(device).train()
    with hardware.autocast():
        logits = output()
    if not isinstance(logits, Tensor) or logits.shape != (NODES, num_classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"of {NODES} nodes it gives {found}, expected ({NODES}, {num_classes})")
    F.cross_entropy(logits.float(), torch.zeros(NODES, dtype=torch.long, device=device)).backward()
    network.eval()
    with torch.inference_mode(), hardware.autocast():
        output()
