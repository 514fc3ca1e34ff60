from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from glem_graphgym.models import propagation
from glem_graphgym.models.propagation import Adjacency, SparseOperator, aggregate, mark_constant
from tests.models.conftest import Watched

# Directed, with a duplicate (0 -> 1), a self-loop (3) and a node without any edge (4); (sources, targets).
EDGES = torch.tensor([[2, 0, 1, 0, 0, 3], [1, 1, 2, 1, 3, 3]])
NODES = 5
# Row i holds a 1 for every source of a message to i.
DENSE = torch.tensor(
    [[0, 0, 0, 0, 0], [1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.float64
)


@pytest.fixture
def adjacency() -> Adjacency:
    return Adjacency.from_edge_index(EDGES, NODES)


def symmetric(edges: Tensor, nodes: int) -> Adjacency:
    return Adjacency.from_edge_index(torch.cat([edges, edges.flip(0)], dim=1), nodes)


def into_first(adjacency: Adjacency, targets: int) -> Adjacency:
    """The rows of the first nodes alone."""
    rowptr = adjacency.rowptr[: targets + 1].long()
    return Adjacency(rowptr, adjacency.col[: int(rowptr[-1])], adjacency.num_nodes)


def dense(operator: SparseOperator) -> Tensor:
    return operator @ torch.eye(operator.num_nodes, dtype=torch.float64)


def test_edge_index_becomes_sorted_rows_of_sources_without_duplicates(adjacency: Adjacency) -> None:
    assert adjacency.rowptr.tolist() == [0, 0, 2, 3, 5, 5]
    assert adjacency.col.tolist() == [0, 2, 1, 0, 3]
    assert adjacency.num_nodes == NODES
    assert adjacency.col.dtype == adjacency.rowptr.dtype == torch.int32


def test_sum_and_mean_of_a_directed_graph(adjacency: Adjacency) -> None:
    assert torch.equal(dense(adjacency.sum()), DENSE)
    mean = torch.tensor(
        [[0, 0, 0, 0, 0], [0.5, 0, 0.5, 0, 0], [0, 1, 0, 0, 0], [0.5, 0, 0, 0.5, 0], [0, 0, 0, 0, 0]],
        dtype=torch.float64,
    )
    assert torch.equal(dense(adjacency.mean()), mean)


def test_gcn_adds_each_self_loop_once_and_scales_by_row_sums(adjacency: Adjacency) -> None:
    looped = (DENSE + torch.eye(NODES)).clamp(max=1)
    assert looped.sum(dim=1).tolist() == [1, 3, 2, 2, 1]
    scale = torch.tensor([1, 1 / 3, 1 / 2, 1 / 2, 1], dtype=torch.float64).sqrt()
    torch.testing.assert_close(dense(adjacency.gcn()), scale[:, None] * looped * scale)


def test_symmetric_scales_by_row_sums_without_self_loops(adjacency: Adjacency) -> None:
    degree = DENSE.sum(dim=1).double()
    scale = torch.where(degree > 0, degree.rsqrt(), 0.0)
    torch.testing.assert_close(dense(adjacency.symmetric()), scale[:, None] * DENSE * scale)


@pytest.mark.parametrize("name", ["sum", "mean", "gcn", "symmetric"])
@pytest.mark.parametrize("undirected", [False, True])
def test_transpose(name: str, undirected: bool) -> None:
    graph = symmetric(EDGES, NODES) if undirected else Adjacency.from_edge_index(EDGES, NODES)
    operator = getattr(graph, name)()
    assert torch.equal(dense(operator.transpose()), dense(operator).T)
    assert (operator.transpose() is operator) == (undirected and name != "mean")
    assert operator.transpose() is operator.transpose()
    assert getattr(graph, name)() is operator


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.data())
def test_any_graph_equals_its_dense_matrix_forward_and_backward(nodes: int, data: st.DataObject) -> None:
    node = st.integers(0, nodes - 1)
    pairs = data.draw(st.lists(st.tuples(node, node), max_size=30))
    edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    matrix = torch.zeros(nodes, nodes, dtype=torch.float64)
    matrix[edges[1], edges[0]] = 1
    targets = data.draw(st.integers(0, nodes))
    operator = into_first(Adjacency.from_edge_index(edges, nodes), targets).mean()
    matrix = (matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1))[:targets]
    x = torch.randn(nodes, 3, dtype=torch.float64, requires_grad=True)
    seed = torch.randn(targets, 3, dtype=torch.float64)
    product = operator @ x
    product.backward(seed)
    torch.testing.assert_close(product, matrix @ x)
    torch.testing.assert_close(x.grad, matrix.T @ seed)


