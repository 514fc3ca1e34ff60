"""What a run needs of memory and of disk for its GNN, estimated before its first stage."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from yacs.config import CfgNode

from glem_graphgym import memory, processes
from glem_graphgym.build.gnn import NETWORKS, has_layers
from glem_graphgym.build.language_model import hardware_for
from glem_graphgym.config import feature_kinds
from glem_graphgym.data.reach import nodes_within
from glem_graphgym.data.sampling import NeighbourSampler
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.em.inputs import prediction_folds
from glem_graphgym.em.joint_step import VALIDATED_AT_ONCE
from glem_graphgym.models.pooling import readout_of, width_after
from glem_graphgym.models.pretrained import load_config

GB = 1e9
STEP = "a step's neighbourhood"
BLOCK_BYTES = 32  # of a sampled neighbourhood, for each node and edge
BUDGET_SHARE = 0.8  # of the machine's memory, at most: programs, networks and texts need some of it too


def budget_bytes(cfg: CfgNode) -> int:
    """What a process may take for hop features: ``glem.memory_budget_gb`` in bytes, as far as this machine has it.

    A budget above `BUDGET_SHARE` of the machine's memory counts as that: what exceeds it goes to disk instead of
    having the run killed. 0 = none.
    """
    return min(asked_bytes(cfg), round(BUDGET_SHARE * machine_share(cfg)))


def asked_bytes(cfg: CfgNode) -> int:
    return round(cfg.glem.memory_budget_gb * GB)


def processes_here(cfg: CfgNode) -> int:
    """How many processes do the run on this machine."""
    return processes.place().local_size if processes.have_joined() else cfg.devices or 1


def machine_share(cfg: CfgNode) -> int:
    """Bytes of this machine for each process that holds hop features: all do, but with consistency the first alone."""
    return memory.machine_bytes() // (1 if cfg.gnn.scr_weight > 0 else processes_here(cfg))


def feature_width(cfg: CfgNode, graph: TextGraph) -> int:
    """D, the width of the GNN's node features."""
    return sum(feature_widths(cfg, graph).values())


def feature_widths(cfg: CfgNode, graph: TextGraph) -> dict[str, int]:
    """Kind of node features -> its columns; the language model's own width is read from its configuration."""
    widths = {}
    for kind in feature_kinds(cfg.glem.node_features):
        if kind == "raw":
            widths[kind] = 0 if graph.features is None else graph.features.shape[1]
        elif kind == "file":
            widths[kind] = _columns(Path(cfg.glem.feature_file))
        elif kind == "text" and cfg.lm.shrink_dim:
            widths[kind] = cfg.lm.shrink_dim
        else:
            widths[kind] = _embedding_width(cfg)
    return widths


def _columns(file: Path) -> int:
    """Of the matrix in a file, without reading it."""
    try:
        if file.suffix == ".npy":
            return int(np.load(file, mmap_mode="r").shape[1])
        return int(torch.load(file, map_location="cpu", weights_only=True, mmap=True).shape[1])
    except Exception:  # whatever is wrong with it, reading it will say it better
        return 0


def _embedding_width(cfg: CfgNode) -> int:
    try:
        dense = readout_of(cfg.lm.model, cfg.lm.pooling).dense
        return width_after(dense, int(load_config(cfg.lm.model).hidden_size))
    except Exception:  # whatever is wrong with it, loading the model will say it better
        return 0


def predicts_layerwise(cfg: CfgNode, graph: TextGraph) -> bool:
    """Whether a GNN on sampled neighbourhoods reads graph and features from disk, and predicts layer after layer over
    blocks of nodes: where all at a time exceeds ``glem.memory_budget_gb``."""
    if not cfg.gnn.fan_out or not budget_bytes(cfg):
        return False
    width = feature_width(cfg, graph)
    return need_layerwise(cfg, sampled_bytes(cfg, graph, width, neighbourhood_bytes(cfg, graph, width)))


