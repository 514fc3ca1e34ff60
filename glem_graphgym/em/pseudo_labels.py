"""Training targets: gold labels, and pseudo-labels from the other model's logits (temperature, confidence, ratio).

Every model in this package is trained on `Gold` and `PseudoLabels`. Neither can contain a validation or test label:
`Gold` is made from the training split alone, `PseudoLabels` from predictions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROWS_AT_ONCE = 1 << 16
SAMPLED = 1 << 18  # at most so many pseudo-labels are read for their class shares


@dataclass(frozen=True)
class Gold:
    """Gold labels y_L, int64 (n,), of the training ``nodes``, int64 (n,); C = ``num_classes``.

    ``class_weights``, float32 (C,), apply to every loss on gold and pseudo-labels; None = 1 each.
    """

    nodes: np.ndarray
    labels: np.ndarray
    num_classes: int
    class_weights: Tensor | None = None

    def __post_init__(self) -> None:
        if self.nodes.shape != self.labels.shape:
            raise ValueError(f"{len(self.labels)} labels for {len(self.nodes)} gold nodes")
        if len(self.labels) and (self.labels.min() < 0 or self.labels.max() >= self.num_classes):
            raise ValueError(
                f"gold labels run from {self.labels.min()} to {self.labels.max()}, expected 0 to {self.num_classes - 1}"
            )

    def balanced(self) -> Gold:
        """These labels with ``class_weights`` w_c = n / (C' n_c): n_c gold nodes have class c, C' classes occur.

        Their mean over gold nodes is 1. A class without gold nodes has weight 1: the probability that a teacher gives
        to it counts as without weights.
        """
        nodes_of = np.bincount(self.labels, minlength=self.num_classes)
        weights = len(self.labels) / (np.count_nonzero(nodes_of) * np.maximum(nodes_of, 1))
        return replace(self, class_weights=torch.from_numpy(np.where(nodes_of > 0, weights, 1.0)).float())

    def targets(self) -> Tensor:
        """One-hot targets, float32 (n, C)."""
        return F.one_hot(torch.from_numpy(self.labels), self.num_classes).float()


class PseudoLabels:
    """Pseudo-labels ŷ of unlabelled nodes, from the other model's predictions.

    Args:
        logits: float (N, C), of the other model (may be memory-mapped; read a block at a time).
        nodes: int64 (n,), the candidates: unlabelled nodes that may get a pseudo-label.
        gold: the gold labels, which pseudo-labels must not replace.
        temperature: T > 0; soft targets are softmax(logits / T).
        hard: one-hot targets of the most probable class instead.
        confidence: share 0-1 of the candidates to keep, those with the highest top probability; 1 keeps all.

    Attributes:
        candidates: the ``nodes`` given; the label input of the GNN has ŷ of them all.
        nodes: int64, the candidates that the confidence filter keeps: the only targets. Computed at first access.

    Raises:
        ValueError: a candidate is a gold node.
    """

    def __init__(
        self,
        logits: np.ndarray,
        nodes: np.ndarray,
        gold: Gold,
        *,
        temperature: float = 1.0,
        hard: bool = False,
        confidence: float = 1.0,
    ) -> None:
        if np.isin(nodes, gold.nodes).any():
            raise ValueError("a gold node was offered for a pseudo-label; pseudo-labels never replace gold labels")
        self.logits, self.temperature, self.hard = logits, temperature, hard
        self.candidates, self.confidence = nodes, confidence

    @functools.cached_property
    def nodes(self) -> np.ndarray:
        return keep_confident(self.logits, self.candidates, self.confidence)

    @property
    def num_kept(self) -> int:
        """Number of `nodes`, computed without reading the logits."""
        return num_confident(len(self.candidates), self.confidence)

    def targets(self, nodes: np.ndarray) -> Tensor:
        """Targets ŷ of ``nodes``, float32 (n, C): one distribution per node."""
        logits = torch.from_numpy(np.asarray(self.logits[nodes], dtype=np.float32))
        if self.hard:
            return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
        return F.softmax(logits / self.temperature, dim=-1)

    def class_shares(self) -> Tensor:
        """Mean ŷ over `nodes`, at least one, or over a sample of many: float64 (C,), sum 1."""
        return self.targets(self.nodes[:: -(-len(self.nodes) // SAMPLED)]).mean(0, dtype=torch.float64)


def keep_confident(logits: np.ndarray, nodes: np.ndarray, share: float) -> np.ndarray:
    """The ``share`` (0-1, rounded up to whole nodes) of ``nodes`` with the highest top probability, in node order."""
    if share >= 1 or not len(nodes):
        return nodes
    probability = top_probability(logits, nodes)
    most_confident = np.argsort(-probability, kind="stable")[: num_confident(len(nodes), share)]
    return np.sort(nodes[most_confident])


def top_probability(logits: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Probability of the most probable class of each of ``nodes``, float32 (n,), from ``logits`` (N, C)."""
    probability = np.empty(len(nodes), dtype=np.float32)
    for start in range(0, len(nodes), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        block = torch.from_numpy(np.asarray(logits[nodes[rows]], dtype=np.float32))
        probability[rows] = F.softmax(block, dim=-1).amax(-1).numpy()
    return probability


def num_confident(candidates: int, share: float) -> int:
    """Number of candidates that `keep_confident` keeps."""
    return int(np.ceil(share * candidates - 1e-9))  # 0.55 * 100 is a little more than 55


def num_drawn(candidates: int, ratio: float, num_gold: int) -> int:
    """Number of pseudo nodes that `draw` draws."""
    return min(round(ratio * num_gold), candidates)


def draw(nodes: np.ndarray, ratio: float, num_gold: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``ratio`` pseudo nodes per gold node from ``nodes``, without replacement, or all if there are fewer."""
    count = num_drawn(len(nodes), ratio, num_gold)
    return nodes if count == len(nodes) else np.sort(rng.choice(nodes, count, replace=False))


@dataclass(frozen=True)
class StepTargets:
    """Training targets of one E-step or M-step: gold labels and, unless it is a step on gold alone, pseudo-labels.

    Attributes:
        weight: α or β, the weight 0-1 of the pseudo-label term.
        ratio: pseudo nodes drawn per gold node.
        redraw: draw in every epoch; False: once for the whole step.
        seed: seeds the draws, together with the epoch if ``redraw``.
    """

    gold: Gold
    pseudo: PseudoLabels | None = None
    weight: float = 0.0
    ratio: float = 0.0
    redraw: bool = False
    seed: int = 0

    @property
    def num_trained(self) -> int:
        """Nodes per epoch, gold and pseudo."""
        num_gold = len(self.gold.nodes)
        return num_gold + (num_drawn(self.pseudo.num_kept, self.ratio, num_gold) if self.pseudo else 0)

    def like_an_epoch(self) -> np.ndarray:
        """As many nodes as an epoch has, int64 (n,), drawn without the confidence filter and so without the logits."""
        if self.pseudo is None:
            return self.gold.nodes
        count = self.num_trained - len(self.gold.nodes)
        drawn = np.random.default_rng(self.seed).choice(self.pseudo.candidates, count, replace=False)
        return np.concatenate([self.gold.nodes, drawn])

    def drawn(self, epoch: int) -> np.ndarray:
        """Pseudo nodes of an epoch, int64 (n,); none in a step on gold alone."""
        if self.pseudo is None:
            return np.empty(0, dtype=np.int64)
        rng = np.random.default_rng([self.seed, epoch if self.redraw else 0])
        return draw(self.pseudo.nodes, self.ratio, len(self.gold.nodes), rng)

    def batch(self, epoch: int) -> tuple[np.ndarray, Tensor, Tensor]:
        """All nodes of an epoch: int64 (n,) nodes, gold first; float32 (n, C) targets; bool (n,) is-gold."""
        pseudo = self.drawn(epoch)
        nodes = np.concatenate([self.gold.nodes, pseudo])
        target = self.gold.targets()
        if self.pseudo is not None:
            target = torch.cat([target, self.pseudo.targets(pseudo)])
        return nodes, target, torch.arange(len(nodes)) < len(self.gold.nodes)
