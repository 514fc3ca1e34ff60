from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.nn.models import CorrectAndSmooth

from glem_graphgym.models.correct_and_smooth import LAYERS, correct_and_smooth
from glem_graphgym.models.propagation import Adjacency

# Two triangles joined by one edge; nodes 0-2 are of class 0, 3-5 of class 1.
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 2], [1, 2, 0, 4, 5, 3, 3]])
EDGE_INDEX = torch.cat([EDGES, EDGES.flip(0)], dim=1)
GRAPH = Adjacency.from_edge_index(EDGE_INDEX, 6)
GOLD, LABELS = np.array([0, 4]), np.array([0, 1])


def test_gold_nodes_become_their_labels_and_neighbours_follow() -> None:
    logits = np.zeros((6, 2))
    logits[1] = [-0.2, 0.2]  # wrong, but between two of class 0
    logits[0] = [-0.1, 0.1]  # a gold node predicted wrongly
    smoothed = correct_and_smooth(logits, GOLD, LABELS, GRAPH, correct=(50, 0.5))
    assert smoothed.shape == (6, 2)
    assert smoothed.argmax(-1).tolist() == [0, 0, 0, 1, 1, 1]


def test_without_propagations_only_gold_nodes_change() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 2))
    smoothed = correct_and_smooth(logits, GOLD, LABELS, GRAPH, (0, 0.0), (0, 0.0))
    rest = np.setdiff1d(np.arange(6), GOLD)
    plain = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
    np.testing.assert_allclose(smoothed[rest], plain[rest], rtol=1e-5)
    assert smoothed[GOLD].argmax(-1).tolist() == LABELS.tolist()


def by_pyg(
    logits: np.ndarray, gold: np.ndarray, labels: np.ndarray, edges: torch.Tensor, correct: float, smooth: float
) -> np.ndarray:
    """Probabilities (N, C) of PyG's own Correct & Smooth on int64 ``edges`` (2, E), with these two α."""
    peer = CorrectAndSmooth(LAYERS, correct, LAYERS, smooth)
    soft, true, place = torch.from_numpy(logits).softmax(-1), torch.from_numpy(labels), torch.from_numpy(gold)
    return peer.smooth(peer.correct(soft, true, place, edges), true, place, edges).numpy()


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("alphas", [(1.0, 0.8), (0.6, 0.3)])
def test_it_computes_what_pyg_does(directed: bool, alphas: tuple[float, float]) -> None:
    """On a random graph with nodes that no edge reaches, of a classifier that is wrong where it is sure."""
    nodes, classes, rng = 300, 7, np.random.default_rng(0)
    drawn = np.unique(rng.integers(0, nodes - 10, (2, 900)), axis=1)
    drawn = torch.from_numpy(drawn[:, drawn[0] != drawn[1]])
    edges = drawn if directed else torch.unique(torch.cat([drawn, drawn.flip(0)], dim=1), dim=1)
    logits = 4 * rng.normal(size=(nodes, classes)).astype(np.float32)
    gold, labels = np.arange(0, nodes, 5), rng.integers(0, classes, nodes // 5)
    found = correct_and_smooth(
        logits, gold, labels, Adjacency.from_edge_index(edges, nodes), (LAYERS, alphas[0]), (LAYERS, alphas[1])
    )
    np.testing.assert_allclose(np.exp(found), by_pyg(logits, gold, labels, edges, *alphas), rtol=1e-4, atol=1e-6)


def test_where_nothing_is_to_be_corrected_predictions_are_numbers() -> None:
    sure = np.zeros((6, 2), dtype=np.float32)
    sure[GOLD, LABELS] = 1000
    found = correct_and_smooth(sure, GOLD, LABELS, GRAPH)
    assert np.isfinite(found).all() and found[GOLD].argmax(-1).tolist() == LABELS.tolist()


class Largest(TorchDispatchMode):
    """The most elements that a float tensor has which an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))  # type: ignore[operator]
        made = [value for value in (out if isinstance(out, tuple) else (out,)) if isinstance(value, torch.Tensor)]
        self.elements = max(self.elements, *(value.numel() for value in made if value.is_floating_point()), 0)
        return out


def test_no_tensor_has_a_message_per_edge_and_class() -> None:
    nodes, classes = 40, 16
    everyone = Adjacency.from_edge_index(torch.cartesian_prod(torch.arange(nodes), torch.arange(nodes)).T, nodes)
    with Largest() as largest:
        correct_and_smooth(np.zeros((nodes, classes)), GOLD, LABELS, everyone)
    assert largest.elements == len(everyone.col) < classes * len(everyone.col)
