"""The pseudo-label loss under GraphGym's name ``glem_pseudo_label``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import register_loss

from glem_graphgym.em.objective import glem_loss


@register_loss("glem_pseudo_label")
def pseudo_label_loss(
    pred: Tensor, true: Tensor, target: Tensor | None = None, weight: float = 0.0
) -> tuple[Tensor, Tensor] | None:
    """GLEM's loss for ``model.loss_fun: glem_pseudo_label``; None for other losses, because GraphGym calls every loss.

    GraphGym itself passes two arguments; the loss is then plain cross-entropy. (For two classes, GraphGym's models have
    one logit, that of the second class.)

    Args:
        pred: float logits (B, C), or (B,) for two classes.
        true: int64 (B,), gold classes; -1 marks pseudo nodes.
        target: float (B, C), distributions of the pseudo nodes; rows of gold nodes are not read.
        weight: weight 0-1 of the pseudo-label term.

    Returns:
        (loss, log-probabilities (B, C)), or for two classes (loss, probabilities of the second class (B,)).
    """
    if cfg.model.loss_fun != "glem_pseudo_label":
        return None
    binary = pred.ndim == 1
    logits = torch.stack([torch.zeros_like(pred), pred], dim=-1) if binary else pred
    is_gold = true >= 0
    gold = F.one_hot(true.clamp(min=0), logits.shape[-1]).to(logits.dtype)
    if target is None:
        target = gold
        is_gold = torch.ones_like(is_gold)
    loss = glem_loss(logits, torch.where(is_gold[:, None], gold, target), is_gold, weight)
    return loss, torch.sigmoid(pred) if binary else F.log_softmax(logits, dim=-1)
