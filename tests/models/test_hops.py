"""Hop features and label hops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from glem_graphgym.models import hops as hops_module
from glem_graphgym.models.hops import draw_folds, fold_label_hops, propagate
from glem_graphgym.models.propagation import Adjacency, SparseOperator
from tests.models.conftest import Watched

NODES, CLASSES, HOPS = 40, 3, 4


@pytest.fixture
def adjacency() -> Adjacency:
    """Undirected, so that every walk of two steps can lead back; the last three nodes have no edge."""
    drawn = torch.randint(0, NODES - 3, (2, 90), generator=torch.Generator().manual_seed(0))
    return Adjacency.from_edge_index(torch.cat([drawn, drawn.flip(0)], dim=1), NODES)


@pytest.fixture(params=["gcn", "mean"])
def operator(request: pytest.FixtureRequest, adjacency: Adjacency) -> SparseOperator:
    return getattr(adjacency, request.param)()


def dense(operator: SparseOperator) -> Tensor:
    return operator @ torch.eye(NODES, dtype=torch.float64)


def one_hot(seed: int = 0) -> Tensor:
    classes = torch.randint(0, CLASSES, (NODES,), generator=torch.Generator().manual_seed(seed))
    return torch.eye(CLASSES, dtype=torch.float64)[classes]


def test_hop_features_are_powers_of_the_operator(operator: SparseOperator) -> None:
    x = torch.randn(NODES, 7, dtype=torch.float64)
    hops = propagate(operator, x, HOPS)
    assert hops.shape == (HOPS + 1, NODES, 7) and hops.dtype == torch.float64
    for hop in range(HOPS + 1):
        torch.testing.assert_close(hops[hop], torch.linalg.matrix_power(dense(operator), hop) @ x)


def test_no_gradient_and_no_hop(operator: SparseOperator) -> None:
    x = torch.randn(NODES, 7, requires_grad=True)
    assert not propagate(operator, x, 2).requires_grad
    assert torch.equal(propagate(operator, x, 0), x.detach()[None])


@pytest.mark.parametrize("columns", [0, 1, 2, 3, 7, 100])
def test_blocks_bound_the_width_and_change_no_bit(
    operator: SparseOperator, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    x, spy = torch.randn(NODES, 7), Watched(operator)
    expected = propagate(operator, x, 2)
    monkeypatch.setattr(hops_module, "BLOCK_BYTES", 3 * NODES * 4 * columns)
    assert torch.equal(propagate(spy, x, 2), expected)
    assert max(spy.widths) == min(max(1, columns), 7) and sum(spy.widths) == 7 * 2  # a column however little is allowed


def test_hops_are_rounded_when_stored_and_not_between(operator: SparseOperator) -> None:
    x = torch.randn(NODES, 7)
    assert torch.equal(propagate(operator, x, 2, torch.float16), propagate(operator, x, 2).half())
    half = propagate(operator, x.half(), 2)
    assert torch.equal(half, propagate(operator, x.half().float(), 2).half()) and half.dtype == torch.float16


def test_bad_arguments_of_propagate(operator: SparseOperator) -> None:
    x = torch.randn(NODES, 7)
    with pytest.raises(
        ValueError, match=r"x is torch.int64 of shape \(40, 7\), expected floats of shape \(40, columns\)"
    ):
        propagate(operator, x.long(), 1)
    with pytest.raises(ValueError, match=r"x is .* of shape \(39, 7\)"):
        propagate(operator, x[1:], 1)


@pytest.fixture
def folds() -> Tensor:
    is_labelled = torch.arange(NODES) % 4 != 0
    return draw_folds(is_labelled, 3, torch.Generator().manual_seed(1))


def test_folds_are_even_random_and_follow_the_generator() -> None:
    is_labelled = torch.arange(NODES) % 4 != 0
    folds = draw_folds(is_labelled, 4, torch.Generator().manual_seed(1))
    assert torch.equal(folds >= 0, is_labelled)
    assert sorted(folds[is_labelled].bincount().tolist()) == [7, 7, 8, 8]
    assert torch.equal(folds, draw_folds(is_labelled, 4, torch.Generator().manual_seed(1)))
    assert not torch.equal(folds, draw_folds(is_labelled, 4, torch.Generator().manual_seed(2)))


def label_hops(operator: SparseOperator, labels: Tensor, folds: Tensor) -> Tensor:
    """All hops from the first, (HOPS, N, C)."""
    return torch.cat([fold_label_hops(operator, labels, folds, hops) for hops in range(1, HOPS + 1)])


def test_no_label_reaches_its_own_node_at_any_hop(operator: SparseOperator, folds: Tensor) -> None:
    """To the bit: a rounding error that depends on the own label would tell of it too."""
    labels = one_hot().float()
    before = label_hops(operator, labels, folds)
    for node in folds.ge(0).nonzero().flatten().tolist():
        for other in (labels[node].roll(1), torch.tensor([torch.nan, 1e30, -torch.inf])):
            changed = labels.clone()
            changed[node] = other
            after = label_hops(operator, changed, folds)
            assert torch.equal(before[:, node], after[:, node])


def test_label_hops_are_sums_over_the_other_folds(operator: SparseOperator, folds: Tensor) -> None:
    labels = one_hot()
    given = labels.clone()
    given[folds < 0] = torch.nan  # labels not to be seen, such as those of the test split
    hops = label_hops(operator, given, folds)
    for node in range(NODES):
        seen = (folds >= 0) & (folds != folds[node])  # of a node in no fold: all that are given
        for hop in range(HOPS):
            power = torch.linalg.matrix_power(dense(operator), hop + 1)[node]
            torch.testing.assert_close(hops[hop, node], power @ (labels * seen[:, None]))


def test_label_hops_may_be_stored_in_another_type(
    operator: SparseOperator, folds: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = one_hot().float()
    expected = fold_label_hops(operator, labels, folds, HOPS).half()
    monkeypatch.setattr(hops_module, "BLOCK_BYTES", 1)
    assert torch.equal(fold_label_hops(operator, labels, folds.to(torch.int8), HOPS, torch.float16), expected)
