from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glem_graphgym.models import propagation
from glem_graphgym.models.attention_propagation import AttentionGraph, attention_scores
from glem_graphgym.models.propagation import Adjacency
from tests.models.conftest import dense_attention, dense_mask, dense_sum

# Directed, with a self-loop (3) and a node without any edge (4); (sources, targets).
EDGES = torch.tensor([[2, 0, 1, 0, 3], [1, 1, 2, 3, 3]])
NODES = 5


@pytest.fixture
def adjacency() -> Adjacency:
    return Adjacency.from_edge_index(EDGES, NODES)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 3), st.booleans(), st.booleans(), st.data())
def test_any_graph_equals_its_dense_matrix_forward_and_backward(
    nodes: int, heads: int, attend_target: bool, drop: bool, data: st.DataObject
) -> None:
    node = st.integers(0, nodes - 1)
    pairs = data.draw(st.lists(st.tuples(node, node), max_size=30))
    whole = Adjacency.from_edge_index(torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T, nodes)
    targets = data.draw(st.integers(0, nodes))
    rowptr = whole.rowptr[: targets + 1].long()
    adjacency = Adjacency(rowptr, whole.col[: int(rowptr[-1])], nodes)
    with pytest.MonkeyPatch.context() as patch:
        if piece := data.draw(st.sampled_from([0, 1, 2])):  # long rows in pieces, as on a GPU
            patch.setattr(propagation, "SPLIT_ON", ("cpu",))
            patch.setattr(propagation, "PIECE", piece)
        graph = AttentionGraph(adjacency, heads)
    kept = graph.draw_edges(0.4) if drop else None
    source = torch.randn(nodes, heads, dtype=torch.float64)
    target = torch.randn(targets, heads, dtype=torch.float64)
    values = torch.randn(nodes, heads * 3, dtype=torch.float64)
    seed = torch.randn(targets, heads * 3, dtype=torch.float64)
    results = []
    for dense in (False, True):
        leaves = [leaf.clone().requires_grad_() for leaf in (source, target, values)]
        ends = leaves[0], leaves[1] if attend_target else None
        if dense:
            out = dense_sum(dense_attention(dense_mask(adjacency, kept), *ends), leaves[2])
        else:
            out = graph.sum(leaves[2], graph.softmax(*ends, kept))
        out.backward(seed)
        results.append([out, leaves[0].grad, leaves[2].grad, *([leaves[1].grad] if attend_target else [])])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


def test_large_scores_do_not_overflow(adjacency: Adjacency) -> None:
    graph = AttentionGraph(adjacency, 1)
    scores = torch.tensor([[1e4], [-1e4], [1e4], [3e4], [0.0]])
    assert graph.softmax(scores).tolist() == [0.5, 0.5, 1, 0, 1]
    assert graph.softmax(-scores * 1e3).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_in_float32_and_keeps_the_type_of_the_values(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    adjacency = Adjacency.from_edge_index(torch.randint(0, 60, (2, 500), generator=generator), 60)
    graph = AttentionGraph(adjacency, 2)
    source = torch.randn(60, 2, generator=generator)
    values, seed = torch.randn(2, 60, 128, generator=generator)
    results = []
    for kind in (dtype, torch.float64):
        leaves = [leaf.to(dtype).to(kind).requires_grad_() for leaf in (source, values)]
        attention = graph.softmax(leaves[0])
        assert attention.dtype == (torch.float32 if kind == dtype else kind)
        out = graph.sum(leaves[1], attention)
        assert out.dtype == kind
        out.backward(seed.to(dtype).to(kind))
        results.append([out, *[leaf.grad for leaf in leaves]])
    for found, wanted in zip(*results, strict=True):
        assert found is not None
        assert wanted is not None
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, atol=0.05, rtol=0.02)


def test_no_warning_comes_from_torch(adjacency: Adjacency) -> None:
    weight = torch.rand(5, requires_grad=True)
    torch.set_warn_always(True)  # even what it says only once
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            AttentionGraph(adjacency, 1).sum(torch.randn(NODES, 2), weight).sum().backward()
    finally:
        torch.set_warn_always(False)


def test_degrees_and_the_symmetric_weight(adjacency: Adjacency) -> None:
    graph = AttentionGraph.cached(adjacency, 2)
    mask = dense_mask(adjacency.with_self_loops()).double()
    assert graph.in_degree.tolist() == mask.sum(1).tolist() == [1, 3, 2, 2, 1]
    assert graph.out_degree.tolist() == mask.sum(0).tolist() == [3, 2, 2, 1, 1]
    uniform = graph.softmax(torch.zeros(NODES, 2, dtype=torch.float64))
    x = torch.randn(NODES, 4, dtype=torch.float64)
    expected = mask.sum(1).rsqrt()[:, None] * (mask @ (mask.sum(0).rsqrt()[:, None] * x))
    torch.testing.assert_close(graph.sum(x, uniform * graph.symmetric_weight()), expected, atol=1e-6, rtol=1e-6)


def test_the_share_of_edges_that_is_dropped_is_exact_and_drawn_anew() -> None:
    edges = torch.randint(0, 50, (2, 400), generator=torch.Generator().manual_seed(0))
    graph = AttentionGraph(Adjacency.from_edge_index(edges, 50), 3)
    first, other = graph.draw_edges(0.3), graph.draw_edges(0.3)
    assert first is not None
    assert other is not None
    assert (~first).sum() == (~other).sum() == int(graph.num_edges * 0.3)
    assert not torch.equal(first, other)
    again = [graph.draw_edges(0.3, torch.Generator().manual_seed(7)) for _ in range(2)]
    assert again[0] is not None
    assert again[1] is not None
    assert torch.equal(again[0], again[1])
    assert graph.draw_edges(0.0) is None


def test_scores_are_those_of_the_transformed_features() -> None:
    x, weight = torch.randn(NODES, 6, dtype=torch.float64), torch.randn(8, 6, dtype=torch.float64)
    vectors = torch.randn(2, 2, 4, dtype=torch.float64)
    for scores, vector in zip(attention_scores(x, weight, *vectors), vectors, strict=True):
        torch.testing.assert_close(scores, ((x @ weight.T).view(NODES, 2, 4) * vector).sum(2))


def test_what_is_kept_for_the_backward_pass_is_no_wider_than_edges_or_nodes() -> None:
    edges = torch.randint(0, 50, (2, 2000), generator=torch.Generator().manual_seed(0))
    graph = AttentionGraph(Adjacency.from_edge_index(edges, 50), 2)
    source, values = torch.randn(50, 2, requires_grad=True), torch.randn(50, 64, requires_grad=True)
    sizes: list[int] = []

    def pack(saved: Tensor) -> Tensor:
        sizes.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        graph.sum(values, graph.softmax(source))
    assert sizes
    assert max(sizes) <= max(2 * graph.num_edges, 50 * 64)


def test_it_is_made_once_and_goes_with_the_adjacency(adjacency: Adjacency) -> None:
    edges = EDGES.clone()
    other = Adjacency.from_edge_index(edges, NODES)
    graph = AttentionGraph.cached(other, 2)
    assert AttentionGraph.cached(other, 2) is graph
    assert AttentionGraph.cached(other, 1) is not graph
    assert AttentionGraph.cached(adjacency, 2) is not graph
    gone: list[weakref.ref[Any]] = [weakref.ref(other), weakref.ref(graph)]
    gc.disable()
    try:
        del other, graph
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()
