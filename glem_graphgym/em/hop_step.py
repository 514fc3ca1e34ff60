"""The M-step of networks on hop features: propagated once, then trained on batches of nodes without sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from glem_graphgym import processes
from glem_graphgym.em.fit import Batches
from glem_graphgym.em.inputs import LabelChannel
from glem_graphgym.em.m_step import GNNLearner, GNNTask
from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.pseudo_labels import StepTargets
from glem_graphgym.em.sampled_step import even_batches
from glem_graphgym.hardware import sent
from glem_graphgym.models.hops import BLOCK_BYTES, draw_folds, fold_label_hops, propagate
from glem_graphgym.models.mean_teacher import MeanTeacher, consistency_loss
from glem_graphgym.models.propagation import SparseOperator
from glem_graphgym.out_of_core.feature_rows import FeatureRows
from glem_graphgym.out_of_core.hop_storage import HopStorage, check_batch
from glem_graphgym.out_of_core.propagation import MappedHops

LABEL_FOLDS = 5  # a node whose label is known sees the labels of the other four fifths
NODES_AT_ONCE = 1 << 16  # nodes per forward pass in inference
GPU_SHARE = 0.5  # share of a GPU's free memory that hops may take; the rest is for training
BYTES_PER_ENTRY = 48  # bytes per entry of the propagation matrix while its weights are computed


@dataclass(frozen=True)
class Consistency:
    """Consistency regularisation (SCR, Zhang et al. 2021): a loss on unlabelled nodes against a mean teacher.

    Every epoch draws as many of the ``unlabelled`` nodes, int64, as it has targets, and spreads them over its batches.
    A node counts if the teacher's top probability exceeds ``threshold``, below 1. ``weight`` is the weight of the loss.
    """

    weight: float
    unlabelled: np.ndarray
    threshold: float = 0.8

    def drawn(self, count: int, seed: int, epoch: int) -> np.ndarray:
        """Draw the unlabelled nodes of an epoch, int64 (n,), at most ``count``."""
        return np.random.default_rng([seed, epoch, 4]).permutation(self.unlabelled)[:count]

    def loss(self, logits: Tensor, teacher: MeanTeacher, *inputs: Any) -> Tensor:
        """Weighted consistency loss of logits (b, C) of unlabelled nodes; ``inputs`` go to the teacher."""
        return self.weight * consistency_loss(logits, teacher(*inputs), confidence=self.threshold)


class HopInputs(NamedTuple):
    """Hop features (K+1, N, D) and, with label input, label features (1, N, C), in memory, on a GPU or on disk.

    With ``in_step`` they are on the training device: a batch has node indices alone, and the step reads their rows.
    """

    num_nodes: int
    hops: Tensor | MappedHops
    labels: Tensor | MappedHops | None
    in_step: bool = False

    @property
    def dim(self) -> int:
        return int(self.hops.shape[2])

    def fetch(self, nodes: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Tensors of a batch: the `rows` of ``nodes`` or, with ``in_step``, ``nodes`` alone."""
        return (torch.from_numpy(nodes), None) if self.in_step else self.rows(nodes)

    def rows(self, nodes: np.ndarray | Tensor) -> tuple[Tensor, Tensor | None]:
        """Hop features (K+1, B, D) of ``nodes``, int64 (B,), and their label features (1, B, C) or None."""
        return _rows(self.hops, nodes), None if self.labels is None else _rows(self.labels, nodes)


def _rows(hops: Tensor | MappedHops, nodes: np.ndarray | Tensor) -> Tensor:
    if isinstance(hops, MappedHops):
        return hops.read(np.asarray(nodes))
    return hops.index_select(1, sent(nodes, hops.device))


def free_on_gpu(device: torch.device) -> int:
    """Free bytes on a GPU, including those that torch has reserved but not allocated; 0 on CPU."""
    if device.type != "cuda":
        return 0
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


