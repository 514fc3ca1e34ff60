"""Input of the GNN: node features and, with label input, the labels of other nodes.

In the label channel (N, C) a gold node has its one-hot label and a candidate for a pseudo-label its distribution ŷ. A
node whose label is to be predicted has zeros, so no prediction can see its own label (y_{V∖n}; y_{L∖n} in O(φ)).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glem_graphgym.em.pseudo_labels import StepTargets
from glem_graphgym.files import fingerprint
from glem_graphgym.hardware import sent

FOLDS = 2  # prediction with label input hides labels fold by fold, with one pass of the network per fold


class LabelChannel:
    """Label channel of a step, float32 (N, C), read by rows: gold labels and the candidates' pseudo-labels."""

    def __init__(self, num_nodes: int, targets: StepTargets) -> None:
        self.num_nodes, self.targets = num_nodes, targets
        self.gold_order = np.argsort(targets.gold.nodes, kind="stable")
        self.gold_nodes = targets.gold.nodes[self.gold_order]
        self.pseudo_nodes = np.empty(0, np.int64) if targets.pseudo is None else np.sort(targets.pseudo.candidates)

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_nodes, self.targets.gold.num_classes

    def take(self, nodes: np.ndarray) -> np.ndarray:
        """Rows of ``nodes``, int64 (n,), in any order: float32 (n, C), zeros for nodes without a label."""
        out = np.zeros((len(nodes), self.shape[1]), dtype=np.float32)
        rows, _ = _common_positions(nodes, self.pseudo_nodes)
        if len(rows):
            assert self.targets.pseudo is not None
            out[rows] = self.targets.pseudo.targets(nodes[rows]).numpy()
        rows, positions = _common_positions(nodes, self.gold_nodes)
        out[rows] = 0.0
        out[rows, self.targets.gold.labels[self.gold_order[positions]]] = 1.0
        return out

    def read(self, first: int, end: int) -> np.ndarray:
        """Rows ``first`` to ``end``, float32 (end - first, C)."""
        return self.take(np.arange(first, end))

    def all_rows(self) -> Tensor:
        """The whole channel, float32 (N, C)."""
        return torch.from_numpy(self.read(0, self.num_nodes))

    def key(self) -> str:
        """Fingerprint of the content; reads the teacher's logits in full."""
        gold, pseudo = self.targets.gold, self.targets.pseudo
        content = [gold.nodes, gold.labels, self.shape]
        if pseudo is not None:
            content += [pseudo.candidates, pseudo.logits, pseudo.temperature, pseudo.hard]
        return fingerprint(*content)


