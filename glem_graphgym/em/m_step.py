"""The M-step: with the language model fixed, train the GNN p_φ on gold and pseudo-labels, then predict all nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.pseudo_labels import PseudoLabels, StepTargets
from glem_graphgym.em.stage import FitLog, FitPlan, Hardware, Task, Validation, Weights, fit, half

FOLDS = 2  # parts in which nodes' own pseudo-labels are hidden when all nodes are predicted with label input


@dataclass(frozen=True)
class GNNSettings:
    """How the GNN is trained in one step.

    Attributes:
        epochs: full-batch steps at most.
        lr: base learning rate, for the record; the optimizer has its own.
        eval_every: epochs between validations.
        patience: validations without a better score before training stops; 0 = never.
        clip: upper bound of the gradient norm, 0 = none.
        label_input: concatenate labels to the features: y_L and ŷ_U, a target's own label hidden.
        label_input_rate: share 0-1 of the gold labels given as input in an epoch; the other gold nodes are its targets.
            Of the candidates for pseudo-labels at most 1 / `FOLDS` are targets at a time, for the same reason.
        label_reuse: with label input, how many times predictions take the place of the labels that are not given,
            before the pass that counts (label reuse, Wang et al. 2021).
        distillation: share 0-1 of the loss that holds the predictions of all nodes against those of a teacher: the same
            network, trained before without this term (self-distillation). Of steps on gold labels alone: in GLEM the
            pseudo-labels of the language model take that place. 0 = off.
        distillation_temperature: T of both distributions.
    """

    epochs: int = 200
    lr: float = 0.0
    eval_every: int = 1
    patience: int = 0
    clip: float = 0.0
    label_input: bool = False
    label_input_rate: float = 0.5
    label_reuse: int = 0
    distillation: float = 0.0
    distillation_temperature: float = 1.0


@dataclass(frozen=True)
class Structures:
    """The graph as the GNN's `forward` takes it: what training and what prediction may see.

    Attributes:
        train: structure among the nodes that training may see.
        predict: structure among all N nodes.
        seen: int64 (n,), the nodes of ``train`` in its order; None where it has all N (transductive).
    """

    train: Any
    predict: Any
    seen: np.ndarray | None = None


class GNNLearner:
    """p_φ(y_n | s_V, A, y_{V∖n}): `fit` it on a step's targets and features, `predict` all nodes.

    Args:
        build: (dim_in, num_classes) -> module with ``forward(x (N, D), structure) -> logits (N, C)``.
        structures: what `build`'s module takes as ``structure``.
        make_optimizer: parameters -> (optimizer, learning-rate schedule counted in epochs).
        validation: selects the weights.
        hardware: device and precision.
        predicted: int64, increasing: the nodes that `predict` writes logits of; None = all.
    """

    new_batches = False  # an epoch is one batch, always the same

    def __init__(
        self,
        build: Callable[[int, int], nn.Module],
        structures: Structures,
        make_optimizer: Callable[[Iterator[nn.Parameter]], tuple[Any, Any]],
        settings: GNNSettings,
        validation: Validation,
        hardware: Hardware,
        *,
        predicted: np.ndarray | None = None,
    ) -> None:
        self.build, self.structures, self.make_optimizer = build, structures, make_optimizer
        self.settings, self.validation, self.hardware = settings, validation, hardware
        self.predicted = predicted
        self.model: nn.Module | None = None
        self.inputs: GNNInputs | None = None
        self.teacher: Tensor | None = None

    def fit(self, targets: StepTargets, features: np.ndarray, title: str) -> FitLog:
        """Train a new GNN on float (N, D) ``features`` and ``targets``."""
        self.load(targets, features, None)
        log = self.train(targets, title)
        if self.settings.distillation > 0 and targets.pseudo is None:
            self._distil(targets, log, title)
        return log

    def _distil(self, targets: StepTargets, log: FitLog, title: str) -> None:
        """Train a student of the GNN that is loaded; leaves the better one's weights, and both in ``log``."""
        assert self.model is not None and self.inputs is not None
        best = self.weights()
        logits = np.zeros((len(self.inputs.x), targets.gold.num_classes), dtype=np.float16)
        for nodes, found in self.predictions(np.arange(len(logits))):
            logits[nodes] = found
        self.teacher = torch.from_numpy(logits).float().to(self.hardware.device)
        self.take_model(self.inputs.dim, targets.gold.num_classes, None)
        if not self.train_further(targets, log, f"{title}, student"):
            self.model.load_state_dict(best)
        self.teacher = None

    def weights(self) -> Weights:
        """A copy of those of the GNN that is loaded."""
        assert self.model is not None
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def train_further(self, targets: StepTargets, log: FitLog, title: str) -> bool:
        """Train the GNN that is loaded as one more stage of ``log``; whether it is better than those before."""
        found = self.train(targets, title)
        better = found.best_score > log.best_score
        if better:
            log.best_score, log.best_epoch = found.best_score, log.epochs + found.best_epoch
        log.history += [{**row, "epoch": log.epochs + row["epoch"]} for row in found.history]
        log.epochs += found.epochs
        return better

    def train(self, targets: StepTargets, title: str) -> FitLog:
        """Train the GNN that is loaded."""
        task, settings = self.task(targets), self.settings
        plan = FitPlan(
            title,
            settings.epochs,
            settings.eval_every,
            settings.patience,
            clip=settings.clip,
            new_batches=self.new_batches,
        )
        return fit(task, plan, self.hardware)

    def task(self, targets: StepTargets) -> Task:
        """What `fit` trains, once the model is loaded."""
        return GNNTask(targets, self)

    def load(self, targets: StepTargets, features: np.ndarray, weights: Weights | None) -> None:
        """Take a new GNN for these features, with fresh weights or, where given, ``weights``."""
        num_classes = targets.gold.num_classes
        x = torch.from_numpy(np.asarray(features, dtype=np.float32)).to(self.hardware.device, self.hardware.dtype)
        self.inputs = GNNInputs(x, targets) if self.settings.label_input else GNNInputs(x, None)
        self.take_model(self.inputs.dim, num_classes, weights)

    def take_model(self, dim_in: int, num_classes: int, weights: Weights | None) -> None:
        """A new model for inputs of that width, with fresh weights or, where given, ``weights``."""
        self.model = self.build(dim_in, num_classes)
        if weights is not None:
            self.model.load_state_dict(weights)

    def predict(self, logits: np.ndarray) -> None:
        """Write all nodes' logits (N, C), or those of the ``predicted`` ones, into the given array."""
        for nodes, found in self.predictions(self.predicted_of(len(logits))):
            logits[nodes] = found

    def predictions(self, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Groups of int64 ``nodes`` that together are all of them, each with its float16 logits (n, C)."""
        assert self.model is not None and self.inputs is not None, "fit or load a model first"
        self.model.to(self.hardware.device).eval()
        with torch.inference_mode(), self.hardware.autocast():
            for group, x in self.inputs.for_prediction(nodes):
                yield group, half(self.reusing_labels(x, self.all_logits)[torch.from_numpy(group)])

    def reusing_labels(self, x: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits (N, C) of the input ``x`` (N, D + C), after `GNNSettings.label_reuse` passes that fill its labels.

        A node whose label is hidden gets what is predicted of it where it was hidden, so it learns nothing of its own.
        """
        if self.settings.label_reuse == 0:
            return logits_of(x)
        assert self.inputs is not None
        unknown = self.inputs.without_label(x)
        with torch.no_grad():
            for _ in range(self.settings.label_reuse):
                x = self.inputs.filled(x, unknown, logits_of(x).float().softmax(-1))
        return logits_of(x)

    @property
    def trains_again(self) -> bool:
        """Whether a step on gold labels alone trains more than once."""
        return self.settings.distillation > 0

    @property
    def together(self) -> bool:
        """Whether all processes of a run train it; a full batch cannot be shared, so the first trains it alone."""
        return False

    def predicted_of(self, num_nodes: int) -> np.ndarray:
        """int64 (n,): the nodes that are predicted."""
        return np.arange(num_nodes) if self.predicted is None else self.predicted

    def seen_logits(self, x: Tensor) -> Tensor:
        """Logits (N, C) of inputs (N, D): of the nodes that training sees, from what it sees; zeros for the others."""
        assert self.model is not None
        structure = self.structures.train.to(x.device)
        if self.structures.seen is None:
            return self.model(x, structure)
        seen = torch.from_numpy(self.structures.seen).to(x.device)
        logits = self.model(x[seen], structure)
        return logits.new_zeros(len(x), logits.shape[1]).index_copy(0, seen, logits)

    def all_logits(self, x: Tensor) -> Tensor:
        """Logits (N, C) of inputs (N, D): those of unseen nodes from all that prediction may see of the graph."""
        assert self.model is not None
        logits = self.seen_logits(x)
        if self.structures.seen is not None:
            unseen = torch.ones(len(x), dtype=torch.bool, device=x.device)
            unseen[torch.from_numpy(self.structures.seen)] = False
            logits[unseen] = self.model(x, self.structures.predict.to(x.device))[unseen]
        return logits


class GNNInputs:
    """The GNN's input features (N, D), with a label channel (N, C) where labels are an input.

    In the channel a gold node has its one-hot label and a candidate for a pseudo-label its distribution ŷ; a node
    whose label is to be predicted has zeros, so no prediction can see its own label (y_{V∖n}; y_{L∖n} in O(φ)).

    Args:
        x: float (N, D).
        targets: the step's labels, or None without label input.
    """

    def __init__(self, x: Tensor, targets: StepTargets | None) -> None:
        self.x = x
        self.labels: Tensor | None = None
        if targets is not None:
            self.labels = label_channel(len(x), targets).to(x)
            self.gold = targets.gold.nodes

    @property
    def num_nodes(self) -> int:
        return len(self.x)

    @property
    def dim(self) -> int:
        return self.x.shape[1] + (0 if self.labels is None else self.labels.shape[1])

    def hiding(self, nodes: np.ndarray) -> Tensor:
        """(N, D [+ C]), of the features' type: the input without the labels of ``nodes``, indices or bool (N,)."""
        return with_labels(self.x, None if self.labels is None else self.labels.clone(), torch.from_numpy(nodes))

    def without_label(self, x: Tensor) -> Tensor:
        """bool (N,): nodes of which the input ``x`` tells no label."""
        assert self.labels is not None, "there is no label input"
        return ~x[:, self.x.shape[1] :].any(dim=1)

    def filled(self, x: Tensor, nodes: Tensor, labels: Tensor) -> Tensor:
        """The input ``x`` with the distributions ``labels`` (N, C) at the bool (N,) ``nodes``."""
        assert self.labels is not None, "there is no label input"
        known = x[:, self.x.shape[1] :]
        return torch.cat([self.x, torch.where(nodes[:, None], labels.to(known), known)], dim=1)

    def rows(self, nodes: np.ndarray, hidden: Tensor | slice) -> Tensor:
        """(n, D [+ C]): the input of ``nodes``, int64 (n,), without the labels of its ``hidden`` rows."""
        places = torch.from_numpy(nodes)
        return with_labels(self.x[places], None if self.labels is None else self.labels[places], hidden)

    def for_prediction(self, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Groups of ``nodes`` that together are all of them, each with an input that hides the group's own labels."""
        if self.labels is None:
            yield nodes, self.x
            return
        for group, fold in prediction_folds(self.num_nodes, self.gold, nodes):
            yield group, self.hiding(fold)


def with_labels(x: Tensor, labels: Tensor | None, hidden: Tensor | slice) -> Tensor:
    """Features (n, D) and, where there are any, labels (n, C) beside them without the ``hidden`` rows'.

    Args:
        labels: the caller's own copy, in which these become zeros.
    """
    if labels is None:
        return x
    labels[hidden] = 0
    return torch.cat([x, labels], dim=1)


def prediction_folds(num_nodes: int, gold: np.ndarray, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Groups of ``nodes`` that together are all of them, each with bool (N,): the nodes whose labels its input hides.

    The graph's unlabelled nodes and its gold nodes each fall into `FOLDS` folds, and a node's input hides the labels of
    its whole fold, whichever ``nodes`` are asked for. So unlabelled nodes see every gold label.

    Args:
        num_nodes: N; gold: int64, those with a gold label.
        nodes: int64, increasing.
    """
    fold_of = np.zeros(num_nodes, dtype=np.int8)
    fold_of[gold] = FOLDS
    for fold in range(FOLDS):
        fold_of[fold::FOLDS] += fold
    for fold in np.unique(fold_of[nodes]).tolist():
        yield nodes[fold_of[nodes] == fold], fold_of == fold


def label_channel(num_nodes: int, targets: StepTargets) -> Tensor:
    """float32 (N, C): one-hot gold labels and soft or hard pseudo-labels of all candidates; zeros elsewhere."""
    channel = torch.zeros(num_nodes, targets.gold.num_classes)
    pseudo: PseudoLabels | None = targets.pseudo
    if pseudo is not None:
        channel[torch.from_numpy(pseudo.candidates)] = pseudo.targets(pseudo.candidates)
    channel[torch.from_numpy(targets.gold.nodes)] = targets.gold.targets()
    return channel


class StepTask(Task):
    """A loaded GNN with its targets and the learner's optimizer, whose schedule counts epochs."""

    def __init__(self, targets: StepTargets, learner: GNNLearner) -> None:
        assert learner.model is not None, "load a model first"
        super().__init__(learner.model, learner.validation)
        self.targets = targets
        self.make_optimizer = learner.make_optimizer

    def configure_optimizers(self) -> Any:
        optimizer, schedule = self.make_optimizer(self.model.parameters())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


class GNNTask(StepTask):
    """One full-batch step an epoch."""

    def __init__(self, targets: StepTargets, learner: GNNLearner) -> None:
        super().__init__(targets, learner)
        self.learner = learner

    def train_dataloader(self) -> DataLoader:
        return DataLoader([0], batch_size=None)  # type: ignore[arg-type]

    val_dataloader = train_dataloader

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        nodes, target, is_gold = self.epoch_targets()
        inputs = self.learner.inputs
        assert inputs is not None
        logits = self.learner.reusing_labels(inputs.hiding(nodes), self.learner.seen_logits)
        place = torch.from_numpy(nodes).to(self.device)
        loss = glem_loss(logits[place], target.to(self.device), is_gold.to(self.device), self.targets.weight)
        if self.learner.teacher is None:
            return loss
        settings, seen = self.learner.settings, self.learner.structures.seen
        nodes_of = slice(None) if seen is None else torch.from_numpy(seen).to(self.device)
        distance = distillation_loss(
            logits[nodes_of], self.learner.teacher[nodes_of], settings.distillation_temperature
        )
        return (1 - settings.distillation) * loss + settings.distillation * distance

    def epoch_targets(self) -> tuple[np.ndarray, Tensor, Tensor]:
        """An epoch's int64 (n,) nodes, float32 (n, C) targets and bool (n,) is-gold; none of the labels is an input."""
        nodes, target, is_gold = self.targets.batch(self.current_epoch)
        settings = self.learner.settings
        if not settings.label_input:
            return nodes, target, is_gold
        # Nodes whose labels are given as input this epoch are no targets: that share of the gold nodes, and as many
        # pseudo nodes as must stay visible for the input to look as it does when all nodes are predicted.
        rng = np.random.default_rng([self.targets.seed, self.current_epoch, 2])
        gold = is_gold.numpy()
        given = gold & (rng.random(len(nodes)) < settings.label_input_rate)
        if not (gold & ~given).any():
            given = np.zeros(len(nodes), dtype=bool)
        given[self._surplus(np.flatnonzero(~gold), rng)] = True
        return nodes[~given], target[~given], is_gold[~given]

    def _surplus(self, pseudo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Of the places of pseudo nodes those beyond what one fold of the candidates hides, at random."""
        if self.targets.pseudo is None:
            return pseudo
        return rng.permutation(pseudo)[-(-len(self.targets.pseudo.candidates) // FOLDS) :]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert self.learner.inputs is not None
        for nodes, x in self.learner.inputs.for_prediction(self.validation.nodes):
            logits = self.learner.reusing_labels(x, self.learner.seen_logits)
            self.see(nodes, logits[torch.from_numpy(nodes).to(self.device)])


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(teacher / T) ‖ softmax(logits / T)) (Hinton et al. 2015), the mean over nodes and classes.

    By classes too, as in RevGAT's published code, so that its weights can be taken over.

    Args:
        logits: float (n, C).
        teacher: float (n, C) logits.
        temperature: T, above 0.
    """
    ours, theirs = (F.log_softmax(values.float() / temperature, dim=-1) for values in (logits, teacher))
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).mean()
