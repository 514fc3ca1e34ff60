"""Correct & Smooth (Huang et al. 2021) by PyG's implementation, on logits."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class CorrectAndSmoothSettings:
    """Propagations (L₁, L₂) and coefficients (α₁, α₂, 0-1) of correction and smoothing; γ is PyG's ``autoscale``."""

    correct_layers: int = 50
    correct_alpha: float = 1.0
    smooth_layers: int = 50
    smooth_alpha: float = 0.8


def correct_and_smooth(
    logits: np.ndarray, nodes: np.ndarray, labels: np.ndarray, edge_index: Tensor, settings: CorrectAndSmoothSettings
) -> np.ndarray:
    """Log-probabilities float32 (N, C) of predictions corrected by the gold labels' residuals, then smoothed.

    ``logits`` are of any classifier; gold ``nodes`` become their ``labels``; ``edge_index`` has both directions.
    """
    from torch_geometric.nn.models import CorrectAndSmooth

    post = CorrectAndSmooth(*astuple(settings))
    soft = F.softmax(torch.from_numpy(np.asarray(logits, dtype=np.float32)), dim=-1)
    gold, place = torch.from_numpy(labels), torch.from_numpy(nodes)
    smoothed = post.smooth(post.correct(soft, gold, place, edge_index), gold, place, edge_index)
    return smoothed.clamp(min=torch.finfo(torch.float32).tiny).log().numpy()