class HopTask(GNNTask):
    """Trains on random batches of an epoch's nodes, each with unlabelled nodes for the consistency loss if it is on."""

    inputs: HopInputs
    learner: HopLearner

    def __init__(self, learner: HopLearner, *arguments: Any) -> None:
        super().__init__(learner, *arguments)
        self.teacher = None if learner.consistency is None else MeanTeacher(self.model)

    def batches(self, epoch: int) -> Batches:
        nodes, target, is_gold = self.targets.batch(epoch)
        order = np.random.default_rng([self.targets.seed, epoch, 3]).permutation(len(nodes))
        batches = even_batches(order, self.learner.batch_size)
        unlabelled = np.empty(0, dtype=np.int64)
        if self.learner.consistency is not None:
            unlabelled = self.learner.consistency.drawn(len(order), self.targets.seed, epoch)
        unlabelled_batches = np.array_split(unlabelled, len(batches))

        def prepare(item: tuple[np.ndarray, np.ndarray]) -> tuple[Any, ...]:
            batch, unlabelled_batch = item
            num_gold = int(is_gold[batch].sum())
            counts = (num_gold, len(batch) - num_gold)
            local_batch, unlabelled_batch = (
                indices[processes.rank() :: processes.world_size()] for indices in (batch, unlabelled_batch)
            )
            return (
                *self.inputs.fetch(np.concatenate([nodes[local_batch], unlabelled_batch])),
                target[local_batch],
                is_gold[local_batch],
                counts,
            )

        return Batches(list(zip(batches, unlabelled_batches, strict=True)), prepare)

    def forward(self, batch: tuple[Any, ...]) -> Tensor:
        hops, labels, target, is_gold, counts = batch
        if self.inputs.in_step:
            hops, labels = self.inputs.rows(hops)
        logits, num_targets = self.model(hops, labels), len(target)
        target_logits, weight = logits[:num_targets], self.targets.weight
        loss = glem_loss(target_logits, target, is_gold, weight, counts=counts, class_weights=self.class_weights)
        if self.teacher is None or num_targets == len(logits):
            return loss
        assert self.learner.consistency is not None
        inputs = (hops[:, num_targets:], None if labels is None else labels[:, num_targets:])
        return loss + self.learner.consistency.loss(logits[num_targets:], self.teacher, *inputs)

    def after_step(self) -> None:
        if self.teacher is not None:
            self.teacher.update(self.model)

    def validated(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        return self.exact_logits(self.validation.nodes[processes.rank() :: processes.world_size()])

    def exact_logits(self, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        device = next(self.model.parameters()).device
        block_size, storage = NODES_AT_ONCE, self.learner.storage
        if storage is not None:
            block_size = storage.rows_at_once(self.learner.hops, self.inputs.dim, NODES_AT_ONCE)
        for start in range(0, len(nodes), block_size):
            block = nodes[start : start + block_size]
            hops, labels = self.inputs.rows(block)
            yield block, self.model(hops.to(device), None if labels is None else labels.to(device))


@dataclass(frozen=True, kw_only=True)
class HopLearner(GNNLearner):
    """Learner of p_φ on hop features: the network reads [x, Ax, A²x, …] of a node and, with label input, label hops.

    The label hops of a node never contain its own label, gold or pseudo (`fold_label_hops`): y_{V∖n}. ``build`` makes a
    module with ``forward(hop_features (K+1, B, D), label_features (1, B, C) or None) -> logits (B, C)``.

    Attributes:
        hops: K. A is GCN's operator D~^-1/2 (A+I) D~^-1/2.
        label_hops: hops over which label input is propagated; the network reads the last one.
        batch_size: nodes per optimizer step; 0 = all of an epoch.
        storage: puts hop features on disk if they exceed its budget (``graphs`` are then `MmapGraph`s); None = never.
        consistency: SCR; None = off.
    """

    hops: int
    label_hops: int = 0
    batch_size: int = 0
    storage: HopStorage | None = None
    consistency: Consistency | None = None

    task: ClassVar[type[GNNTask]] = HopTask
    in_batches: ClassVar[bool] = True

    @property
    def data_parallel(self) -> bool:
        """False with consistency: a mean over a batch's confident nodes is not a sum over shares of the batch."""
        return self.consistency is None

    def model_for(self, width: int, num_classes: int) -> nn.Module:
        return self.build(width, num_classes)

    def _inputs(self, features: Any, targets: StepTargets) -> HopInputs:
        num_nodes, width = features.shape
        labelled = torch.zeros(num_nodes, dtype=torch.bool)
        labelled[torch.from_numpy(targets.gold.nodes)] = True
        if targets.pseudo is not None:
            labelled[torch.from_numpy(targets.pseudo.candidates)] = True
        generator = torch.Generator().manual_seed(targets.seed)
        folds = draw_folds(labelled, LABEL_FOLDS, generator) if self.settings.label_input else None
        if self.storage is not None:
            entries, classes = len(self.graphs.train.col), targets.gold.num_classes if self.settings.label_input else 0
            if not self.storage.fits(num_nodes, entries, width, self.hops, classes):
                return self._stored(targets, features, folds, self.storage)
        return self._in_memory(targets, features, folds)

    def _in_memory(self, targets: StepTargets, features: Any, folds: Tensor | None) -> HopInputs:
        x = torch.from_numpy(np.array(features, dtype=np.float32))
        device, dtype = self.hardware.device, self.hardware.dtype
        classes = 0 if folds is None else targets.gold.num_classes
        free, num_entries = free_on_gpu(device), len(self.graphs.predict.gcn().col)
        hops_bytes = dtype.itemsize * len(x) * ((self.hops + 1) * x.shape[1] + classes)
        copies = 1 if self.graphs.observed_nodes is None else 2  # `_merged` holds the hops of both graphs at once
        in_step = copies * hops_bytes <= GPU_SHARE * free
        hops_device = device if in_step else x.device
        if BYTES_PER_ENTRY * num_entries + 2 * BLOCK_BYTES > free - in_step * copies * hops_bytes:
            device = x.device  # propagate on the CPU

        def propagated(operator: SparseOperator, nodes: Any) -> Tensor:
            return propagate(operator.to(device), x[nodes], self.hops, dtype, hops_device)

        hops = self._merged(propagated)
        if folds is None:
            return HopInputs(len(x), hops, None, in_step)
        labels = LabelChannel(len(x), targets).all_rows()

        def label_hops(operator: SparseOperator, nodes: Any) -> Tensor:
            return fold_label_hops(
                operator.to(device), labels[nodes], folds[nodes], self.label_hops, dtype, hops_device
            )

        return HopInputs(len(x), hops, self._merged(label_hops), in_step)

    def _merged(self, compute: Callable[[SparseOperator, Any], Tensor]) -> Tensor:
        """Hops (hops, N, …): on the training graph for nodes that it has, on the graph for prediction for others."""
        all_nodes: Any = slice(None)
        if self.graphs.observed_nodes is None:
            return compute(self.graphs.train.gcn(), all_nodes)
        observed_nodes = torch.from_numpy(self.graphs.observed_nodes)
        merged = compute(self.graphs.predict.gcn(), all_nodes)
        merged[:, observed_nodes] = compute(self.graphs.train.gcn(), observed_nodes)
        return merged

    def _stored(self, targets: StepTargets, features: Any, folds: Tensor | None, storage: HopStorage) -> HopInputs:
        rows = FeatureRows.wrap(features)
        self.check_batch(targets.num_trained, rows.shape[1])
        hops, labels = storage.features(self.graphs, rows, self.hops), None
        if folds is not None:
            fold_numbers = folds.to(torch.int8).numpy()
            labels = storage.labels(self.graphs, LabelChannel(len(rows), targets), fold_numbers, self.label_hops)
        return HopInputs(len(rows), hops, labels)

    def check_batch(self, num_trained: int, width: int) -> None:
        """Raise ValueError, which names a batch size that fits, if a step's hop features exceed the budget."""
        assert self.storage is not None
        sizes, item_bytes = (num_trained, self.batch_size, self.hops, width), self.hardware.dtype.itemsize
        check_batch(self.storage.budget, *sizes, item_bytes, with_unlabelled=self.consistency is not None)
