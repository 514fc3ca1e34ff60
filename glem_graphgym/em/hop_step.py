"""The M-step of networks on hop features: propagated once, then trained on batches of nodes without any sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from glem_graphgym.em.m_step import GNNLearner, GNNSettings, StepTask, Structures, label_channel
from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.pseudo_labels import StepTargets
from glem_graphgym.em.stage import Hardware, Task, Validation, Weights, half
from glem_graphgym.models.hops import draw_folds, fold_label_hops, propagate
from glem_graphgym.models.propagation import SparseOperator

LABEL_FOLDS = 5  # a node whose label is known sees the labels of the other four fifths
NODES_AT_ONCE = 1 << 16  # in inference


class HopLearner(GNNLearner):
    """p_φ on hop features: a `GNNLearner` whose network sees [x, Ax, A²x, …] of a node, and label hops if asked for.

    With label input a node whose label is known, gold or pseudo, sees the labels of other nodes alone, at every hop
    (`fold_label_hops`): y_{V∖n}.

    Args:
        build: (dim_in, num_classes) -> module with ``forward(hop_features (K+1, B, D), label_features or None)``.
        structures: as of a `GNNLearner`; `operator` makes the matrix A of each.
        operator: structure -> A.
        hops: K.
        label_hops: how far labels are propagated; the last hop is what the network sees. Used with label input.
        batch_size: nodes an optimizer step; 0 = all of an epoch's.
    """

    new_batches = True

    def __init__(
        self,
        build: Callable[[int, int], nn.Module],
        structures: Structures,
        make_optimizer: Callable[[Iterator[nn.Parameter]], tuple[Any, Any]],
        settings: GNNSettings,
        validation: Validation,
        hardware: Hardware,
        *,
        operator: Callable[[Any], SparseOperator],
        hops: int,
        label_hops: int = 0,
        batch_size: int = 0,
    ) -> None:
        super().__init__(build, structures, make_optimizer, settings, validation, hardware)
        self.operator, self.hops, self.label_hops, self.batch_size = operator, hops, label_hops, batch_size
        self.hop_features: Tensor | None = None
        self.label_features: Tensor | None = None

    def load(self, targets: StepTargets, features: np.ndarray, weights: Weights | None) -> None:
        x = torch.from_numpy(np.array(features, dtype=np.float32))
        hop_features = self._merged(lambda operator, nodes: propagate(operator, x[nodes], self.hops))
        self.hop_features = hop_features.to(self.hardware.dtype)
        self.label_features = None
        if self.settings.label_input:
            labels = label_channel(len(x), targets)
            known = torch.zeros(len(x), dtype=torch.bool)
            known[torch.from_numpy(targets.gold.nodes)] = True
            if targets.pseudo is not None:
                known[torch.from_numpy(targets.pseudo.nodes)] = True
            folds = draw_folds(known, LABEL_FOLDS, torch.Generator().manual_seed(targets.seed))
            self.label_features = self._merged(
                lambda operator, nodes: fold_label_hops(operator, labels[nodes], folds[nodes], self.label_hops, keep=1)
            )
        self.take_model(x.shape[1], targets.gold.num_classes, weights)

    def _merged(self, compute: Callable[[SparseOperator, Any], Tensor]) -> Tensor:
        """(hops, N, …): of the nodes that training sees on what it sees, of the others on what prediction sees."""
        everything: Any = slice(None)
        if self.structures.seen is None:
            return compute(self.operator(self.structures.train), everything)
        seen = torch.from_numpy(self.structures.seen)
        merged = compute(self.operator(self.structures.predict), everything)
        merged[:, seen] = compute(self.operator(self.structures.train), seen)
        return merged

    def task(self, targets: StepTargets) -> Task:
        return _HopTask(targets, self)

    def batch(self, nodes: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Hop features (K+1, B, D) and label features (1, B, C) or None of ``nodes`` int64 (B,)."""
        assert self.hop_features is not None, "fit or load a model first"
        place = torch.from_numpy(nodes)
        labels = None if self.label_features is None else self.label_features[:, place]
        return self.hop_features[:, place], labels

    def logits(self, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Parts of ``nodes``, each with its logits."""
        assert self.model is not None
        device = next(self.model.parameters()).device
        for start in range(0, len(nodes), NODES_AT_ONCE):
            part = nodes[start : start + NODES_AT_ONCE]
            hops, labels = self.batch(part)
            yield part, self.model(hops.to(device), None if labels is None else labels.to(device))

    def predict(self, logits: np.ndarray) -> None:
        assert self.model is not None, "fit or load a model first"
        self.model.to(self.hardware.device).eval()
        with torch.inference_mode(), self.hardware.autocast():
            for nodes, found in self.logits(np.arange(len(logits))):
                logits[nodes] = half(found)


class _HopTask(StepTask):
    """Random batches of an epoch's nodes."""

    def __init__(self, targets: StepTargets, learner: HopLearner) -> None:
        super().__init__(targets, learner)
        self.learner = learner

    def train_dataloader(self) -> DataLoader:
        nodes, target, is_gold = self.targets.batch(self.current_epoch)
        rng = np.random.default_rng([self.targets.seed, self.current_epoch, 3])
        order, size = rng.permutation(len(nodes)), self.learner.batch_size or len(nodes)
        # A last batch of a few nodes would be noise to batch norm and to the step, so all batches are equally large.
        batches = np.array_split(order, max(1, round(len(order) / size)))

        def collate(batch: np.ndarray) -> tuple[Any, ...]:
            return (*self.learner.batch(nodes[batch]), target[batch], is_gold[batch])

        return DataLoader(batches, batch_size=None, collate_fn=collate)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return DataLoader([0], batch_size=None)  # type: ignore[arg-type]

    def training_step(self, batch: tuple[Any, ...], batch_idx: int) -> Tensor:
        hops, labels, target, is_gold = batch
        return glem_loss(self.model(hops, labels), target, is_gold, self.targets.weight)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        for nodes, logits in self.learner.logits(self.validation.nodes):
            self.see(nodes, logits)
