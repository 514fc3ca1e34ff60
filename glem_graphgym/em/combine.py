"""Predictions made out of finished ones, without training: the ensemble of LM and GNN."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from glem_graphgym.em.stage import Validation

WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))


def ensemble(
    lm_logits: np.ndarray, gnn_logits: np.ndarray, validation: Validation, weights: Sequence[float] = WEIGHTS
) -> tuple[np.ndarray, float]:
    """Logits float32 (N, C) of w · p_LM + (1 − w) · p_GNN, and the LM's weight w.

    Args:
        lm_logits, gnn_logits: float (N, C).
        validation: chooses w out of ``weights`` (0-1): the best score, the one nearest to 1/2 on ties.
    """
    lm, gnn = _probabilities(lm_logits), _probabilities(gnn_logits)

    def mixed(nodes: np.ndarray | slice, weight: float) -> np.ndarray:
        return np.log(np.maximum(weight * lm[nodes] + (1 - weight) * gnn[nodes], np.finfo(np.float32).tiny))

    best = max(weights, key=lambda weight: (validation.score(mixed(validation.nodes, weight)), -abs(weight - 0.5)))
    return mixed(slice(None), best), best


def _probabilities(logits: np.ndarray) -> np.ndarray:
    return F.softmax(torch.from_numpy(np.asarray(logits, dtype=np.float32)), dim=-1).numpy()