def _common_positions(nodes: np.ndarray, sorted_nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the nodes common to ``nodes`` and the increasing ``sorted_nodes``, in the one and in the other."""
    if not len(sorted_nodes):
        return sorted_nodes, sorted_nodes
    positions = np.searchsorted(sorted_nodes, nodes).clip(max=len(sorted_nodes) - 1)
    rows = np.flatnonzero(sorted_nodes[positions] == nodes)
    return rows, positions[rows]


class StoredInputs:
    """Input of the GNN by rows, in ``dtype``, from features (N, D) that may be memory-mapped and are never read whole.

    ``targets``: the labels of the step; None without label input.
    """

    def __init__(self, x: Any, targets: StepTargets | None, dtype: torch.dtype) -> None:
        self.x, self.dtype = x, dtype
        self.channel = None if targets is None else LabelChannel(len(x), targets)

    @property
    def num_nodes(self) -> int:
        return len(self.x)

    @property
    def dim(self) -> int:
        """Columns of the input: D, or D + C with label input."""
        return int(self.x.shape[1]) + (0 if self.channel is None else self.channel.shape[1])

    def rows(self, nodes: np.ndarray, hidden: Tensor | slice) -> Tensor:
        """Input (n, D [+ C]) of ``nodes``, int64 (n,), with the labels of its ``hidden`` rows set to zero."""
        x = torch.from_numpy(self.x.take(nodes)).to(self.dtype)
        if self.channel is None:
            return x
        return with_labels(x, torch.from_numpy(self.channel.take(nodes)).to(self.dtype), hidden)

    def for_prediction(self, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield ``nodes`` in groups, each with a function int64 (n,) -> input rows, which hides the group's labels."""
        if self.channel is None:
            yield nodes, lambda row_nodes: self.rows(row_nodes, slice(0))
            return
        for group, hidden in self._folds(nodes):
            yield group, functools.partial(self._rows_hiding, hidden)

    def _folds(self, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        assert self.channel is not None
        labelled = len(self.channel.pseudo_nodes) > 0
        return prediction_folds(self.num_nodes, self.channel.gold_nodes, nodes, FOLDS if labelled else 1)

    def _rows_hiding(self, hidden: np.ndarray, nodes: np.ndarray) -> Tensor:
        return self.rows(nodes, torch.from_numpy(hidden[nodes]))


class GNNInputs(StoredInputs):
    """Input of all nodes in memory; ``x`` (N, D) has the device and dtype in which the GNN computes."""

    x: Tensor
    _cached_folds: tuple[np.ndarray, list[tuple[np.ndarray, Tensor]]] | None = None

    def __init__(self, x: Tensor, targets: StepTargets | None) -> None:
        super().__init__(x, targets, x.dtype)
        self.labels = None if self.channel is None else self.channel.all_rows().to(x)

    def rows(self, nodes: np.ndarray | Tensor, hidden: Tensor | slice) -> Tensor:
        indices = sent(nodes, self.x.device)
        x = self.x.index_select(0, indices)
        return x if self.labels is None else with_labels(x, self.labels.index_select(0, indices), hidden)

    def for_prediction(self, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield ``nodes`` in groups, each with the input (N, D [+ C]) that hides the group's labels."""
        if self.channel is None:
            yield nodes, self.x
            return
        if self._cached_folds is None or self._cached_folds[0] is not nodes:
            folds = [(group, sent(hidden, self.x.device)) for group, hidden in self._folds(nodes)]
            self._cached_folds = nodes, folds  # the same in every validation
        for group, hidden in self._cached_folds[1]:
            yield group, self.hiding(hidden)

    def hiding(self, nodes: np.ndarray | Tensor) -> Tensor:
        """Input (N, D [+ C]) that hides the labels of ``nodes``, indices or bool (N,)."""
        return self.x if self.labels is None else with_labels(self.x, self.labels.clone(), sent(nodes, self.x.device))


def with_labels(x: Tensor, labels: Tensor, hidden: Tensor | slice) -> Tensor:
    """Concatenate features (n, D) and labels (n, C), whose ``hidden`` rows are set to zero in place."""
    if isinstance(hidden, slice):
        labels[hidden] = 0
    elif hidden.dtype == torch.bool:
        labels.masked_fill_(sent(hidden, labels.device)[:, None], 0)
    else:
        labels.index_fill_(0, hidden, 0)
    return torch.cat([x, labels], dim=1)


def prediction_folds(
    num_nodes: int, gold: np.ndarray, nodes: np.ndarray, unlabelled: int = FOLDS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ``nodes`` in groups, each with bool (N,): the nodes whose labels are hidden when the group is predicted.

    Gold nodes are split into `FOLDS` folds, the other nodes into ``unlabelled`` folds. The input of a node hides the
    labels of its whole fold, whichever ``nodes`` are asked for; nodes without gold see every gold label. One fold of
    these, and so one pass of the network, suffices if none of them has a pseudo-label.
    """
    node = np.arange(num_nodes)
    fold_of = (node % unlabelled).astype(np.int8)
    fold_of[gold] = FOLDS + node[gold] % FOLDS
    for fold in np.unique(fold_of[nodes]).tolist():
        yield nodes[fold_of[nodes] == fold], fold_of == fold