def need_layerwise(cfg: CfgNode, parts: dict[str, int]) -> bool:
    """Whether `sampled_bytes` exceed the budget of a network that then predicts layer after layer."""
    budget = budget_bytes(cfg)
    return bool(budget) and can_predict_layerwise(cfg) and sum(parts.values()) > budget


def can_predict_layerwise(cfg: CfgNode) -> bool:
    return has_layers(cfg) and cfg.glem.setting == "transductive"


def full_batch_bytes(cfg: CfgNode, graph: TextGraph, width: int) -> dict[str, int]:
    """Bytes that a full-batch training step takes at least, part by part: a lower bound, so that nothing is refused
    that could run.

    Features are there once, and once more as the first layer's input; a layer keeps two arrays of its width for the
    backward pass, which has two of the widest layer on its way. Ours hold 24 bytes an edge; networks that pass
    messages along edges keep each layer's, a number an edge and channel.
    """
    return _full_batch_parts(cfg, graph.num_nodes, len(graph.col), width, graph.num_classes)


def _full_batch_parts(cfg: CfgNode, n: int, entries: int, width: int, classes: int) -> dict[str, int]:
    """`full_batch_bytes` of any graph: its nodes, edges and classes."""
    g, item, channels = cfg.gnn, _item_bytes(cfg), _channels(cfg)
    layers = 1 if cfg.model.type == "glem_revgat" else max(1, g.layers_mp)  # whose blocks are computed anew
    labels = classes if cfg.glem.label_input else 0
    parts = {
        "features": n * (4 * width + item * (width + labels)),
        f"activations of {g.layers_mp} layers": 2 * layers * n * channels * item,
        "edges": 24 * entries,
        "gradients": n * (2 * channels * item + 2 * 4 * classes),
    }
    if cfg.model.type in ("glem_gat", "glem_revgat"):
        parts["attention"] = 3 * 4 * layers * entries * _heads(cfg)
    if cfg.model.type not in NETWORKS:
        parts["messages"] = item * max(1, g.layers_mp) * entries * g.dim_inner
    return parts


def _channels(cfg: CfgNode) -> int:
    """Width of a hidden layer."""
    return cfg.gnn.dim_inner * _heads(cfg)


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
    channels = _channels(cfg) if g.layers_mp > 1 else graph.num_classes
    prediction = item * n * (channels + (width + labels if labels else 0))
    in_turn = {**neighbourhoods, "a prediction of all nodes": prediction}
    largest = max(in_turn, key=in_turn.__getitem__)
    features, edges = n * (item * width + 4 * labels), 24 * len(graph.col)
    return {"features": features, "edges": edges, largest: in_turn[largest]}


