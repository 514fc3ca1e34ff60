"""Sizes of files that a run's GNN writes beside its stages: hops of features, and outputs of its layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from yacs.config import CfgNode

from glem_graphgym.build.footprint import layer_outputs
from glem_graphgym.build.gnn import MmapGraph
from glem_graphgym.build.learners import hop_storage, stored_graph_views_of
from glem_graphgym.data.csr import nodes_within
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.em.inputs import prediction_folds
from glem_graphgym.out_of_core.hop_storage import HopStorage
from glem_graphgym.out_of_core.propagation import disk_bytes
from glem_graphgym.out_of_core.stored_operator import operator_bytes


def hop_files(
    cfg: CfgNode,
    graph: TextGraph,
    predicted: np.ndarray | None,
    width: int,
    fixed: bool,
    make_features: Callable[[], Any] | None,
) -> dict[str, Any]:
    """Files of hops, for a network on hop features that exceed the budget.

    Args:
        predicted: see `GNNLearner`.
        width: of the node features.
        fixed: whether the features are the same in all M-steps.
        make_features: makes the features; None if they do not exist yet. Called only if there are cached hops, as
            naming their folder requires reading all features.

    Returns:
        ``bytes`` and ``folder`` of feature hops, whether they are ``cached``, ``temporary`` bytes while they are made,
        bytes of ``labels``, ``operators``, and ``fixed``.
    """
    storage, graphs = hop_storage(cfg, predicted), stored_graph_views_of(cfg, graph)
    rows = graph.num_nodes if predicted is None else len(predicted)

    def on_disk(columns: int, hops: int) -> tuple[int, int]:
        return disk_bytes(graph.num_nodes, rows, columns, hops, storage.dtype.itemsize, storage.budget)

    features, temporary = on_disk(width, cfg.gnn.hops + 1)
    folder = storage.cache
    if make_features and any(storage.cache.glob("hops-*")):
        folder = storage.features_folder(graphs, make_features(), cfg.gnn.hops)
    return {
        "fixed": fixed,
        "folder": str(folder),
        "cached": folder != storage.cache and folder.is_dir(),
        "bytes": features,
        "temporary": temporary,
        "labels": sum(on_disk(graph.num_classes, 1)) if cfg.glem.label_input else 0,
        "operators": [_operator_file(storage, view) for view, _ in storage.propagated_views(graphs)],
    }


def _operator_file(storage: HopStorage, view: MmapGraph) -> dict[str, Any]:
    """Folder, existence and bytes of a propagation operator; reads the graph only if there are cached operators."""
    folder = storage.operator_folder(view) if any(storage.cache.glob("operator-*")) else storage.cache
    cached = folder != storage.cache and folder.is_dir()
    return {"folder": str(folder), "cached": cached, "bytes": operator_bytes(view.rowptr, view.col, view.keep)}


def layer_file_bytes(cfg: CfgNode, graph: TextGraph, width: int, predicted: np.ndarray | None) -> int:
    """Peak bytes on disk of layer outputs in layer-wise prediction, which keeps two layers' outputs at a time.

    Args:
        width: of the node features.
        predicted: see `GNNLearner`.
    """
    groups = [predicted]
    if predicted is not None and cfg.glem.label_input:  # label folds are predicted one after another
        groups = [group for group, _ in prediction_folds(graph.num_nodes, graph.split["train"], predicted)]

    def nodes_near(group: np.ndarray | None, hops: int) -> int:
        return graph.num_nodes if group is None else len(nodes_within(graph.rowptr, graph.col, group, hops))

    *hidden, _ = layer_outputs(cfg, graph.num_classes, width)
    peak = 0
    for group in groups:  # a layer's output is needed as many hops away as there are layers above it
        files = [size * nodes_near(group, len(hidden) - index) for index, size in enumerate(hidden)]
        peak = max([peak, *files, *(sum(pair) for pair in itertools.pairwise(files))])
    return peak