def test_rows_of_the_first_nodes_alone(adjacency: Adjacency) -> None:
    few = into_first(adjacency, 3)
    assert (few.num_targets, few.num_nodes, few.sum().num_targets, few.sum().num_nodes) == (3, 5, 3, 5)
    for name in ("sum", "mean"):
        whole, part = (getattr(graph, name)() for graph in (adjacency, few))
        assert torch.equal(dense(part), dense(whole)[:3])
        assert torch.equal(dense(part.transpose()), dense(whole)[:3].T)
    assert torch.equal(dense(few.with_self_loops().sum()), dense(adjacency.with_self_loops().sum())[:3])
    x = torch.randn(NODES, 2)
    assert torch.equal(few.targets_of(x), x[:3])
    assert adjacency.targets_of(x) is x
    with pytest.raises(ValueError, match="3 of 5 nodes are targets, GCN's operator needs all"):
        few.gcn()
    with pytest.raises(ValueError, match=r"features are torch.float32 of shape \(3, 2\), expected .* \(5, D\)"):
        few.mean() @ x[:3]


@pytest.mark.parametrize("dims", [(7, 3), (3, 7)])
@pytest.mark.parametrize("bias", [False, True])
def test_aggregate_transforms_no_more_than_the_targets(adjacency: Adjacency, dims: tuple[int, int], bias: bool) -> None:
    linear, x, plus = nn.Linear(*dims, bias=bias), torch.randn(NODES, dims[0]), torch.randn(3, dims[1])
    whole = aggregate(adjacency.mean(), x, linear)
    seen: list[int] = []
    linear.register_forward_hook(lambda module, inputs, out: seen.append(len(out)))
    for more in (None, plus):
        found = aggregate(into_first(adjacency, 3).mean(), x, linear, more)
        torch.testing.assert_close(found, whole[:3] if more is None else whole[:3] + more)
    assert seen == [3]  # with a summand the product is taken without the module


@pytest.mark.parametrize("dims", [(70, 30), (30, 70)])
def test_prediction_of_a_part_rounds_as_that_of_the_whole(adjacency: Adjacency, dims: tuple[int, int]) -> None:
    linear, x = nn.Linear(*dims).bfloat16(), torch.randn(NODES, dims[0]).bfloat16()
    with torch.no_grad():
        whole = aggregate(adjacency.mean(), x, linear)
        assert torch.equal(aggregate(into_first(adjacency, 3).mean(), x.clone(), linear), whole[:3])


