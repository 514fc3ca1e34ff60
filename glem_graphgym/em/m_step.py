"""The M-step: with the language model fixed, train the GNN p_φ on gold and pseudo-labels, then predict all nodes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from glem_graphgym.em.checkpoint import Checkpoint
from glem_graphgym.em.fit import Batches, FitPlan, Fitted, Task, Validation, Weights, fit, to_float16
from glem_graphgym.em.inputs import FOLDS, GNNInputs
from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.pseudo_labels import StepTargets
from glem_graphgym.hardware import Hardware, sent
from glem_graphgym.models.propagation import mark_constant

# (loss of the objective, logits of all nodes in the batch, targets or not) -> loss
AdjustLoss = Callable[[Tensor, Tensor], Tensor]
# (learner, its first GNN, title, checkpoint) -> the best of this and of further GNNs, with the log of all
FurtherRounds = Callable[[Any, Fitted, str, Checkpoint | None], Fitted]


@dataclass(frozen=True)
class GNNSettings:
    """Settings of the GNN's training in one step.

    Attributes:
        epochs, eval_every, patience: see `FitPlan`; full-batch training makes one step per epoch.
        lr: base learning rate, only recorded; the optimizer has its own.
        label_input: concatenate labels to the features: y_L and ŷ_U, with a target's own label hidden.
        label_input_rate: share 0-1 of the gold labels that are input in an epoch; the other gold nodes are its targets.
            Likewise at most 1 / `FOLDS` of the candidates for pseudo-labels are targets of an epoch.
    """

    epochs: int = 200
    lr: float = 0.0
    eval_every: int = 1
    patience: int = 0
    label_input: bool = False
    label_input_rate: float = 0.5


@dataclass(frozen=True)
class GraphViews:
    """The graph for training and the graph for prediction: an `Adjacency` each, or a `MmapGraph`.

    Attributes:
        train: edges among the nodes that training may see.
        predict: edges among all N nodes.
        observed_nodes: int64 (n,), increasing: the nodes of ``train``, in its order; None = all N (transductive).
    """

    train: Any
    predict: Any
    observed_nodes: np.ndarray | None = None


@dataclass(frozen=True)
class LabelReuse:
    """Label reuse (Wang et al. 2021): the model's predictions stand in for the labels that are missing in its input.

    They are made in ``passes`` forward passes without gradient, before the forward pass itself.
    """

    passes: int

    def fill(self, inputs: GNNInputs, x: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Fill the missing and hidden labels of the input ``x`` (N, D + C) with the model's predictions."""
        labels = x[:, inputs.x.shape[1] :]
        unknown = ~labels.any(dim=1, keepdim=True)
        with torch.no_grad():
            for _ in range(self.passes):
                predicted = logits_of(x).float().softmax(-1).to(labels)
                x = torch.cat([inputs.x, torch.where(unknown, predicted, labels)], dim=1)
        return x


