"""The M-step of networks on hop features: propagated once, then trained on batches of nodes without any sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from glem_graphgym import processes
from glem_graphgym.em.feature_rows import FeatureRows, LabelRows
from glem_graphgym.em.hop_storage import HopStorage, check_batch
from glem_graphgym.em.m_step import GNNLearner, GNNSettings, StepTask, Structures, label_channel
from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.em.sampled_step import even_batches
from glem_graphgym.em.stage import FitLog, Hardware, Task, Validation, Weights, half
from glem_graphgym.models.hops import draw_folds, fold_label_hops, propagate
from glem_graphgym.models.mean_teacher import MeanTeacher, consistency_loss
from glem_graphgym.models.out_of_core import MappedHops
from glem_graphgym.models.propagation import SparseOperator

LABEL_FOLDS = 5  # a node whose label is known sees the labels of the other four fifths
NODES_AT_ONCE = 1 << 16  # in inference


@dataclass(frozen=True)
class SelfTraining:
    """Reliable label utilisation (RLU, Zhang et al. 2022): a network's own confident predictions as further targets.

    The network is trained in stages, each from fresh weights, and each but the first with soft labels of the nodes that
    the stage before was sure of. Validation picks the stage. A baseline for steps on gold labels alone: in GLEM the
    pseudo-labels of the language model take that place.

    Attributes:
        stages: 1 = no self-training.
        threshold: of the top probability, 0-1; nodes above it become targets of the next stage.
        weight: of their term in the loss, 0-1, as β of an M-step.
    """

    stages: int = 1
    threshold: float = 0.9
    weight: float = 0.5


@dataclass(frozen=True)
class Consistency:
    """Consistency regularisation (SCR, Zhang et al. 2021): unlabelled nodes of every batch against a mean teacher.

    As many of them as the batch has labelled ones are drawn anew every epoch.

    Attributes:
        weight: of `consistency_loss` beside the objective; 0 = off.
        ema: the teacher's decay, a share below 1.
        threshold: top probability of the teacher, a share below 1, that a node must exceed to count.
    """

    weight: float = 0.0
    ema: float = 0.99
    threshold: float = 0.8


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
        predicted: as of a `GNNLearner`.
        storage: keeps hop features on disk where they exceed its budget; structures must then be `StoredGraph`s. None:
            all is in memory.
        unlabelled: int64, nodes that self-training and consistency may use.
        self_training, consistency: RLU and SCR.
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
        predicted: np.ndarray | None = None,
        storage: HopStorage | None = None,
        unlabelled: np.ndarray | None = None,
        self_training: SelfTraining | None = None,
        consistency: Consistency | None = None,
    ) -> None:
        super().__init__(build, structures, make_optimizer, settings, validation, hardware, predicted=predicted)
        self.operator, self.hops, self.label_hops, self.batch_size = operator, hops, label_hops, batch_size
        self.storage = storage
        self.unlabelled = np.empty(0, dtype=np.int64) if unlabelled is None else unlabelled
        self.self_training, self.consistency = self_training or SelfTraining(), consistency or Consistency()
        self.hop_features: Tensor | MappedHops | None = None
        self.label_features: Tensor | MappedHops | None = None

    # ---- training --------------------------------------------------------------------------------------------------

    @property
    def trains_again(self) -> bool:
        return self.self_training.stages > 1 or super().trains_again

    @property
    def together(self) -> bool:
        """Not with consistency, whose mean over a batch's confident nodes is no sum over parts of the batch."""
        return self.consistency.weight == 0

    def fit(self, targets: StepTargets, features: Any, title: str) -> FitLog:
        """Train a new network on float (N, D) ``features``, an array or `FeatureRows`, and ``targets``."""
        log = super().fit(targets, features, title)
        if targets.pseudo is None and self.self_training.stages > 1:
            self._train_on_own_predictions(targets, log, tuple(features.shape), title)
        return log

    def _train_on_own_predictions(self, targets: StepTargets, log: FitLog, shape: tuple[int, int], title: str) -> None:
        """The later stages of `SelfTraining`; leaves the best stage's weights, and all stages in ``log``."""
        assert self.model is not None
        best = self.weights()
        for stage in range(2, self.self_training.stages + 1):
            own = self._confident(targets.gold, shape[0])
            if not len(own.nodes):
                break
            everything = len(own.nodes) / max(1, len(targets.gold.nodes)) + 1.0
            made = replace(targets, pseudo=own, weight=self.self_training.weight, ratio=everything, redraw=False)
            if isinstance(self.hop_features, MappedHops):
                self._check_batch(made.num_trained, shape[1])
            self.take_model(shape[1], targets.gold.num_classes, None)
            if self.train_further(made, log, f"{title}, stage {stage}"):
                best = self.weights()
        self.model.load_state_dict(best)

    def _confident(self, gold: Gold, num_nodes: int) -> PseudoLabels:
        """Soft labels of the unlabelled nodes that the present network is sure of."""
        logits = np.zeros((num_nodes, gold.num_classes), dtype=np.float16)
        sure = []
        for nodes, found in self._evaluated(self.unlabelled):
            logits[nodes] = half(found)
            top = torch.from_numpy(logits[nodes].astype(np.float32)).softmax(-1).amax(-1).numpy()
            sure.append(nodes[top > self.self_training.threshold])
        return PseudoLabels(logits, np.concatenate([np.empty(0, dtype=np.int64), *sure]), gold)

    # ---- hop features ----------------------------------------------------------------------------------------------

    def load(self, targets: StepTargets, features: Any, weights: Weights | None) -> None:
        self.hop_features = self.label_features = None  # let go of what an earlier step held
        num_nodes, width = features.shape
        known = torch.zeros(num_nodes, dtype=torch.bool)
        known[torch.from_numpy(targets.gold.nodes)] = True
        if targets.pseudo is not None:
            known[torch.from_numpy(targets.pseudo.candidates)] = True
        generator = torch.Generator().manual_seed(targets.seed)
        folds = draw_folds(known, LABEL_FOLDS, generator) if self.settings.label_input else None
        if self._is_stored(num_nodes, width, targets.gold.num_classes):
            self._load_stored(targets, features, folds)
        else:
            self._load_in_memory(targets, features, folds)
        self.take_model(width, targets.gold.num_classes, weights)

    def _load_in_memory(self, targets: StepTargets, features: Any, folds: Tensor | None) -> None:
        x = torch.from_numpy(np.array(features, dtype=np.float32))

        def propagated(operator: SparseOperator, nodes: Any) -> Tensor:
            return propagate(operator, seen := x[nodes], self.hops, self._empty(self.hops + 1, seen))

        self.hop_features = self._merged(propagated)
        if folds is not None:
            labels = label_channel(len(x), targets)

            def label_hops(operator: SparseOperator, nodes: Any) -> Tensor:
                seen = labels[nodes]
                return fold_label_hops(operator, seen, folds[nodes], self.label_hops, self._empty(1, seen), keep=1)

            self.label_features = self._merged(label_hops)

    def _empty(self, hops: int, x: Tensor) -> Tensor:
        return torch.empty(hops, *x.shape, dtype=self.hardware.dtype)

    def _load_stored(self, targets: StepTargets, features: Any, folds: Tensor | None) -> None:
        assert self.storage is not None
        rows = FeatureRows.of(features)
        self._check_batch(targets.num_trained, rows.shape[1])
        self.hop_features = self.storage.features(self.structures, rows, self.hops)
        if folds is not None:
            labels = LabelRows(len(rows), targets)
            small = folds.to(torch.int8).numpy()
            self.label_features = self.storage.labels(self.structures, labels, small, self.label_hops)

    def _is_stored(self, num_nodes: int, width: int, num_classes: int) -> bool:
        if self.storage is None:
            return False
        entries, classes = len(self.structures.train.col), num_classes if self.settings.label_input else 0
        return not self.storage.fits(num_nodes, entries, width, self.hops, classes)

    def _check_batch(self, trained: int, width: int) -> None:
        """
        Raises:
            ValueError: an optimizer step's hop features exceed the budget; says which batch size does not.
        """
        assert self.storage is not None
        sizes, item_bytes = (trained, self.batch_size, self.hops, width), self.hardware.dtype.itemsize
        check_batch(self.storage.budget, *sizes, item_bytes, beside=self.consistency.weight > 0)

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
        """Hop features (K+1, B, D) and label features (1, B, C) or None of ``nodes`` int64 (B,), of training's type."""
        assert self.hop_features is not None, "fit or load a model first"
        labels = None if self.label_features is None else _rows(self.label_features, nodes)
        return _rows(self.hop_features, nodes), labels

    def logits(self, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Parts of ``nodes``, each with its logits."""
        assert self.model is not None
        assert self.hop_features is not None, "fit or load a model first"
        device = next(self.model.parameters()).device
        at_once = NODES_AT_ONCE
        if self.storage is not None:
            at_once = self.storage.rows_at_once(self.hops, self.hop_features.shape[2], NODES_AT_ONCE)
        for start in range(0, len(nodes), at_once):
            part = nodes[start : start + at_once]
            hops, labels = self.batch(part)
            yield part, self.model(hops.to(device), None if labels is None else labels.to(device))

    def predict(self, logits: np.ndarray) -> None:
        """As of a `GNNLearner`; then lets go of hop features on disk, whose space is wanted for the next step's."""
        for nodes, found in self._evaluated(self.predicted_of(len(logits))):
            logits[nodes] = half(found)
        if isinstance(self.hop_features, MappedHops):
            self.hop_features = self.label_features = None

    def _evaluated(self, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """As `logits`, of a network that is not being trained."""
        assert self.model is not None, "fit or load a model first"
        self.model.to(self.hardware.device).eval()
        with torch.inference_mode(), self.hardware.autocast():
            yield from self.logits(nodes)


class _HopTask(StepTask):
    """Random batches of an epoch's nodes, and unlabelled nodes beside them where consistency is asked for."""

    def __init__(self, targets: StepTargets, learner: HopLearner) -> None:
        super().__init__(targets, learner)
        self.learner = learner
        self.teacher: MeanTeacher | None = None
        if learner.consistency.weight > 0:
            self.teacher = MeanTeacher(self.model, learner.consistency.ema)

    def train_dataloader(self) -> DataLoader:
        nodes, target, is_gold = self.targets.batch(self.current_epoch)
        rng = np.random.default_rng([self.targets.seed, self.current_epoch, 3])
        order = rng.permutation(len(nodes))
        batches = even_batches(order, self.learner.batch_size)
        beside = np.array_split(self._unlabelled(len(order)), len(batches))

        def collate(both: tuple[np.ndarray, np.ndarray]) -> tuple[Any, ...]:
            batch, more = both
            num_gold = int(is_gold[batch].sum())
            counts = (num_gold, len(batch) - num_gold)
            part, more = (all_of[processes.rank() :: processes.world_size()] for all_of in (batch, more))
            return (*self.learner.batch(np.concatenate([nodes[part], more])), target[part], is_gold[part], counts)

        return DataLoader(list(zip(batches, beside, strict=True)), batch_size=None, collate_fn=collate)  # type: ignore[arg-type]

    def _unlabelled(self, count: int) -> np.ndarray:
        """Nodes of an epoch whose predictions are held against the teacher's."""
        if self.teacher is None:
            return np.empty(0, dtype=np.int64)
        rng = np.random.default_rng([self.targets.seed, self.current_epoch, 4])
        return rng.permutation(self.learner.unlabelled)[:count]

    def val_dataloader(self) -> DataLoader:
        return DataLoader([0], batch_size=None)  # type: ignore[arg-type]

    def training_step(self, batch: tuple[Any, ...], batch_idx: int) -> Tensor:
        hops, labels, target, is_gold, counts = batch
        logits, known = self.model(hops, labels), len(target)
        loss = glem_loss(logits[:known], target, is_gold, self.targets.weight, counts=counts) * processes.world_size()
        if self.teacher is None or known == len(logits):
            return loss
        inputs = (hops[:, known:], None if labels is None else labels[:, known:])
        how = self.learner.consistency
        return loss + how.weight * consistency_loss(logits[known:], self.teacher(*inputs), confidence=how.threshold)

    def on_train_batch_end(self, *_: Any) -> None:
        if self.teacher is not None:
            self.teacher.update(self.model)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        for nodes, logits in self.learner.logits(self.validation.nodes[processes.rank() :: processes.world_size()]):
            self.see(nodes, logits)


def _rows(hops: Tensor | MappedHops, nodes: np.ndarray) -> Tensor:
    """(hops, B, …) of some nodes."""
    return hops.read(nodes) if isinstance(hops, MappedHops) else hops[:, torch.from_numpy(nodes)]
