"""What a run needs of memory, estimated before its first stage: what cannot run is refused with the figures."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch_geometric.graphgym.register import network_dict
from yacs.config import CfgNode

from glem_graphgym import processes
from glem_graphgym.data.reach import nodes_within
from glem_graphgym.data.sampling import NeighbourSampler
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.em.hop_storage import check_batch, hops_in_memory
from glem_graphgym.em.joint_step import VALIDATED_AT_ONCE
from glem_graphgym.em.m_step import prediction_folds
from glem_graphgym.em.pseudo_labels import num_confident, num_drawn
from glem_graphgym.memory import machine_bytes
from glem_graphgym.models.out_of_core import plan_columns
from glem_graphgym.models.text_encoder import model_source
from glem_graphgym.registered.config import feature_kinds
from glem_graphgym.registered.language_model import hardware_for
from glem_graphgym.registered.networks import GraphNetwork, has_layers, sees_hops
from glem_graphgym.registered.run_folder import trained_mode

GB = 1e9
HOP_NETWORKS = "model.type glem_gamlp, glem_sagn or glem_sign"
STEP = "a step's neighbourhood"
BLOCK_BYTES = 32  # of a sampled neighbourhood, for each node and edge
BUDGET_SHARE = 0.8  # of the machine's memory, at most: programs, networks and texts need some of it too


def budget_bytes(cfg: CfgNode) -> int:
    """What a process may take for hop features: ``glem.memory_budget_gb`` in bytes, as far as this machine has it.

    A budget above `BUDGET_SHARE` of the machine's memory counts as that: what exceeds it goes to disk instead of
    having the run killed. 0 = none.
    """
    return min(_asked_bytes(cfg), round(BUDGET_SHARE * _machine_share(cfg)))


def _asked_bytes(cfg: CfgNode) -> int:
    return round(cfg.glem.memory_budget_gb * GB)


def processes_here(cfg: CfgNode) -> int:
    """How many processes do the run on this machine."""
    return processes.place().local_size if processes.have_joined() else cfg.devices or 1


def _machine_share(cfg: CfgNode) -> int:
    """Bytes of this machine for each process that holds hop features: all do, but with consistency the first alone."""
    return machine_bytes() // (1 if cfg.gnn.consistency > 0 else processes_here(cfg))


def feature_width(cfg: CfgNode, graph: TextGraph) -> int:
    """D, the width of the GNN's node features; the language model's own width is read from its configuration."""
    width = 0
    for kind in feature_kinds(cfg.glem.node_features):
        if kind == "raw":
            width += 0 if graph.features is None else graph.features.shape[1]
        elif kind == "file":
            width += _columns(Path(cfg.glem.feature_file))
        elif kind == "text" and cfg.lm.shrink_dim:
            width += cfg.lm.shrink_dim
        else:
            width += _hidden_size(cfg.lm.model)
    return width


def _columns(file: Path) -> int:
    """Of the matrix in a file, without reading it."""
    try:
        if file.suffix == ".npy":
            return int(np.load(file, mmap_mode="r").shape[1])
        return int(torch.load(file, map_location="cpu", weights_only=True, mmap=True).shape[1])
    except Exception:  # whatever is wrong with it, reading it will say it better
        return 0


def _hidden_size(model: str) -> int:
    from transformers import AutoConfig

    try:
        return int(AutoConfig.from_pretrained(model_source(model)).hidden_size)
    except Exception:  # whatever is wrong with it, loading the model will say it better
        return 0


def check_memory(cfg: CfgNode, graph: TextGraph, candidates: int | None = None) -> None:
    """
    Args:
        candidates: how many nodes may get pseudo-labels; None = all without a gold label.

    Raises:
        ValueError: the GNN's training or prediction does not fit into ``glem.memory_budget_gb`` or into the machine
            (the accelerator for networks that see the whole graph); says what takes how much, and what does fit.
    """
    width = feature_width(cfg, graph)
    if sees_hops():
        _check_hops(cfg, graph, width, candidates)
    elif cfg.gnn.fan_out:
        neighbourhoods = neighbourhood_bytes(cfg, graph, width)
        if cfg.train.mode != "glem_predict":  # which trains nothing
            _check_neighbourhoods(cfg, neighbourhoods)
        parts = sampled_bytes(cfg, graph, width, neighbourhoods)
        if not _need_layerwise(cfg, parts):
            how = "samples neighbours in training, but predicts on the whole graph at a time"
            _check_whole_graph(cfg, graph, parts, how, _instead_of_sampling(cfg))
        elif cfg.glem.correct_and_smooth:
            _check_smoothing(cfg, graph)
    else:
        instead = f"{HOP_NETWORKS}, with glem.memory_budget_gb for what exceeds memory, or neighbours that are sampled"
        how = "trains on the whole graph at a time"
        _check_whole_graph(cfg, graph, full_batch_bytes(cfg, graph, width), how, f"{instead}, gnn.fan_out")


def predicts_layerwise(cfg: CfgNode, graph: TextGraph) -> bool:
    """Whether a GNN on sampled neighbourhoods reads graph and features from disk, and predicts layer after layer over
    blocks of nodes: where all at a time exceeds ``glem.memory_budget_gb``."""
    if not cfg.gnn.fan_out or not budget_bytes(cfg):
        return False
    width = feature_width(cfg, graph)
    return _need_layerwise(cfg, sampled_bytes(cfg, graph, width, neighbourhood_bytes(cfg, graph, width)))


def _need_layerwise(cfg: CfgNode, parts: dict[str, int]) -> bool:
    """Whether `sampled_bytes` exceed the budget of a network that then predicts layer after layer."""
    budget = budget_bytes(cfg)
    return bool(budget) and _can_predict_layerwise(cfg) and sum(parts.values()) > budget


def _can_predict_layerwise(cfg: CfgNode) -> bool:
    return has_layers() and cfg.glem.setting == "transductive"


def _instead_of_sampling(cfg: CfgNode) -> str:
    """What a network whose prediction needs the whole graph could do with less memory."""
    if not cfg.glem.memory_budget_gb and _can_predict_layerwise(cfg):
        return "glem.memory_budget_gb below that, and it predicts by blocks of nodes"
    if cfg.glem.setting != "transductive" and has_layers():
        return "glem.setting transductive, with which it predicts by blocks of nodes"
    layered = "glem_sage, glem_gcn or glem_gat, which predict by blocks of nodes within glem.memory_budget_gb"
    return f"model.type {layered}" if _is_joint(cfg) else f"{HOP_NETWORKS}, or {layered}"


def _check_neighbourhoods(cfg: CfgNode, parts: dict[str, int]) -> None:
    limit, whose = _limit(cfg)
    for name, needed in parts.items():
        if needed > limit:
            size = "lm.batch_size / lm.accumulate" if _is_joint(cfg) else "gnn.batch_size"
            lower = f"{size} or gnn.fan_out" if name == STEP else "gnn.fan_out"
            raise ValueError(f"{name} takes about {_gb(needed)} beside the graph, but {whose}; set {lower} lower")


def _check_hops(cfg: CfgNode, graph: TextGraph, width: int, candidates: int | None) -> None:
    n, hops, budget = graph.num_nodes, cfg.gnn.hops, budget_bytes(cfg)
    classes = graph.num_classes if cfg.glem.label_input else 0
    item_bytes = hardware_for(cfg, cfg.gnn.precision).dtype.itemsize
    needed = hops_in_memory(n, len(graph.col), width, hops, item_bytes, classes)
    if not budget:
        if needed > _machine_share(cfg):
            count = machine_bytes() // _machine_share(cfg)
            each = f" for each of {count} processes" if count > 1 else ""
            raise ValueError(
                f"model.type {cfg.model.type} on {n:,} nodes with {width} features takes about {_gb(needed)} for "
                f"{hops} hops, and this machine has {_gb(_machine_share(cfg))}{each}; set glem.memory_budget_gb below "
                "that, and hops are propagated on disk"
            )
        return
    if needed <= budget:
        return
    if budget < _asked_bytes(cfg):
        logging.warning(
            f"glem.memory_budget_gb is {cfg.glem.memory_budget_gb:g}, but this machine has {_gb(machine_bytes())}: hop "
            f"features, which would take {_gb(needed)}, are propagated on disk within {_gb(budget)} of memory"
        )
    plan_columns(n, max(width, classes), budget)
    trained = len(graph.split["train"])
    if cfg.train.mode == "glem":
        kept = num_confident(n - trained if candidates is None else candidates, cfg.glem.confidence)
        trained += num_drawn(kept, cfg.glem.gnn_pseudo_ratio, trained)
    if cfg.gnn.stages > 1:  # a later stage may be sure of all of them
        trained = max(trained, len(graph.split["train"]) + (n if candidates is None else candidates))
    check_batch(budget, trained, cfg.gnn.batch_size, hops, width, item_bytes, beside=cfg.gnn.consistency > 0)
    if cfg.glem.correct_and_smooth:
        _check_smoothing(cfg, graph)


def _check_smoothing(cfg: CfgNode, graph: TextGraph) -> None:
    needed, budget = _smoothing_bytes(graph), budget_bytes(cfg)
    if needed > budget:
        raise ValueError(
            f"glem.correct_and_smooth takes about {_gb(needed)} on {graph.num_nodes:,} nodes, but the budget is "
            f"{_gb(budget)} (glem.memory_budget_gb, as far as this machine has it); set it to False"
        )


def _check_whole_graph(cfg: CfgNode, graph: TextGraph, parts: dict[str, int], how: str, instead: str) -> None:
    """
    Args:
        parts: bytes of what is needed at a time, by its name; how: why so much is needed; instead: what needs less.
    """
    if cfg.glem.correct_and_smooth:
        parts = {**parts, "Correct & Smooth": _smoothing_bytes(graph)}
    needed, (limit, whose) = sum(parts.values()), _limit(cfg)
    if needed > limit:
        raise ValueError(
            f"model.type {cfg.model.type} {how} and takes about {_gb(needed)} "
            f"({', '.join(f'{name} {_gb(size)}' for name, size in parts.items())}), but {whose}; expected {instead}"
        )


def _limit(cfg: CfgNode) -> tuple[int, str]:
    """Bytes for a network that sees the whole graph, and what sets this limit."""
    limits = [(machine_bytes(), f"this machine has {_gb(machine_bytes())}")]
    if hardware_for(cfg, "32").accelerator == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        limits = [(total, f"the accelerator has {_gb(total)}")]
    if cfg.glem.memory_budget_gb:
        limits.append((_asked_bytes(cfg), f"glem.memory_budget_gb is {cfg.glem.memory_budget_gb:g}"))
    return min(limits)


def full_batch_bytes(cfg: CfgNode, graph: TextGraph, width: int) -> dict[str, int]:
    """Bytes that a full-batch training step takes at least, part by part: a lower bound, so that nothing is refused
    that could run.

    Features are there once, and once more as the first layer's input; a layer keeps two arrays of its width for the
    backward pass, which has two of the widest layer on its way. Ours hold 24 bytes an edge; networks that pass
    messages along edges keep each layer's, a number an edge and channel.
    """
    return _bytes_of_step(cfg, graph.num_nodes, len(graph.col), width, graph.num_classes)


def _bytes_of_step(cfg: CfgNode, n: int, entries: int, width: int, classes: int) -> dict[str, int]:
    """`full_batch_bytes` of any graph: its nodes, edges and classes."""
    g, item = cfg.gnn, _item_bytes(cfg)
    heads, channels = _heads(cfg), cfg.gnn.dim_inner * _heads(cfg)
    layers = 1 if cfg.model.type == "glem_revgat" else max(1, g.layers_mp)  # whose blocks are computed anew
    labels = classes if cfg.glem.label_input else 0
    parts = {
        "features": n * (4 * width + item * (width + labels)),
        f"activations of {g.layers_mp} layers": 2 * layers * n * channels * item,
        "edges": 24 * entries,
        "gradients": n * (2 * channels * item + 2 * 4 * classes),
    }
    if cfg.model.type in ("glem_gat", "glem_revgat"):
        parts["attention"] = 3 * 4 * layers * entries * heads
    network = network_dict.get(cfg.model.type)
    if not (isinstance(network, type) and issubclass(network, GraphNetwork)):
        parts["messages"] = item * max(1, g.layers_mp) * entries * g.dim_inner
    return parts


def _heads(cfg: CfgNode) -> int:
    return cfg.gnn.att_heads if cfg.model.type in ("glem_gat", "glem_revgat") else 1


def sampled_bytes(cfg: CfgNode, graph: TextGraph, width: int, neighbourhoods: dict[str, int]) -> dict[str, int]:
    """Bytes that training on sampled neighbourhoods and predicting all nodes take at least, part by part: a lower
    bound, so that nothing is refused that could run. Of joint training the GNN's part, without that of texts.

    Graph and features are there all the time; beside them a neighbourhood or, in a prediction, which keeps nothing for
    a backward pass, a layer's outputs of all nodes.

    Args:
        neighbourhoods: as of `neighbourhood_bytes`.
    """
    n, g = graph.num_nodes, cfg.gnn
    item, labels = _item_bytes(cfg), graph.num_classes if cfg.glem.label_input else 0
    channels = g.dim_inner * _heads(cfg) if g.layers_mp > 1 else graph.num_classes
    prediction = item * n * (channels + (width + labels if labels else 0))
    return {
        "features": n * (item * width + 4 * labels),
        "edges": 24 * len(graph.col),
        **dict([max({**neighbourhoods, "a prediction of all nodes": prediction}.items(), key=lambda part: part[1])]),
    }


def neighbourhood_bytes(cfg: CfgNode, graph: TextGraph, width: int) -> dict[str, int]:
    """Of these what sampled neighbourhoods take: a training step's, and a validation's where that samples too."""
    train, valid = graph.split["train"], graph.split["valid"]
    if not _is_joint(cfg):
        return {STEP: _block_bytes(cfg, graph, width, train[: cfg.gnn.batch_size or None])}
    return {
        STEP: _block_bytes(cfg, graph, width, train[: cfg.lm.batch_size // cfg.lm.accumulate]),
        "a validation's neighbourhood": _block_bytes(cfg, graph, width, valid[:VALIDATED_AT_ONCE], training=False),
    }


def _block_bytes(cfg: CfgNode, graph: TextGraph, width: int, seeds: np.ndarray, training: bool = True) -> int:
    """Of the neighbourhood of ``seeds``, one being drawn: with what a training step keeps, or a prediction makes.

    To a network that is no stack of layers it is a graph. A layer of a stack sums over neighbours, or transforms all
    nodes where it attends to them, and has an output, for its targets alone. Training keeps these of all layers, and
    the outputs once more, normalised. In the backward pass three arrays of the largest output are on their way, or the
    gradients of an output and of what was attended to.
    """
    ends, edges = _drawn(cfg, graph, seeds)
    if not has_layers():
        return sum(_bytes_of_step(cfg, ends[-1], edges, width, graph.num_classes).values())
    item, heads, network = _item_bytes(cfg), _heads(cfg), cfg.model.type
    attends, sums = network == "glem_gat", network != "glem_mlp"
    joint = _is_joint(cfg)  # whose input is float32, and gets a gradient
    dim_in = width + (graph.num_classes if cfg.glem.label_input else 0)
    dims = [dim_in, *[cfg.gnn.dim_inner * heads] * (len(ends) - 2), graph.num_classes * heads]
    inner, outputs = [], []
    for (before, after), (nodes, targets) in zip(pairwise(dims), pairwise(reversed(ends)), strict=True):
        inner.append(item * (nodes * after if attends else targets * before if sums else 0))
        outputs.append(_output_bytes(cfg) * targets * after)
    block = (4 if joint else item) * ends[-1] * dim_in + BLOCK_BYTES * (ends[-1] + edges)
    if attends:
        block += 3 * 4 * heads * edges
    if not training:
        return block + max(map(sum, zip(inner, outputs, strict=True)))
    gradients = max(of_all + output if attends else 3 * output for of_all, output in zip(inner, outputs, strict=True))
    return block + sum(inner) + 2 * sum(outputs) + gradients + (4 * ends[-1] * dim_in if joint else 0)


def _is_joint(cfg: CfgNode) -> bool:
    return trained_mode(cfg) == "glem_joint"


def _output_bytes(cfg: CfgNode) -> int:
    """Of a number that a layer gives: a layer norm gives float32 in any precision."""
    return 4 if cfg.gnn.norm == "layer" else _item_bytes(cfg)


def _item_bytes(cfg: CfgNode) -> int:
    """Of a number that the GNN computes with."""
    precision = cfg.lm.precision if _is_joint(cfg) else cfg.gnn.precision
    return hardware_for(cfg, precision).dtype.itemsize


def layer_file_bytes(cfg: CfgNode, graph: TextGraph, predicted: np.ndarray | None) -> int:
    """What `predicts_layerwise` needs of disk for the outputs of layers, of which two lie there at a time.

    Args:
        predicted: as of a `GNNLearner`.
    """
    first = cfg.gnn.layers_mp - 1  # as many hops from the predicted nodes reach those that the first layer is needed of
    groups = [predicted]
    if predicted is not None and cfg.glem.label_input:  # which are predicted one after the other
        groups = [group for group, _ in prediction_folds(graph.num_nodes, graph.split["train"], predicted)]

    def within(group: np.ndarray | None, hops: int) -> int:
        return graph.num_nodes if group is None else len(nodes_within(graph.rowptr, graph.col, group, hops))

    nodes = max(sum(within(group, hops) for hops in range(max(1, first - 1), first + 1)) for group in groups)
    return _output_bytes(cfg) * nodes * cfg.gnn.dim_inner * _heads(cfg)


def _drawn(cfg: CfgNode, graph: TextGraph, seeds: np.ndarray) -> tuple[list[int], int]:
    """How many nodes of a neighbourhood of ``seeds`` lie within 0, 1, … hops, and how many edges it has."""
    if cfg.glem.setting != "transductive":  # where training sees fewer edges: not more than is certain
        return [len(seeds)] * (len(cfg.gnn.fan_out) + 1), 0
    block = NeighbourSampler(graph.rowptr, graph.col, cfg.gnn.fan_out).sample(seeds, np.random.default_rng(0))
    return block.ends.tolist(), len(block.col)


def _smoothing_bytes(graph: TextGraph) -> int:
    """Of PyG's Correct & Smooth: edges and their weights, a message an edge and class, predictions and their copies."""
    entries = len(graph.col)
    return entries * (16 + 4 + 4 * graph.num_classes) + 5 * 4 * graph.num_nodes * graph.num_classes


def _gb(size: int) -> str:
    return f"{size / GB:.3g} GB"
