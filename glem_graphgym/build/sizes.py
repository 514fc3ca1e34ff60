"""The memory that a run may use, and sizes that are known before any model is built."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from yacs.config import CfgNode

from glem_graphgym import memory, processes
from glem_graphgym.build.gnn import has_layers
from glem_graphgym.build.graph import readout_for
from glem_graphgym.config import WORD_FEATURES, feature_kinds
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.models.pooling import width_after
from glem_graphgym.models.pretrained import load_config
from glem_graphgym.modes import MODES

WIDE_MARGIN = 32  # factor of generous estimates
BUDGET_SHARE = 0.8  # largest share of the machine's memory; programs, networks and texts need the rest


def budget_bytes(cfg: CfgNode) -> int:
    """Bytes of graph and features that a process may keep in memory: ``glem.memory_budget_gb``; 0 = no budget.

    The budget is at most `BUDGET_SHARE` of the process's share of the machine's memory, so that larger data goes to
    disk rather than getting the run killed.
    """
    return min(asked_bytes(cfg), round(BUDGET_SHARE * machine_share(cfg)))


def asked_bytes(cfg: CfgNode) -> int:
    return max(1, round(cfg.glem.memory_budget_gb * memory.GB)) if cfg.glem.memory_budget_gb else 0


def processes_here(cfg: CfgNode) -> int:
    """Number of the run's processes on this machine."""
    return processes.rank_info().local_size if processes.have_joined() else cfg.devices or 1


def machine_share(cfg: CfgNode) -> int:
    """Machine memory in bytes per process that holds hop features: every process; with consistency (SCR) only one."""
    return memory.machine_bytes() // (1 if cfg.gnn.scr_weight > 0 else processes_here(cfg))


def feature_width(cfg: CfgNode, graph: TextGraph) -> int:
    """D, the width of the GNN's node features."""
    return sum(feature_widths(cfg, graph).values())


def feature_widths(cfg: CfgNode, graph: TextGraph) -> dict[str, int]:
    """Kind of node features -> number of columns; 0 if its file or model cannot be read, which raises later."""
    widths = dict.fromkeys(feature_kinds(cfg.glem.node_features), 0)
    for kind in widths:
        with suppress(Exception):
            widths[kind] = _width_of(cfg, graph, kind)
    return widths


def _width_of(cfg: CfgNode, graph: TextGraph, kind: str) -> int:
    """Number of columns of a kind of node features, without reading them or building a model."""
    if kind == "raw":
        return 0 if graph.features is None else graph.features.shape[1]
    if kind in WORD_FEATURES:
        return cfg.glem.vocabulary
    if kind == "file":
        file = Path(cfg.glem.feature_file)
        if file.suffix == ".npy":
            return int(np.load(file, mmap_mode="r").shape[1])
        return int(torch.load(file, map_location="cpu", weights_only=True, mmap=True).shape[1])
    if kind.startswith("text") and cfg.lm.shrink_dim:
        return cfg.lm.shrink_dim
    return width_after(readout_for(cfg).dense, int(load_config(cfg.lm.model).hidden_size))


def can_predict_layerwise(cfg: CfgNode) -> bool:
    return has_layers(cfg) and cfg.glem.setting == "transductive"


def is_joint(cfg: CfgNode) -> bool:
    """Whether the GNN is trained together with the LM."""
    return cfg.train.mode in MODES and MODES[cfg.train.mode].joint


def generous_bytes(cfg: CfgNode, graph: TextGraph, width: int) -> int:
    """Bytes far beyond the need of any network of that size: if the limit is higher, nothing need be measured."""
    g = cfg.gnn
    layers = g.layers_pre_mp + g.layers_mp + g.layers_post_mp
    num_values = graph.num_nodes * (width + graph.num_classes)
    num_values += layers * (graph.num_nodes + len(graph.col)) * g.dim_inner * max(1, g.att_heads)
    return 4 * WIDE_MARGIN * num_values


def hop_step_generous_bytes(cfg: CfgNode, width: int, nodes: int) -> int:
    """Bytes far beyond the need of a training step on the hop features of that many ``nodes``."""
    return 4 * WIDE_MARGIN * nodes * (cfg.gnn.hops + 1) * (cfg.gnn.dim_inner * max(1, cfg.gnn.att_heads) + width)


def smoothing_bytes(graph: TextGraph) -> int:
    """Bytes of Correct & Smooth: edges as edge list and CSR, weights and their making, predictions and copies."""
    return len(graph.col) * (16 + 8 + 32) + 6 * 4 * graph.num_nodes * graph.num_classes
