"""The loss of E-steps and M-steps, −O(q) and −O(φ) over a batch, and the values of O(q) and O(φ) over all nodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels

ROWS_AT_ONCE = 262_144  # rows of logits in memory at a time, in passes over all nodes


def glem_loss(
    logits: Tensor,
    target: Tensor,
    is_gold: Tensor,
    pseudo_weight: float,
    label_smoothing: float = 0.0,
    counts: tuple[int, int] | None = None,
    smooth_pseudo: bool = False,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Loss of a batch, −O(q) in an E-step and −O(φ) in an M-step: ``w · CE(pseudo) + (1 − w) · CE(gold)``.

    Each term is the mean over its own nodes of the batch, as in the authors' code. Without gold nodes the second
    term is 0; without pseudo nodes the loss is plain cross-entropy on gold, with weight 1. With label smoothing ε a
    target t over C classes becomes ``(1 − ε) · t + ε / C``. With class weights w_c the cross-entropy of a node is
    ``−Σ_c w_c · t_c · log p_c``, for gold and pseudo nodes alike: with weights on gold alone, pseudo-labels would
    restore the classes' imbalance. Means are over nodes, not over weights.

    Args:
        logits: float (B, C).
        target: float (B, C), one distribution per row: one-hot for gold, the other model's for pseudo nodes.
        is_gold: bool (B,).
        pseudo_weight: w in 0-1, α in an E-step and β in an M-step (GLEM paper, O(q) and O(φ)).
        label_smoothing: ε, share 0-1 of a gold target's mass spread evenly over the classes.
        counts: numbers of (gold, pseudo) nodes in the whole batch, if the B nodes are a part of it: the losses of the
            parts then add up to that of the batch. None = the B nodes are the whole batch.
        smooth_pseudo: smooth pseudo-labels too, as the authors' code does.
        class_weights: float32 (C,), w_c of `Gold.balanced`; None = 1 each.
    """
    log_prob = F.log_softmax(logits.float(), dim=-1)
    if label_smoothing > 0:
        smooth = target * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
        target = smooth if smooth_pseudo else torch.where(is_gold[:, None], smooth, target)
    if class_weights is not None:
        target = target * class_weights.to(target.device)
    cross_entropy = -(target * log_prob).sum(-1)
    # Neither indexing by a mask nor reading a number: both would wait for the GPU.
    num_gold, num_pseudo = counts or (is_gold.sum(), (~is_gold).sum())
    gold = cross_entropy.where(is_gold, 0.0).sum() / _at_least_one(num_gold)
    pseudo = cross_entropy.where(~is_gold, 0.0).sum() / _at_least_one(num_pseudo)
    weight = pseudo_weight * (num_pseudo > 0)
    return weight * pseudo + (1 - weight) * gold


def _at_least_one(number: int | Tensor) -> int | Tensor:
    return max(number, 1) if isinstance(number, int) else number.clamp(min=1)


def objective_report(
    lm_logits: np.ndarray,
    gnn_logits: np.ndarray,
    gold: Gold,
    unlabelled: np.ndarray,
    *,
    alpha: float,
    beta: float,
    pseudo_labels: Callable[[np.ndarray], PseudoLabels],
) -> dict[str, float]:
    """Values of O(q) and O(φ) over all nodes: means over U and L, in nats, without class weights.

    Args:
        lm_logits, gnn_logits: float (N, C), the latest predictions of q_θ and p_φ.
        unlabelled: int64 (n,), U.
        pseudo_labels: logits (N, C) of one model -> pseudo-labels for the other.

    Returns:
        ``o_q`` = α·mean_U Σ_c ŷ_c log q_c + (1−α)·mean_L log q, ŷ from the GNN; ``o_phi`` likewise of p, β, ŷ from the
        LM; ``entropy_q`` = mean entropy of q on U, nats; ``agreement`` = share 0-1 of U where both predict one class.
    """
    sums = np.zeros(4)
    from_gnn, from_lm = pseudo_labels(gnn_logits), pseudo_labels(lm_logits)
    for start in range(0, len(unlabelled), ROWS_AT_ONCE):
        nodes = unlabelled[start : start + ROWS_AT_ONCE]
        log_q, log_p = _log_softmax(lm_logits[nodes]), _log_softmax(gnn_logits[nodes])
        sums += [
            float((from_gnn.targets(nodes) * log_q).sum()),
            float((from_lm.targets(nodes) * log_p).sum()),
            float(-(log_q.exp() * log_q).sum()),
            float((log_q.argmax(-1) == log_p.argmax(-1)).sum()),
        ]
    means = sums / max(len(unlabelled), 1)
    labels = torch.from_numpy(gold.labels)[:, None]
    gold_q = float(_log_softmax(lm_logits[gold.nodes]).gather(1, labels).mean())
    gold_p = float(_log_softmax(gnn_logits[gold.nodes]).gather(1, labels).mean())
    return {
        "o_q": alpha * means[0] + (1 - alpha) * gold_q,
        "o_phi": beta * means[1] + (1 - beta) * gold_p,
        "entropy_q": means[2],
        "agreement": means[3],
    }


def effective_classes(shares: Tensor) -> float:
    """Effective number of classes, 1 to C: exp of the entropy of their ``shares`` (C,); C if all are equal."""
    return float(torch.special.entr(shares).sum().exp())


def _log_softmax(logits: np.ndarray) -> Tensor:
    return F.log_softmax(torch.from_numpy(np.asarray(logits, dtype=np.float32)), dim=-1)