def neighbourhood_bytes(cfg: CfgNode, graph: TextGraph, width: int) -> dict[str, int]:
    """Of these what sampled neighbourhoods take: a training step's, and a validation's where that samples too."""
    train, valid = graph.split["train"], graph.split["valid"]
    if not is_joint(cfg):
        return {STEP: _step_bytes(cfg, graph, width, train[: cfg.gnn.batch_size or None])}
    return {
        STEP: _step_bytes(cfg, graph, width, train[: cfg.lm.batch_size // cfg.lm.grad_accumulation]),
        "a validation's neighbourhood": _validation_bytes(cfg, graph, width, valid[:VALIDATED_AT_ONCE]),
    }


def _step_bytes(cfg: CfgNode, graph: TextGraph, width: int, seeds: np.ndarray) -> int:
    """Of a training step on the neighbourhood of ``seeds``, one being drawn.

    To a network that is no stack of layers it is a graph. A stack keeps what its layers compute, and their outputs once
    more, normalised. In the backward pass three arrays of the largest output are on their way, or the gradients of an
    output and of what was attended to.
    """
    ends, edges = _drawn(cfg, graph, seeds)
    if not has_layers(cfg):
        return sum(_full_batch_parts(cfg, ends[-1], edges, width, graph.num_classes).values())
    layers, attends = _layer_bytes(cfg, graph, width, ends), cfg.model.type == "glem_gat"
    kept = sum(inner + 2 * output for inner, output in layers)
    gradients = max(inner + output if attends else 3 * output for inner, output in layers)
    of_input = _input_bytes(cfg, graph, width, ends[-1]) if is_joint(cfg) else 0
    return _given_bytes(cfg, graph, width, ends[-1], edges) + kept + gradients + of_input


def _validation_bytes(cfg: CfgNode, graph: TextGraph, width: int, seeds: np.ndarray) -> int:
    """Of predicting ``seeds`` from a neighbourhood, one being drawn: nothing is kept but a layer's input."""
    ends, edges = _drawn(cfg, graph, seeds)
    given = _given_bytes(cfg, graph, width, ends[-1], edges)
    return given + (max(map(sum, _layer_bytes(cfg, graph, width, ends))) if has_layers(cfg) else 0)


def _layer_bytes(cfg: CfgNode, graph: TextGraph, width: int, ends: Sequence[int]) -> list[tuple[int, int]]:
    """Of each layer of a stack on a neighbourhood of as many hops, with ``ends`` as of a `Block`: what it sums over
    neighbours, for its targets, or transforms of all nodes where it attends to them; and its outputs, for its targets.
    """
    item, given, network = _item_bytes(cfg), _output_bytes(cfg), cfg.model.type
    dims = [_dim_in(cfg, graph, width), *[_channels(cfg)] * (len(ends) - 2), graph.num_classes * _heads(cfg)]
    found = []
    for (before, after), (nodes, targets) in zip(pairwise(dims), pairwise(reversed(ends)), strict=True):
        inner = nodes * after if network == "glem_gat" else 0 if network == "glem_mlp" else targets * before
        found.append((item * inner, given * targets * after))
    return found


def _given_bytes(cfg: CfgNode, graph: TextGraph, width: int, nodes: int, edges: int) -> int:
    """Of a neighbourhood's features and edges, with attention to them where the network has it."""
    attention = 3 * 4 * _heads(cfg) * edges if cfg.model.type == "glem_gat" else 0
    return _input_bytes(cfg, graph, width, nodes) + BLOCK_BYTES * (nodes + edges) + attention


def _input_bytes(cfg: CfgNode, graph: TextGraph, width: int, nodes: int) -> int:
    """Of the input of some nodes, which is float32 in joint training."""
    return (4 if is_joint(cfg) else _item_bytes(cfg)) * nodes * _dim_in(cfg, graph, width)


def _dim_in(cfg: CfgNode, graph: TextGraph, width: int) -> int:
    return width + (graph.num_classes if cfg.glem.label_input else 0)


def is_joint(cfg: CfgNode) -> bool:
    return cfg.train.mode == "glem_joint"


def _output_bytes(cfg: CfgNode) -> int:
    """Of a number that a layer gives: a layer norm gives float32 in any precision."""
    return 4 if cfg.gnn.norm == "layer" else _item_bytes(cfg)


def _item_bytes(cfg: CfgNode) -> int:
    """Of a number that the GNN computes with."""
    precision = cfg.lm.precision if is_joint(cfg) else cfg.gnn.precision
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
    return _output_bytes(cfg) * nodes * _channels(cfg)


def _drawn(cfg: CfgNode, graph: TextGraph, seeds: np.ndarray) -> tuple[list[int], int]:
    """How many nodes of a neighbourhood of ``seeds`` lie within 0, 1, … hops, and how many edges it has."""
    if cfg.glem.setting != "transductive":  # where training sees fewer edges: not more than is certain
        return [len(seeds)] * (len(cfg.gnn.fan_out) + 1), 0
    block = NeighbourSampler(graph.rowptr, graph.col, cfg.gnn.fan_out).sample(seeds, np.random.default_rng(0))
    return block.ends.tolist(), len(block.col)


def smoothing_bytes(graph: TextGraph) -> int:
    """Of PyG's Correct & Smooth: edges and their weights, a message an edge and class, predictions and their copies."""
    entries = len(graph.col)
    return entries * (16 + 4 + 4 * graph.num_classes) + 5 * 4 * graph.num_nodes * graph.num_classes
