"""Disk storage of an M-step's hop features that exceed memory, in folders named by a fingerprint of their inputs.

Hops of features that all runs share (raw, static or from a file) are stored in a cache, those of a step's embeddings
and labels in the run's working folder, which the journal empties when the step is finished. Both resume after a kill.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from glem_graphgym.files import fingerprint, make_once, read_array
from glem_graphgym.memory import GB
from glem_graphgym.out_of_core.feature_rows import FeatureRows
from glem_graphgym.out_of_core.propagation import (
    BLOCK_BYTES,
    DiskPropagation,
    MappedHops,
    Rows,
    plan_columns,
)
from glem_graphgym.out_of_core.stored_operator import ENTRIES_AT_ONCE, StoredOperator, store_operator

OPERATOR = "gcn"  # that of `Adjacency.gcn`


class HopStorage:
    """Makes and stores hop features of `GraphViews` of `MmapGraph`s within a memory budget.

    Args:
        budget: bytes that the propagation, and afterwards a batch, may take.
        working: folder for files of one step; emptied by the caller.
        cache: folder for files that all runs share.
        nodes: int64 (n,), increasing: nodes that are trained on or predicted, whose hops are stored; None = all.
        dtype: of the stored hops, in which training reads them.
    """

    def __init__(
        self,
        budget: int,
        working: Path,
        cache: Path,
        nodes: np.ndarray | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.budget, self.working, self.cache, self.nodes, self.dtype = budget, working, cache, nodes, dtype

    def fits(self, num_nodes: int, entries: int, width: int, hops: int, classes: int) -> bool:
        """Whether hop features in memory would stay within the budget."""
        return hops_in_memory(num_nodes, entries, width, hops, self.dtype.itemsize, classes) <= self.budget

    def features(self, graphs: Any, x: FeatureRows, hops: int) -> MappedHops:
        """Hops 0 to K of the features, (K+1, n, D)."""
        return self._stored_hops(self.features_folder(graphs, x, hops), graphs, x, hops)

    def labels(self, graphs: Any, labels: Rows, folds: np.ndarray, hops: int) -> MappedHops:
        """The last label hop, (1, n, C); ``folds`` int8 (N,), see `fold_label_hops`."""
        key = fingerprint("labels", labels.key(), folds, *self._inputs_key(graphs, hops))
        return self._stored_hops(self.working / f"labels-{key}", graphs, labels, hops, hops, folds)

    def rows_at_once(self, hops: int, width: int, max_nodes: int) -> int:
        """Number of nodes, at most ``max_nodes``, whose hops may be in memory at a time in inference."""
        return int(min(max_nodes, max(1, self.budget // batch_bytes(1, hops, width, self.dtype.itemsize))))

    def features_folder(self, graphs: Any, x: FeatureRows, hops: int) -> Path:
        """The folder of the features' hops: in the cache if the features are fixed, else in the working folder."""
        key = fingerprint("hops", x.key(), *self._inputs_key(graphs, hops))
        return (self.cache if x.fixed else self.working) / f"hops-{key}"

    def _stored_hops(
        self, folder: Path, graphs: Any, source: Rows, hops: int, first_hop: int = 0, folds: np.ndarray | None = None
    ) -> MappedHops:
        num_nodes, width = source.shape
        plan_columns(num_nodes, width, self.budget)  # a budget that is too small is refused before anything is written
        stored = None if self.nodes is None else np.isin(np.arange(num_nodes), self.nodes, assume_unique=True)

        def make(temporary: Path) -> None:
            options: dict[str, Any] = {"dtype": self.dtype, "stored": stored, "budget": self.budget}
            operators = self._open_operators(graphs)
            DiskPropagation(temporary, operators, source, hops, first_hop=first_hop, folds=folds, **options).run()

        make_once(folder, make, resume=True)
        return MappedHops(read_array(folder / "hops.npy", f"delete {folder} to have it made anew"), self.nodes)

    # ---- the graph -------------------------------------------------------------------------------------------------

    @staticmethod
    def propagated_views(graphs: Any) -> list[tuple[Any, np.ndarray | None]]:
        """The structures to propagate over, each with the nodes whose hops it yields, bool (N,), or None for all."""
        train, predict = graphs.train, graphs.predict
        if graphs.observed_nodes is None or train.keep is predict.keep:
            return [(train, None)]
        in_train = np.zeros(len(train.rowptr) - 1, dtype=bool)
        in_train[graphs.observed_nodes] = True
        return [(predict, ~in_train), (train, in_train)]

    def operator_folder(self, graph: Any) -> Path:
        return self.cache / f"operator-{self._graph_key(graph)}"

    def _open_operators(self, graphs: Any) -> list[tuple[StoredOperator, np.ndarray | None]]:
        block_bytes = min(BLOCK_BYTES, self.budget // 8)
        entries = max(1, min(ENTRIES_AT_ONCE, block_bytes // 64))  # int64 rows, columns and places, float64 weights

        def opened(graph: Any) -> StoredOperator:
            def make(folder: Path) -> None:
                store_operator(folder, graph.rowptr, graph.col, graph.keep, entries_at_once=entries)

            return StoredOperator(make_once(self.operator_folder(graph), make), block_bytes)

        return [(opened(graph), nodes) for graph, nodes in self.propagated_views(graphs)]

    def _graph_key(self, graph: Any) -> str:
        if self._cached_fingerprint is None or self._cached_fingerprint[0] is not graph.col:
            self._cached_fingerprint = (graph.col, fingerprint(graph.rowptr, graph.col))
        return fingerprint(OPERATOR, self._cached_fingerprint[1], graph.keep)

    _cached_fingerprint: tuple[np.ndarray, str] | None = None  # columns of the latest graph, and its fingerprint

    def _inputs_key(self, graphs: Any, hops: int) -> tuple[list[str], int, str]:
        """Inputs of stored hops that their fingerprint covers, other than the source."""
        stored = fingerprint(self.nodes, str(self.dtype))
        return [self._graph_key(graph) for graph, _ in self.propagated_views(graphs)], hops, stored


def hops_in_memory(num_nodes: int, entries: int, width: int, hops: int, item_bytes: int, classes: int = 0) -> int:
    """Estimated bytes of hop features when all is in memory: features, hops, graph, and label hops if any.

    ``entries`` counts every edge in both directions; ``classes`` is C with label input, else 0.
    """
    floats = num_nodes * width
    stored = item_bytes * ((hops + 1) * floats + num_nodes * classes)
    product = min(12 * floats, 1 << 30)
    graph = 56 * (entries + num_nodes)  # int64 edge list, CSR without and with loops, sort keys, weights
    return 4 * floats + stored + product + graph + 4 * 4 * num_nodes * classes


def check_batch(
    budget: int,
    num_trained: int,
    batch_size: int,
    hops: int,
    width: int,
    item_bytes: int,
    *,
    with_unlabelled: bool = False,
) -> None:
    """Refuse an optimizer step whose hops exceed ``budget`` bytes: ``batch_size`` (0 = all) of ``num_trained`` nodes.

    With ``with_unlabelled``, as many unlabelled nodes are added for the consistency loss.

    Raises:
        ValueError: names the largest ``gnn.batch_size`` that fits.
    """
    node_bytes = batch_bytes(1, hops, width, item_bytes) * (2 if with_unlabelled else 1)
    needed = node_bytes * min(num_trained, batch_size or num_trained)
    if needed > budget:
        unlabelled_text = ", and as many beside them for gnn.scr_weight" if with_unlabelled else ""
        raise ValueError(
            f"gnn.batch_size is {batch_size} with {num_trained:,} training nodes{unlabelled_text}: {hops + 1} hops "
            f"of {width} columns take {needed / GB:.3g} GB, but the budget is {budget / GB:.3g} GB "
            "(glem.memory_budget_gb, as far as this machine has it); set gnn.batch_size to at most "
            f"{budget // max(1, node_bytes)}"
        )


def batch_bytes(nodes: int, hops: int, width: int, item_bytes: int) -> int:
    """Estimated bytes of a batch's hops: as stored, in float32, and those of the next batch while it is read."""
    return (3 * item_bytes + 4) * (hops + 1) * nodes * width
