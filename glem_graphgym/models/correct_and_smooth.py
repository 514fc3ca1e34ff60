"""Correct & Smooth (Huang et al. 2021) on logits, as PyG's `CorrectAndSmooth` computes it, with our sparse products.

PyG allocates one message per edge and class in each propagation; here memory is that of predictions and edges.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glem_graphgym.models.propagation import Adjacency, SparseOperator

LAYERS = 50  # propagations
MAX_SCALE = 1000.0  # residuals with a larger scale are not scaled


@torch.no_grad()
def correct_and_smooth(
    logits: np.ndarray,
    nodes: np.ndarray,
    labels: np.ndarray,
    adjacency: Adjacency,
    correct: tuple[int, float] = (LAYERS, 1.0),
    smooth: tuple[int, float] = (LAYERS, 0.8),
) -> np.ndarray:
    """Log-probabilities, float32 (N, C), of predictions corrected by the gold labels' residuals, then smoothed.

    ``logits`` (N, C) may come from any classifier; the gold ``nodes``, int64, are set to their ``labels``. Computed in
    float32 on the device of ``adjacency``. ``correct`` and ``smooth`` are each a number of propagations and a
    coefficient α, 0-1; residuals are scaled as by PyG's ``autoscale``.
    """
    operator, device = adjacency.symmetric(), adjacency.device
    soft = F.softmax(torch.from_numpy(np.asarray(logits, dtype=np.float32)).to(device), dim=-1)
    gold = torch.from_numpy(nodes).to(device)
    one_hot = F.one_hot(torch.from_numpy(labels).to(device), soft.shape[1]).to(soft.dtype)
    error = torch.zeros_like(soft)
    error[gold] = one_hot - soft[gold]
    residual = _spread(operator, error, *correct, -1.0)
    scale = error[gold].abs().sum() / len(gold) / residual.abs().sum(dim=1, keepdim=True)
    scale[~(scale <= MAX_SCALE)] = 1.0  # infinite far from gold nodes, 0 / 0 where there is nothing to correct
    soft += scale * residual
    soft[gold] = one_hot
    return _spread(operator, soft, *smooth, 0.0).clamp_(min=torch.finfo(soft.dtype).tiny).log_().cpu().numpy()


def _spread(operator: SparseOperator, start: Tensor, layers: int, alpha: float, low: float) -> Tensor:
    """Iterate Z ← α S Z + (1 - α) Z₀, (N, C), ``layers`` times from Z₀, each time clamped to [``low``, 1]."""
    start_term, out = (1 - alpha) * start, start
    for _ in range(layers):
        out = (operator @ out).mul_(alpha).add_(start_term).clamp_(low, 1.0)
    return out
