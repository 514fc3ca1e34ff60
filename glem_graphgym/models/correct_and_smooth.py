"""Correct & Smooth (Huang et al. 2021) by PyG's implementation, on logits."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LAYERS = 50  # propagations


def correct_and_smooth(
    logits: np.ndarray,
    nodes: np.ndarray,
    labels: np.ndarray,
    edge_index: Tensor,
    correct: tuple[int, float] = (LAYERS, 1.0),
    smooth: tuple[int, float] = (LAYERS, 0.8),
) -> np.ndarray:
    """Log-probabilities float32 (N, C) of predictions corrected by the gold labels' residuals, then smoothed.

    ``logits`` are of any classifier; gold ``nodes`` become their ``labels``; ``edge_index`` has both directions.
    ``correct`` and ``smooth`` are each a number of propagations and a coefficient α, 0-1; γ is PyG's ``autoscale``.
    """
    from torch_geometric.nn.models import CorrectAndSmooth

    post = CorrectAndSmooth(*correct, *smooth)
    soft = F.softmax(torch.from_numpy(np.asarray(logits, dtype=np.float32)), dim=-1)
    gold, place = torch.from_numpy(labels), torch.from_numpy(nodes)
    smoothed = post.smooth(post.correct(soft, gold, place, edge_index), gold, place, edge_index)
    return smoothed.clamp(min=torch.finfo(torch.float32).tiny).log().numpy()