@pytest.mark.parametrize("name", ["sum", "mean", "gcn"])
def test_gradients_of_first_and_second_order(adjacency: Adjacency, name: str) -> None:
    operator = getattr(adjacency, name)()
    x = torch.randn(NODES, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: operator @ x, (x,))
    assert torch.autograd.gradgradcheck(lambda x: (operator @ x).pow(3), (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    star = torch.stack([torch.arange(1, 4097), torch.zeros(4096, dtype=torch.int64)])
    operator = Adjacency.from_edge_index(star, 4097).sum()
    x = torch.ones(4097, 2, dtype=dtype, requires_grad=True)
    product = operator @ x
    assert product.dtype == dtype
    assert product[0].tolist() == [4096, 4096]  # sums kept in bfloat16 would stop at 256, in float16 at 2048
    product.backward(torch.full_like(product, 3))
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert x.grad[:, 0].tolist() == [0] + [3] * 4096


def test_same_bits_whatever_the_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    operator = symmetric(torch.randint(0, 3000, (2, 20000), generator=generator), 3000).mean()
    x = torch.randn(3000, 40, generator=generator)

    def product(threads: int) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(threads)
        leaf = x.clone().requires_grad_()
        result = operator @ leaf
        result.backward(x)
        assert leaf.grad is not None
        return result.detach(), leaf.grad

    before = torch.get_num_threads()
    try:
        one, two, again = product(1), product(2), product(2)
    finally:
        torch.set_num_threads(before)
    for a, b, c in zip(one, two, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(b, c)


def test_a_graph_without_nodes() -> None:
    nothing = Adjacency.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 0)
    assert (nothing.gcn() @ torch.zeros(0, 2)).shape == (0, 2)


def test_moving_to_the_same_device_keeps_what_was_made(adjacency: Adjacency) -> None:
    assert adjacency.to("cpu") is adjacency
    assert adjacency.to(torch.device("cpu")).mean() is adjacency.mean()
    operator = adjacency.mean()
    assert operator.to(torch.device("cpu")) is operator
    assert operator.to(torch.device("cpu", 1)) is not operator  # as another GPU is another device


def test_memory_goes_with_the_last_user() -> None:
    graph = symmetric(EDGES, NODES)
    x = torch.randn(NODES, 2, requires_grad=True)
    (graph.gcn() @ x + graph.mean() @ x).sum().backward()
    gone = [weakref.ref(part) for part in (graph, graph.col, graph.gcn(), graph.mean().transpose())]
    gc.disable()
    try:
        del graph
        assert [reference() for reference in gone] == [None] * 4
    finally:
        gc.enable()


@pytest.mark.parametrize(("dim_in", "dim_out", "propagated"), [(7, 3, 3), (3, 7, 3), (4, 4, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_aggregate_propagates_the_narrower_side_with_one_result(
    adjacency: Adjacency, dim_in: int, dim_out: int, propagated: int, bias: bool
) -> None:
    watched = Watched(adjacency.gcn())
    linear = nn.Linear(dim_in, dim_out, bias=bias).double()
    x = torch.randn(NODES, dim_in, dtype=torch.float64)
    result = aggregate(watched, x, linear)
    assert watched.widths == [propagated]
    matrix = dense(adjacency.gcn())
    offset = linear.bias if bias else 0
    torch.testing.assert_close(result, matrix @ (x @ linear.weight.T) + offset)
    torch.testing.assert_close(result, (matrix @ x) @ linear.weight.T + offset)


@pytest.mark.parametrize("width", [2, 9])
def test_a_constant_input_is_propagated_once(adjacency: Adjacency, width: int) -> None:
    torch.manual_seed(0)
    operator, linear = Watched(adjacency.mean()), nn.Linear(4, width)
    x = mark_constant(torch.randn(NODES, 4))

    def step() -> tuple[Tensor, Tensor]:
        linear.zero_grad()
        out = aggregate(operator, x, linear)
        out.square().sum().backward()
        assert linear.weight.grad is not None
        return out.detach(), linear.weight.grad.clone()

    first = step()
    hidden = torch.randn(NODES, 4)  # what an evaluation's later layers ask for in between
    with torch.no_grad():
        aggregate(operator, x, linear)
        aggregate(operator, hidden, linear)
    before = len(operator.widths)
    for _ in range(3):
        for found, wanted in zip(step(), first, strict=True):
            torch.testing.assert_close(found, wanted)
    with torch.inference_mode():
        torch.testing.assert_close(aggregate(operator, x, linear), first[0])
    assert len(operator.widths) == before


def test_a_cached_product_is_not_used_for_anything_else(adjacency: Adjacency) -> None:
    operator, linear = Watched(adjacency.mean()), nn.Linear(4, 3)
    plain = adjacency.mean()

    def check(x: Tensor) -> None:
        wanted = linear(plain @ x.detach())
        torch.testing.assert_close(aggregate(operator, x, linear), wanted)

    x = mark_constant(torch.randn(NODES, 4))
    for _ in range(3):
        check(x)
    x.add_(1)  # changed in place
    check(x)
    check(x)
    x = mark_constant(x.clone())  # equal, but another
    x[0] = 7
    for _ in range(3):
        check(x)
    for _ in range(3):
        check(mark_constant(torch.randn(NODES, 4).requires_grad_()))


def test_a_cached_product_has_the_autocast_type_of_the_moment(adjacency: Adjacency) -> None:
    operator, x = Watched(adjacency.mean()), mark_constant(torch.randn(NODES, 4))
    types = []
    for enabled in (True, False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            kept = operator.cached_product(x)
            assert kept is not None
            types.append(kept.dtype)
    assert types == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_large_inputs_are_not_kept(adjacency: Adjacency, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glem_graphgym.models.propagation.MAX_CACHED_BYTES", 4 * NODES * 4 - 1)
    operator = Watched(adjacency.mean())
    assert operator.cached_product(mark_constant(torch.randn(NODES, 4))) is None
    assert operator.cached_product(torch.randn(1, 4)) is None  # nor what is not marked


def test_aggregate_keeps_the_autocast_type(adjacency: Adjacency) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for linear in (nn.Linear(7, 3), nn.Linear(3, 7)):
            result = aggregate(adjacency.mean(), torch.randn(NODES, linear.in_features), linear)
            assert result.dtype == torch.bfloat16
            result.sum().backward()
            assert linear.weight.grad is not None
            assert linear.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (torch.tensor([[0], [5]]), "edge_index names nodes 0 to 5, expected 0 to 4"),
        (torch.tensor([[-1], [2]]), "edge_index names nodes -1 to 2"),
        (torch.tensor([0, 1]), r"shape \(2,\)"),
        (torch.tensor([[0.0], [1.0]]), "torch.float32"),
    ],
)
def test_bad_edge_indices_are_refused(edges: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adjacency.from_edge_index(edges, NODES)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 2), r"torch.float32 of shape \(4, 2\), expected floats of shape \(5, D\)"),
        (torch.zeros(5), r"shape \(5,\)"),
        (torch.zeros(5, 2, dtype=torch.int64), "torch.int64"),
        (torch.zeros(5, 2, device="meta"), "features are on meta, the graph on cpu"),
    ],
)
def test_features_that_do_not_fit_are_refused(adjacency: Adjacency, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adjacency.mean() @ x


# ---- rows in pieces, as a GPU sums them -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece", [1, 3, 7])
def test_rows_summed_in_pieces_give_the_same_product_and_gradient(
    piece: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub, nodes without any edge, and numbers whose sums are exact in any order."""
    rng = torch.Generator().manual_seed(0)
    hub = torch.stack([torch.arange(1, 40), torch.zeros(39, dtype=torch.int64)])
    others = torch.randint(1, 30, (2, 60), generator=rng)
    edges, nodes = torch.cat([hub, others], dim=1), 45
    values = torch.randint(-3, 4, (nodes, 5), generator=rng).to(dtype)

    def computed() -> tuple[Tensor, Tensor, int]:
        operator = Adjacency.from_edge_index(edges, nodes).sum()
        x = values.clone().requires_grad_()
        out = operator @ x
        out.backward(values)
        assert x.grad is not None
        calls = 0 if operator.pieces is None else len(operator.pieces.starts) - 1
        return out.detach(), x.grad, calls

    out, grad, pieces = computed()
    assert pieces == 0
    monkeypatch.setattr(propagation, "SPLIT_ON", ("cpu",))
    monkeypatch.setattr(propagation, "PIECE", piece)
    found, found_grad, pieces = computed()
    assert pieces >= 39 // piece
    assert torch.equal(found, out)
    assert torch.equal(found_grad, grad)


def test_rows_that_are_all_short_are_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propagation, "SPLIT_ON", ("cpu",))
    assert Adjacency.from_edge_index(EDGES, NODES).sum().pieces is None
