"""Training targets: gold labels, and pseudo-labels out of the other model's logits (temperature, confidence, ratio).

Whatever is trained in this package is trained on `Gold` and `PseudoLabels`. Neither can hold a validation or test
label: `Gold` is made from the training split alone, `PseudoLabels` from predictions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROWS_AT_ONCE = 1 << 16
SAMPLED = 1 << 18  # pseudo-labels that their classes' shares are taken from, at most


@dataclass(frozen=True)
class Gold:
    """The labels y_L, int64 (n,), of the training ``nodes``, int64 (n,); C classes.

    ``class_weights``, float32 (C,), weigh the classes in every loss on gold and pseudo-labels; None = alike.
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
        """These labels with ``class_weights`` n / (C' n_c): n_c nodes of class c, C' classes that have any.

        The mean over gold nodes is 1. A class without gold nodes has weight 1, as an average one: what a teacher gives
        to it counts as it would without weights.
        """
        nodes_of = np.bincount(self.labels, minlength=self.num_classes)
        weights = len(self.labels) / (np.count_nonzero(nodes_of) * np.maximum(nodes_of, 1))
        return replace(self, class_weights=torch.from_numpy(np.where(nodes_of > 0, weights, 1.0)).float())

    def targets(self) -> Tensor:
        """float32 (n, C), one-hot."""
        return F.one_hot(torch.from_numpy(self.labels), self.num_classes).float()


class PseudoLabels:
    """Labels ŷ for unlabelled nodes, predicted by the other model.

    Args:
        logits: float (N, C), the other model's (may be memory-mapped; read a block at a time).
        nodes: int64 (n,), the candidates: unlabelled nodes that may be drawn.
        gold: the gold labels, which pseudo-labels must not replace.
        temperature: T > 0; soft targets are softmax(logits / T).
        hard: one-hot of the most probable class instead.
        confidence: share 0-1 of the candidates kept, those of highest probability of their class; 1 keeps all.

    Attributes:
        candidates: int64 (n,), nodes whose ŷ may be an input of the GNN, ŷ_U.
        nodes: int64, the candidates that are kept, and may be trained on; chosen when first asked for.

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
        """Number of `nodes`, without a look at the logits."""
        return num_confident(len(self.candidates), self.confidence)

    def targets(self, nodes: np.ndarray) -> Tensor:
        """float32 (n, C): one distribution per node."""
        logits = torch.from_numpy(np.asarray(self.logits[nodes], dtype=np.float32))
        if self.hard:
            return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
        return F.softmax(logits / self.temperature, dim=-1)

    def class_shares(self) -> Tensor:
        """float64 (C,), sum 1: the mean label of `nodes`, one at least; of some where they are many."""
        return self.targets(self.nodes[:: -(-len(self.nodes) // SAMPLED)]).mean(0, dtype=torch.float64)


def keep_confident(logits: np.ndarray, nodes: np.ndarray, share: float) -> np.ndarray:
    """The ``share`` (0-1, rounded up to whole nodes) of ``nodes`` with the highest top probability, in node order."""
    if share >= 1 or not len(nodes):
        return nodes
    probability = top_probability(logits, nodes)
    kept = np.argsort(-probability, kind="stable")[: num_confident(len(nodes), share)]
    return np.sort(nodes[kept])


def top_probability(logits: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """float32 (n,): probability of the class that the logits (N, C) of each of ``nodes`` prefer."""
    probability = np.empty(len(nodes), dtype=np.float32)
    for start in range(0, len(nodes), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        block = torch.from_numpy(np.asarray(logits[nodes[rows]], dtype=np.float32))
        probability[rows] = F.softmax(block, dim=-1).amax(-1).numpy()
    return probability


def num_confident(candidates: int, share: float) -> int:
    """Number of candidates that are kept."""
    return int(np.ceil(share * candidates - 1e-9))  # 0.55 * 100 is a little more than 55


def num_drawn(candidates: int, ratio: float, num_gold: int) -> int:
    """Number of pseudo nodes that `draw` takes."""
    return min(round(ratio * num_gold), candidates)


def draw(nodes: np.ndarray, ratio: float, num_gold: int, rng: np.random.Generator) -> np.ndarray:
    """``ratio`` pseudo nodes per gold node, without replacement; all of ``nodes`` when there are not more."""
    count = num_drawn(len(nodes), ratio, num_gold)
    return nodes if count == len(nodes) else np.sort(rng.choice(nodes, count, replace=False))


@dataclass(frozen=True)
class StepTargets:
    """Training targets of one E- or M-step: gold labels and, unless it is a step on gold alone, pseudo-labels.

    Attributes:
        weight: of the pseudo-label term, α or β, 0-1.
        ratio: pseudo nodes drawn per gold node.
        redraw: draw anew every epoch; False keeps one draw for the whole step.
        seed: of the draws, beside the epoch.
    """

    gold: Gold
    pseudo: PseudoLabels | None = None
    weight: float = 0.0
    ratio: float = 0.0
    redraw: bool = False
    seed: int = 0

    @property
    def num_trained(self) -> int:
        """Number of nodes of an epoch."""
        num_gold = len(self.gold.nodes)
        return num_gold + (num_drawn(self.pseudo.num_kept, self.ratio, num_gold) if self.pseudo else 0)

    def like_an_epoch(self) -> np.ndarray:
        """int64 (n,): the gold nodes and as many pseudo nodes as an epoch has, whatever their confidence."""
        if self.pseudo is None:
            return self.gold.nodes
        count = self.num_trained - len(self.gold.nodes)
        drawn = np.random.default_rng(self.seed).choice(self.pseudo.candidates, count, replace=False)
        return np.concatenate([self.gold.nodes, drawn])

    def drawn(self, epoch: int) -> np.ndarray:
        """int64 (n,), the pseudo nodes of an epoch; none in a step on gold alone."""
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
