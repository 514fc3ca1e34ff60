"""Correct & Smooth (Huang et al. 2021) on logits, as PyG's `CorrectAndSmooth` computes it, by our sparse products.

PyG makes a message per edge and class in each propagation; a product here takes no more than predictions and edges do.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glem_graphgym.models.propagation import Adjacency, SparseOperator

LAYERS = 50  # propagations
MAX_SCALE = 1000.0  # a residual that would grow by more is not scaled


@torch.no_grad()
def correct_and_smooth(
    logits: np.ndarray,
    nodes: np.ndarray,
    labels: np.ndarray,
    adjacency: Adjacency,
    correct: tuple[int, float] = (LAYERS, 1.0),
    smooth: tuple[int, float] = (LAYERS, 0.8),
) -> np.ndarray:
    """Log-probabilities float32 (N, C) of predictions corrected by the gold labels' residuals, then smoothed.

    ``logits`` are of any classifier; gold ``nodes``, int64, become their ``labels``. The work is done on the device of
    ``adjacency``, in float32. ``correct`` and ``smooth`` are each a number of propagations and a coefficient α, 0-1;
    γ is PyG's ``autoscale``.
    """
    operator, device = adjacency.symmetric(), adjacency.device
    soft = F.softmax(torch.from_numpy(np.asarray(logits, dtype=np.float32)).to(device), dim=-1)
    place = torch.from_numpy(nodes).to(device)
    one_hot = F.one_hot(torch.from_numpy(labels).to(device), soft.shape[1]).to(soft.dtype)
    error = torch.zeros_like(soft)
    error[place] = one_hot - soft[place]
    residual = _spread(operator, error, *correct, -1.0)
    scale = error[place].abs().sum() / len(place) / residual.abs().sum(dim=1, keepdim=True)
    scale[~(scale <= MAX_SCALE)] = 1.0  # infinite far from gold nodes, 0 / 0 where there is nothing to correct
    soft += scale * residual
    soft[place] = one_hot
    return _spread(operator, soft, *smooth, 0.0).clamp_(min=torch.finfo(soft.dtype).tiny).log_().cpu().numpy()


def _spread(operator: SparseOperator, start: Tensor, layers: int, alpha: float, low: float) -> Tensor:
    """Z = α S Z + (1 - α) Z₀ (N, C), ``layers`` times from Z₀, clamped to ``low`` to 1 each time."""
    rest, out = (1 - alpha) * start, start
    for _ in range(layers):
        out = (operator @ out).mul_(alpha).add_(rest).clamp_(low, 1.0)
    return out