class GNNTask(Task):
    """A GNN with the inputs and targets of one M-step: it can be trained, and predicts.

    Args:
        inputs: input of the GNN, in which labels can be hidden.
        adjust_loss: applied to the objective's loss; None = unchanged.
    """

    def __init__(
        self, learner: Any, inputs: Any, targets: StepTargets, model: nn.Module, adjust_loss: AdjustLoss | None = None
    ) -> None:
        super().__init__(model, learner.validation, targets.gold.class_weights)
        self.learner, self.inputs, self.targets, self.adjust_loss = learner, inputs, targets, adjust_loss

    def reinitialised(self, targets: StepTargets | None = None, adjust_loss: AdjustLoss | None = None) -> GNNTask:
        """Another GNN with fresh weights and the same inputs."""
        targets = targets or self.targets
        module = self.learner.module(self.inputs.dim, targets)
        return type(self)(self.learner, self.inputs, targets, module, adjust_loss)

    def optimizer(self, num_steps: int) -> tuple[torch.optim.Optimizer, Any, str]:
        return *self.learner.make_optimizer(self.model.parameters()), "epoch"

    def predict(self, logits: np.ndarray, nodes: np.ndarray | None = None) -> None:
        """Write ``logits`` (N, C) of ``nodes``, int64; None = of the learner's ``predicted`` nodes, or of all."""
        nodes = self.learner.predicted if nodes is None else nodes
        self.model.to(self.learner.hardware.device).eval()
        with torch.inference_mode(), self.learner.hardware.autocast():
            for group, values in self.exact_logits(np.arange(len(logits)) if nodes is None else nodes):
                logits[group] = to_float16(values)

    def exact_logits(self, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield ``nodes``, int64, in groups, each with its logits (n, C), computed from all that prediction may see."""
        raise NotImplementedError

    def epoch_targets(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """An epoch's int64 (n,) nodes, float32 (n, C) targets and bool (n,) is-gold; none of the labels is an input."""
        nodes, target, is_gold = self.targets.batch(epoch)
        settings = self.learner.settings
        if not settings.label_input:
            return torch.from_numpy(nodes), target, is_gold
        # Nodes whose labels are input in this epoch are not targets: a share of the gold nodes, and so many pseudo
        # nodes that the input hides no more labels than in prediction, which hides one fold at a time.
        rng = np.random.default_rng([self.targets.seed, epoch, 2])
        gold = is_gold.numpy()
        is_input = gold & (rng.random(len(nodes)) < settings.label_input_rate)
        if not (gold & ~is_input).any():
            is_input = np.zeros(len(nodes), dtype=bool)
        if self.targets.pseudo is not None:  # targets: random pseudo nodes, at most as many as a fold of the candidates
            is_input[rng.permutation(np.flatnonzero(~gold))[-(-len(self.targets.pseudo.candidates) // FOLDS) :]] = True
        positions = torch.from_numpy(np.flatnonzero(~is_input))
        return torch.from_numpy(nodes)[positions], target[positions], is_gold[positions]


class FullBatchTask(GNNTask):
    """Trains with one step on the whole graph per epoch."""

    inputs: GNNInputs
    _constant_targets: tuple[Tensor, ...] | None = None

    def batches(self, epoch: int) -> Batches:
        return Batches([epoch], self._targets_on_device)

    def _targets_on_device(self, epoch: int) -> tuple[Tensor, ...]:
        """`epoch_targets`; if every epoch has the same, they are moved to the device once."""
        if self.learner.settings.label_input or (self.targets.redraw and self.targets.pseudo is not None):
            return self.epoch_targets(epoch)
        if self._constant_targets is None:
            self._constant_targets = tuple(
                sent(tensor, self.learner.hardware.device) for tensor in self.epoch_targets(0)
            )
        return self._constant_targets

    def forward(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        nodes, target, is_gold = batch
        logits = self._reusing_labels(self.inputs.hiding(nodes), self.train_graph_logits)
        target_logits = logits.index_select(0, nodes)
        loss = glem_loss(target_logits, target, is_gold, self.targets.weight, class_weights=self.class_weights)
        return loss if self.adjust_loss is None else self.adjust_loss(loss, logits)

    def validated(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        for nodes, x in self.inputs.for_prediction(self.validation.nodes):
            logits = self._reusing_labels(x, self.train_graph_logits)
            yield nodes, logits.index_select(0, sent(nodes, logits.device))

    def exact_logits(self, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        for group, x in self.inputs.for_prediction(nodes):
            yield group, self._reusing_labels(x, self.all_logits).index_select(0, sent(group, x.device))

    def _reusing_labels(self, x: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits (N, C) of the input ``x`` (N, D [+ C]), after label reuse if it is on."""
        reuse = self.learner.label_reuse
        return logits_of(x if reuse is None else reuse.fill(self.inputs, x, logits_of))

    def train_graph_logits(self, x: Tensor) -> Tensor:
        """Logits (N, C) of input ``x`` (N, D) on the training graph; zeros for the nodes that it does not have."""
        train, nodes = self._training_graph
        if nodes is None:
            return self.model(x, train)
        logits = self.model(x.index_select(0, nodes), train)
        return logits.new_zeros(len(x), logits.shape[1]).index_copy(0, nodes, logits)

    def all_logits(self, x: Tensor) -> Tensor:
        """`train_graph_logits` (N, C), and for unobserved nodes logits on the graph for prediction."""
        logits, (_, nodes) = self.train_graph_logits(x), self._training_graph
        if nodes is not None:
            unseen = torch.ones(len(x), dtype=torch.bool, device=x.device)
            unseen[nodes] = False
            logits[unseen] = self.model(x, self.learner.graphs.predict.to(x.device))[unseen]
        return logits

    @functools.cached_property
    def _training_graph(self) -> tuple[Any, Tensor | None]:
        """The graph for training and its nodes (see `GraphViews.observed_nodes`), on the training device."""
        graphs, device = self.learner.graphs, self.learner.hardware.device
        return graphs.train.to(device), None if graphs.observed_nodes is None else sent(graphs.observed_nodes, device)


@dataclass(frozen=True)
class GNNLearner:
    """Learner of p_φ(y_n | s_V, A, y_{V∖n}), the GNN, in full batch.

    Attributes:
        build: (dim_in, num_classes) -> module with ``forward(x (N, D), graph) -> logits (N, C)``.
        graphs: the graphs for this module.
        make_optimizer: parameters -> (optimizer, learning-rate schedule counted in epochs).
        validation: selects the weights.
        predicted: int64, increasing: the nodes whose logits are predicted; None = all.
        label_reuse: only with label input and in full batch; None = off.
        further_rounds: trains further GNNs after one on gold labels alone, see `em.on_gold`; None = off.
        task: the class of the task that `start` makes.
        in_batches: whether an epoch has several steps, each on a part of the targets.
    """

    build: Callable[[int, int], nn.Module]
    graphs: GraphViews
    make_optimizer: Callable[[Iterator[nn.Parameter]], tuple[Any, Any]]
    settings: GNNSettings
    validation: Validation
    hardware: Hardware
    predicted: np.ndarray | None = None
    label_reuse: LabelReuse | None = None
    further_rounds: FurtherRounds | None = None

    task: ClassVar[type[GNNTask]] = FullBatchTask
    in_batches: ClassVar[bool] = False

    @property
    def data_parallel(self) -> bool:
        """Whether all ranks train it together; a full batch is not split, so rank 0 trains it alone."""
        return False

    def start(self, targets: StepTargets, features: Any, weights: Weights | None = None) -> GNNTask:
        """A task on ``features``, float (N, D) array or, on disk, `FeatureRows`, with fresh weights or ``weights``."""
        inputs = self._inputs(features, targets)
        return self.task(self, inputs, targets, self.module(inputs.dim, targets, weights))

    def _inputs(self, features: Any, targets: StepTargets) -> Any:
        x = torch.from_numpy(np.asarray(features, dtype=np.float32)).to(self.hardware.device, self.hardware.dtype)
        return GNNInputs(mark_constant(x), targets if self.settings.label_input else None)

    def module(self, dim_in: int, targets: StepTargets, weights: Weights | None = None) -> nn.Module:
        """A new network for inputs of width ``dim_in``, with fresh weights or, if given, ``weights``."""
        module = self.build(dim_in, targets.gold.num_classes)
        if weights is not None:
            module.load_state_dict(weights)
        return module

    def work(self, targets: StepTargets, encoded: np.ndarray) -> dict[str, float]:
        """Work of a step by progress-bar unit, comparable between steps: nodes or, in full batch, epochs.

        Empty with further rounds, as their number is not known beforehand.
        """
        if self.further_rounds is not None and targets.pseudo is None:
            return {}
        return {"batch": self.settings.epochs * (targets.num_trained if self.in_batches else 1)}

    def model_for(self, width: int, num_classes: int) -> nn.Module:
        """The network of a step on node features of width ``width``."""
        return self.build(width + (num_classes if self.settings.label_input else 0), num_classes)

    def fit(self, targets: StepTargets, features: Any, title: str, checkpoint: Checkpoint | None = None) -> Fitted:
        """Train a new GNN and, if there are further rounds, some more; see `em.fit.fit`."""
        first = self.fit_task(self.start(targets, features), title, checkpoint)
        if self.further_rounds is None or targets.pseudo is not None:
            return first
        return self.further_rounds(self, first, title, checkpoint)

    def fit_task(self, task: GNNTask, title: str, checkpoint: Checkpoint | None = None) -> Fitted:
        """Train the GNN of a task that `start` made."""
        s = self.settings
        plan = FitPlan(title, s.epochs, s.eval_every, patience=s.patience)
        return Fitted(task, fit(task, plan, self.hardware, checkpoint))
