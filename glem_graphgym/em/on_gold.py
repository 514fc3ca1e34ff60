"""Baselines that train several GNNs in turn on gold labels: reliable label utilisation, self-distillation.

Each is a `GNNLearner.further_rounds`, which M-steps leave out: in GLEM the pseudo-labels of the language model replace
these baselines. Validation selects one of the GNNs; the log is that of all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glem_graphgym.em.checkpoint import Checkpoint
from glem_graphgym.em.fit import FitLog, Fitted
from glem_graphgym.em.hop_step import HopLearner
from glem_graphgym.em.m_step import GNNLearner, GNNTask
from glem_graphgym.em.pseudo_labels import PseudoLabels, top_probability
from glem_graphgym.out_of_core.propagation import MappedHops


@dataclass(frozen=True)
class SelfTraining:
    """Reliable label utilisation (RLU, Zhang et al. 2022): a network's own confident predictions as further targets.

    Each further network starts from fresh weights, with soft labels from the network before it.

    Attributes:
        rounds: number of networks, including the first.
        unlabelled: int64; those with a top probability above ``threshold``, 0-1, become targets of the next network.
        weight: weight 0-1 of their term in the loss, like β in an M-step.
    """

    rounds: int
    unlabelled: np.ndarray
    threshold: float = 0.9
    weight: float = 0.5

    def __call__(self, learner: HopLearner, first: Fitted, title: str, checkpoint: Checkpoint | None) -> Fitted:
        best = latest = first
        log = first.log
        for number in range(2, self.rounds + 1):
            pseudo = self._confident(latest.task)
            if not len(pseudo.nodes):
                break
            targets = latest.task.targets
            ratio_of_all = len(pseudo.nodes) / max(1, len(targets.gold.nodes)) + 1.0
            next_targets = replace(targets, pseudo=pseudo, weight=self.weight, ratio=ratio_of_all, redraw=False)
            if isinstance(latest.task.inputs.hops, MappedHops):
                learner.check_batch(next_targets.num_trained, latest.task.inputs.dim)
            latest = learner.fit_task(latest.task.reinitialised(next_targets), f"{title}, round {number}", checkpoint)
            best, log = (latest if latest.log.best_score > log.best_score else best), joined_logs(log, latest.log)
        return Fitted(best.task, log)

    def _confident(self, task: GNNTask) -> PseudoLabels:
        """Soft labels of the unlabelled nodes whose top probability exceeds the threshold."""
        logits = np.zeros((task.inputs.num_nodes, task.targets.gold.num_classes), dtype=np.float16)
        task.predict(logits, self.unlabelled)
        confident = self.unlabelled[top_probability(logits, self.unlabelled) > self.threshold]
        return PseudoLabels(logits, confident, task.targets.gold)


@dataclass(frozen=True)
class SelfDistillation:
    """Self-distillation: a second GNN of the same kind, the student, learns the predictions of the first.

    Attributes:
        share: weight 0-1 of `distillation_loss` in the student's loss, over the nodes that training sees.
        temperature: T of both distributions.
    """

    share: float
    temperature: float = 1.0

    def __call__(self, learner: GNNLearner, first: Fitted, title: str, checkpoint: Checkpoint | None) -> Fitted:
        task = first.task
        logits = np.zeros((task.inputs.num_nodes, task.targets.gold.num_classes), dtype=np.float16)
        task.predict(logits, np.arange(len(logits)))
        teacher = torch.from_numpy(logits).float().to(learner.hardware.device)
        observed = learner.graphs.observed_nodes
        nodes = slice(None) if observed is None else torch.from_numpy(observed).to(teacher.device)

        def distilled(loss: Tensor, logits: Tensor) -> Tensor:
            distance = distillation_loss(logits[nodes], teacher[nodes], self.temperature)
            return (1 - self.share) * loss + self.share * distance

        student = learner.fit_task(task.reinitialised(adjust_loss=distilled), f"{title}, student", checkpoint)
        best = student if student.log.best_score > first.log.best_score else first
        return Fitted(best.task, joined_logs(first.log, student.log))


def joined_logs(log: FitLog, later: FitLog) -> FitLog:
    """The log of two fits, one after the other."""
    better = later.best_score > log.best_score
    return FitLog(
        best_epoch=log.epochs + later.best_epoch if better else log.best_epoch,
        best_score=max(log.best_score, later.best_score),
        epochs=log.epochs + later.epochs,
        history=log.history + [{**row, "epoch": log.epochs + row["epoch"]} for row in later.history],
        train_seconds=log.train_seconds + later.train_seconds,
    )


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(teacher / T) ‖ softmax(logits / T)) (Hinton et al. 2015), the mean over nodes and classes.

    The mean over classes follows RevGAT's published code, whose loss weights thus apply. Both are logits (n, C).
    """
    log_student, log_teacher = (F.log_softmax(values.float() / temperature, dim=-1) for values in (logits, teacher))
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="none", log_target=True).mean()
