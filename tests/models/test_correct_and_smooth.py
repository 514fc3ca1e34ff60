from __future__ import annotations

import numpy as np
import torch

from glem_graphgym.models.correct_and_smooth import correct_and_smooth

# Two triangles joined by one edge; nodes 0-2 are of class 0, 3-5 of class 1.
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 2], [1, 2, 0, 4, 5, 3, 3]])
EDGE_INDEX = torch.cat([EDGES, EDGES.flip(0)], dim=1)
GOLD, LABELS = np.array([0, 4]), np.array([0, 1])


def test_gold_nodes_become_their_labels_and_neighbours_follow() -> None:
    logits = np.zeros((6, 2))
    logits[1] = [-0.2, 0.2]  # wrong, but between two of class 0
    logits[0] = [-0.1, 0.1]  # a gold node predicted wrongly
    smoothed = correct_and_smooth(logits, GOLD, LABELS, EDGE_INDEX, correct=(50, 0.5))
    assert smoothed.shape == (6, 2)
    assert smoothed.argmax(-1).tolist() == [0, 0, 0, 1, 1, 1]


def test_without_propagations_only_gold_nodes_change() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 2))
    smoothed = correct_and_smooth(logits, GOLD, LABELS, EDGE_INDEX, (0, 0.0), (0, 0.0))
    rest = np.setdiff1d(np.arange(6), GOLD)
    plain = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
    np.testing.assert_allclose(smoothed[rest], plain[rest], rtol=1e-5)
    assert smoothed[GOLD].argmax(-1).tolist() == LABELS.tolist()


def test_one_propagation_by_hand() -> None:
    """Smoothing alone: alpha D^-1/2 A D^-1/2 Z + (1 - alpha) Z, with gold rows one-hot in Z."""
    logits = np.random.default_rng(1).normal(size=(6, 2))
    found = np.exp(correct_and_smooth(logits, GOLD, LABELS, EDGE_INDEX, (0, 0.0), (1, 0.3)))
    z = torch.softmax(torch.from_numpy(logits), -1).numpy()
    z[GOLD] = np.eye(2)[LABELS]
    a = np.zeros((6, 6))
    a[EDGE_INDEX[0], EDGE_INDEX[1]] = 1
    d = np.diag(a.sum(1) ** -0.5)
    np.testing.assert_allclose(found, 0.3 * d @ a @ d @ z + 0.7 * z, rtol=1e-5, atol=1e-7)
