"""Refuses runs that would exceed memory, before the first stage, with the figures and settings that fit."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from yacs.config import CfgNode

from glem_graphgym import memory
from glem_graphgym.build.footprint import STEP, hop_step_bytes, neighbourhood_bytes, whole_graph_bytes
from glem_graphgym.build.gnn import has_layers, sees_hops
from glem_graphgym.build.language_model import gnn_hardware, hardware_for
from glem_graphgym.build.sizes import (
    asked_bytes,
    budget_bytes,
    can_predict_layerwise,
    feature_width,
    generous_bytes,
    hop_step_generous_bytes,
    is_joint,
    machine_share,
    smoothing_bytes,
)
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.em.pseudo_labels import num_confident, num_drawn
from glem_graphgym.out_of_core.hop_storage import check_batch, hops_in_memory
from glem_graphgym.out_of_core.propagation import plan_columns

HOP_NETWORKS = "model.type glem_gamlp, glem_sagn or glem_sign"


class Limit(NamedTuple):
    """Available bytes, and what limits them, in words."""

    bytes: int
    reason: str


def check_memory(cfg: CfgNode, graph: TextGraph, candidates: int | None = None) -> bool:
    """Check that the GNN's training and prediction fit into memory; no other place checks this.

    Args:
        candidates: number of nodes that may get pseudo-labels; None = all nodes without a gold label.

    Returns:
        Whether a GNN on sampled neighbourhoods must read graph and features from disk and predict layer by layer over
        blocks of nodes, because the whole graph exceeds ``glem.memory_budget_gb``.

    Raises:
        ValueError: training or prediction exceeds ``glem.memory_budget_gb``, the machine or (networks that see the
            whole graph) the accelerator; names the bytes of each part, and settings that fit.
    """
    width, limit, budget = feature_width(cfg, graph), _limit(cfg), _budget(cfg)
    if sees_hops(cfg):
        _check_hops(cfg, graph, width, candidates)
        return False
    by_blocks = bool(cfg.gnn.fan_out and budget.bytes and can_predict_layerwise(cfg))
    available = min(limit.bytes, budget.bytes) if by_blocks else limit.bytes
    smoothing = {"Correct & Smooth": smoothing_bytes(graph)} if cfg.glem.correct_and_smooth else {}
    if generous_bytes(cfg, graph, width) + sum(smoothing.values()) < available:
        return False
    if not cfg.gnn.fan_out:
        remedy = f"{HOP_NETWORKS}, with glem.memory_budget_gb for what exceeds memory, or neighbours that are sampled"
        behaviour, needs = "trains on the whole graph at a time", whole_graph_bytes(cfg, graph, width)
        _refuse_whole_graph(cfg, limit, needs | smoothing, behaviour, f"{remedy}, gnn.fan_out")
        return False
    sampled, needs = neighbourhood_bytes(cfg, graph, width), whole_graph_bytes(cfg, graph, width, trains=False)
    largest = max(sampled, key=sampled.__getitem__)
    if sampled[largest] > list(needs.values())[-1]:  # sampled steps and predictions alternate: the larger one counts
        needs = {**dict(list(needs.items())[:-1]), largest: sampled[largest]}
    layerwise = by_blocks and sum(needs.values()) > budget.bytes
    for name, needed in sampled.items():
        size = "lm.batch_size / lm.grad_accumulation" if is_joint(cfg) else "gnn.batch_size"
        remedy = f"set {f'{size} or ' if name == STEP else ''}gnn.fan_out lower"
        _refuse_beyond(min(limit, budget) if layerwise else limit, needed, name, " beside the graph", remedy)
    if not layerwise:
        behaviour = "samples neighbours in training, but predicts on the whole graph at a time"
        _refuse_whole_graph(cfg, limit, needs | smoothing, behaviour, _alternatives_to_sampling(cfg))
    elif smoothing:
        _check_smoothing(cfg, graph)
    return layerwise


def hop_bytes(cfg: CfgNode, graph: TextGraph, width: int) -> int:
    """Approximate bytes of hop features, and of making them, in memory."""
    item_bytes = gnn_hardware(cfg).dtype.itemsize
    classes = graph.num_classes if cfg.glem.label_input else 0
    return hops_in_memory(graph.num_nodes, len(graph.col), width, cfg.gnn.hops, item_bytes, classes)


def _alternatives_to_sampling(cfg: CfgNode) -> str:
    """Advice for a sampled network whose prediction needs the whole graph: settings that need less memory."""
    if not cfg.glem.memory_budget_gb and can_predict_layerwise(cfg):
        return "glem.memory_budget_gb below that, and it predicts by blocks of nodes"
    if cfg.glem.setting != "transductive" and has_layers(cfg):
        return "glem.setting transductive, with which it predicts by blocks of nodes"
    layered = "glem_sage, glem_gcn or glem_gat, which predict by blocks of nodes within glem.memory_budget_gb"
    return f"model.type {layered}" if is_joint(cfg) else f"{HOP_NETWORKS}, or {layered}"


def _check_hops(cfg: CfgNode, graph: TextGraph, width: int, candidates: int | None) -> None:
    n, hops, budget = graph.num_nodes, cfg.gnn.hops, budget_bytes(cfg)
    needed = hop_bytes(cfg, graph, width)
    num_trained = _most_trained_nodes(cfg, graph, candidates)
    step = _check_hop_step(cfg, graph, width, num_trained)
    share = machine_share(cfg)
    if needed + step > share and not (budget and needed > budget):
        num_processes = memory.machine_bytes() // share
        per_process = f" for each of {num_processes} processes" if num_processes > 1 else ""
        step_text = f" and {_gb(step)} for a training step" if step else ""
        raise ValueError(
            f"model.type {cfg.model.type} on {n:,} nodes with {width} features takes about {_gb(needed)} for "
            f"{hops} hops{step_text}, and this machine has {_gb(share)}{per_process}; set glem.memory_budget_gb below "
            "that, and hops are propagated on disk"
        )
    if not budget or needed <= budget:
        return
    if budget + step > share:
        raise ValueError(
            f"a training step of model.type {cfg.model.type} takes about {_gb(step)} beside the {_gb(budget)} of "
            f"glem.memory_budget_gb, but this machine has {_gb(share)}; set gnn.batch_size, now {cfg.gnn.batch_size}, "
            "or glem.memory_budget_gb lower"
        )
    if budget < asked_bytes(cfg):
        logging.warning(
            f"glem.memory_budget_gb is {cfg.glem.memory_budget_gb:g}, but this machine has "
            f"{_gb(memory.machine_bytes())}: hop features, which would take {_gb(needed)}, are propagated on disk "
            f"within {_gb(budget)} of memory"
        )
    plan_columns(n, max(width, graph.num_classes if cfg.glem.label_input else 0), budget)
    item_bytes = gnn_hardware(cfg).dtype.itemsize
    check_batch(
        budget, num_trained, cfg.gnn.batch_size, hops, width, item_bytes, with_unlabelled=cfg.gnn.scr_weight > 0
    )
    if cfg.glem.correct_and_smooth:
        _check_smoothing(cfg, graph)


def _most_trained_nodes(cfg: CfgNode, graph: TextGraph, candidates: int | None) -> int:
    """Largest number of nodes that an epoch of an M-step trains on."""
    gold = num_trained = len(graph.split["train"])
    if cfg.train.mode == "glem":
        confident = num_confident(graph.num_nodes - gold if candidates is None else candidates, cfg.glem.confidence)
        num_trained += num_drawn(confident, cfg.glem.gnn_pseudo_ratio, gold)
    if cfg.gnn.rlu_rounds > 1:  # a later round may be confident of all candidates
        num_trained = max(num_trained, gold + (graph.num_nodes if candidates is None else candidates))
    return num_trained


def _check_hop_step(cfg: CfgNode, graph: TextGraph, width: int, num_trained: int) -> int:
    """Bytes of a training step in the machine's memory, beside hop features; 0 if negligible or on an accelerator.

    Raises:
        ValueError: a step alone exceeds the machine's or the accelerator's memory.
    """
    limit = _hardware_limit(cfg)
    nodes = min(num_trained, cfg.gnn.batch_size or num_trained) * (2 if cfg.gnn.scr_weight > 0 else 1)
    nodes = -(-nodes // (memory.machine_bytes() // machine_share(cfg)))
    if hop_step_generous_bytes(cfg, width, nodes) < limit.bytes:
        return 0
    step = hop_step_bytes(cfg, graph.num_classes, width, nodes)
    subject = f"a training step of model.type {cfg.model.type} on {nodes:,} nodes"
    _refuse_beyond(limit, step, subject, "", f"set gnn.batch_size, now {cfg.gnn.batch_size}, or gnn.dim_inner lower")
    return step if gnn_hardware(cfg).accelerator == "cpu" else 0


def _check_smoothing(cfg: CfgNode, graph: TextGraph) -> None:
    detail = f" on {graph.num_nodes:,} nodes"
    _refuse_beyond(_budget(cfg), smoothing_bytes(graph), "glem.correct_and_smooth", detail, "set it to False")


def _refuse_beyond(limit: Limit, needed: int, subject: str, detail: str, remedy: str) -> None:
    """Raise ValueError if ``needed`` bytes exceed ``limit``; ``detail`` follows them in the message."""
    if needed > limit.bytes:
        raise ValueError(f"{subject} takes about {_gb(needed)}{detail}, but {limit.reason}; {remedy}")


def _refuse_whole_graph(cfg: CfgNode, limit: Limit, needs: dict[str, int], behaviour: str, remedy: str) -> None:
    """Raise ValueError if the sum of ``needs``, name -> bytes at the same time, exceeds ``limit``."""
    parts = f" ({', '.join(f'{name} {_gb(size)}' for name, size in needs.items())})"
    subject = f"model.type {cfg.model.type} {behaviour} and"
    _refuse_beyond(limit, sum(needs.values()), subject, parts, f"expected {remedy}")


def _budget(cfg: CfgNode) -> Limit:
    """The limit for work that keeps the rest on disk."""
    budget = budget_bytes(cfg)
    return Limit(budget, f"the budget is {_gb(budget)} (glem.memory_budget_gb, as far as this machine has it)")


def _limit(cfg: CfgNode) -> Limit:
    """The limit for work that keeps everything in memory, the machine's or the accelerator's."""
    limits = [_hardware_limit(cfg)]
    if cfg.glem.memory_budget_gb:
        limits.append(Limit(asked_bytes(cfg), f"glem.memory_budget_gb is {cfg.glem.memory_budget_gb:g}"))
    return min(limits)


def _hardware_limit(cfg: CfgNode) -> Limit:
    if hardware_for(cfg, "32").accelerator == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        return Limit(total, f"the accelerator has {_gb(total)}")
    return Limit(memory.machine_bytes(), f"this machine has {_gb(memory.machine_bytes())}")


def _gb(size: int) -> str:
    return f"{size / memory.GB:.3g} GB"


# ---- remedies -----------------------------------------------------------------------------------------------------


def stage_remedy(cfg: CfgNode, model: str) -> str:
    """Advice to save memory in a stage of ``model`` (see `em.journal.StageKey`): keys and values to set."""
    if model == "none":
        return "set glem.correct_and_smooth and glem.ensemble to False"
    if model.startswith("LM"):
        return lm_remedy(cfg)
    return joint_remedy(cfg) if is_joint(cfg) else gnn_remedy(cfg)


def lm_remedy(cfg: CfgNode) -> str:
    lm = cfg.lm
    remedies = _smaller_parts(cfg, min(lm.batch_size, cfg.e_step.batch_size or lm.batch_size))
    if lm.lora_rank and lm.base_precision == "32":
        remedies.append("lm.base_precision bf16")
    return f"set {', '.join([*remedies, f'lm.max_length below {lm.max_length}'])}, or take a smaller lm.model"


def joint_remedy(cfg: CfgNode) -> str:
    remedies = [*_smaller_parts(cfg, cfg.lm.batch_size), f"gnn.fan_out to less than {cfg.gnn.fan_out}"]
    return f"set {', '.join(remedies)}, or take train.mode glem"


def _smaller_parts(cfg: CfgNode, batch_size: int) -> list[str]:
    """Settings that are left to keep less of a batch in memory at a time."""
    remedies, more = [], 2 * cfg.lm.grad_accumulation
    if more <= batch_size:
        remedies.append(f"lm.grad_accumulation {more} or more")
    if not cfg.lm.gradient_checkpointing:
        remedies.append("lm.gradient_checkpointing True")
    return remedies


def gnn_remedy(cfg: CfgNode) -> str:
    remedies = [f"set gnn.dim_inner below {cfg.gnn.dim_inner}"]
    if sees_hops(cfg):
        remedies.append(f"gnn.hops below {cfg.gnn.hops}")
        if not cfg.glem.memory_budget_gb:
            remedies.append("glem.memory_budget_gb to what hop features may take of memory")
    else:
        if not cfg.gnn.fan_out:
            remedies.append("gnn.fan_out to sample neighbours")
        remedies.append("take a model.type on hop features, such as glem_gamlp, with glem.memory_budget_gb")
    return ", or ".join(remedies)
