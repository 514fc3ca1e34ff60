from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import GATConv

from glem_graphgym.models.gat import GAT, GATLayer
from glem_graphgym.models.propagation import Adjacency
from tests.models.conftest import NODES
from tests.tolerances import assert_all_equal_up_to_rounding


def build(**changes: Any) -> GAT:
    arguments: dict[str, Any] = {"dim_in": 6, "dim_hidden": 4, "dim_out": 3, "num_layers": 3, "heads": 2}
    torch.manual_seed(0)
    return GAT(**{**arguments, **changes})


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("concat", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_layer_equals_pyg_forward_and_in_all_gradients(
    edges: Tensor, adjacency: Adjacency, heads: int, concat: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    ours = GATLayer(6, 4, heads, concat).to(dtype)
    theirs = GATConv(6, 4, heads, concat).to(dtype)
    parameters = [
        (ours.linear.weight, theirs.lin.weight),
        (ours.source, theirs.att_src),
        (ours.target, theirs.att_dst),
        (ours.bias, theirs.bias),
    ]
    with torch.no_grad():
        for mine, other in parameters:
            other.normal_()
            mine.copy_(other.view(mine.shape))
    x = torch.randn(NODES, 6, dtype=dtype)
    x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out_ours, out_theirs = ours(x_ours, adjacency), theirs(x_theirs, edges)
    seed = torch.randn_like(out_ours)
    out_ours.backward(seed)
    out_theirs.backward(seed)
    assert len(list(ours.parameters())) == len(parameters)
    pairs = [(out_ours, out_theirs), (x_ours.grad, x_theirs.grad)]
    pairs += [(mine.grad, other.grad.view(mine.shape)) for mine, other in parameters]
    assert_all_equal_up_to_rounding(pairs, summands=edges.shape[1] + NODES)  # a gradient sums over edges and nodes


def test_an_isolated_node_is_transformed_alone(adjacency: Adjacency) -> None:
    x, layer = torch.randn(NODES, 6), GATLayer(6, 3)
    torch.testing.assert_close(layer(x, adjacency)[-1], layer.linear(x[-1]))


def test_hidden_layers_are_heads_beside_one_another_and_the_last_is_their_mean(adjacency: Adjacency) -> None:
    net = build(norm="none").eval()
    x = torch.randn(NODES, 6)
    first = F.relu(net.layers[0](x, adjacency))
    second = F.relu(net.layers[1](first, adjacency))
    assert first.shape == second.shape == (NODES, 8)
    logits = net(x, adjacency)
    assert logits.shape == (NODES, 3)
    torch.testing.assert_close(logits, net.layers[2](second, adjacency))
    residual = build(norm="none", residual=True).eval()
    second = first + F.relu(net.layers[1](first, adjacency))
    torch.testing.assert_close(residual(x, adjacency), net.layers[2](second, adjacency))


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_parameter_count_is_that_of_its_parts(norm: str) -> None:
    """Three layers of 3 heads of 256 on ogbn-arxiv: weights, two vectors a head, biases; scale and shift of norms."""
    first = 128 * 768 + 2 * 768 + 768
    hidden = 768 * 768 + 2 * 768 + 768
    last = 768 * 3 * 40 + 2 * 3 * 40 + 40
    norms = 0 if norm == "none" else 2 * 2 * 768
    net = GAT(128, 256, 40, 3, norm=norm, heads=3)
    assert sum(parameter.numel() for parameter in net.parameters()) == first + hidden + last + norms


def test_it_reaches_as_many_hops_as_layers() -> None:
    path = Adjacency.from_edge_index(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]), 5)  # 0 -> 1 -> ... -> 4
    x = torch.randn(5, 6, requires_grad=True)
    build(num_layers=2, norm="none", dropout=0.0)(x, path)[4].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum(1).nonzero().flatten().tolist() == [2, 3, 4]


def test_renumbering_the_nodes_renumbers_the_logits(edges: Tensor, adjacency: Adjacency) -> None:
    net = build(dropout=0.0).double().train()
    x = torch.randn(NODES, 6, dtype=torch.float64)
    new = torch.randperm(NODES)
    renumbered = torch.empty_like(x)
    renumbered[new] = x
    logits = net(renumbered, Adjacency.from_edge_index(new[edges], NODES))
    torch.testing.assert_close(logits[new], net(x, adjacency))


@pytest.mark.parametrize("name", ["dropout", "input_dropout", "attention_dropout"])
def test_dropout_acts_in_training_only_and_follows_the_seed(name: str, adjacency: Adjacency) -> None:
    x = torch.randn(NODES, 6)
    net = build(norm="none", **{"dropout": 0.0, name: 0.5})
    torch.manual_seed(1)
    first, other = net(x, adjacency), net(x, adjacency)
    torch.manual_seed(1)
    assert torch.equal(first, net(x, adjacency))
    assert not torch.equal(first, other)
    assert torch.equal(net.eval()(x, adjacency), build(norm="none", dropout=0.0)(x, adjacency))


def test_attention_weights_are_dropped_and_scaled() -> None:
    """A star: the hub's attention to 4,000 equal leaves is uniform, and what is left of its sum is binomial."""
    leaves, probability = 4000, 0.3
    edges = torch.stack([torch.arange(1, leaves), torch.zeros(leaves - 1, dtype=torch.long)])  # and the hub's own
    star = Adjacency.from_edge_index(edges, leaves)
    layer = GATLayer(2, 2, attention_dropout=probability)
    torch.nn.init.eye_(layer.linear.weight)
    x = torch.ones(leaves, 2)
    sums = torch.stack([layer(x, star)[0] for _ in range(50)])
    assert torch.equal(sums[:, 0], sums[:, 1])  # the weight is dropped, not a feature
    expected_std = (probability / (1 - probability) / leaves) ** 0.5
    assert abs(sums[:, 0].mean() - 1) < 5 * expected_std / 50**0.5
    assert 0.6 < sums[:, 0].std() / expected_std < 1.4
    torch.testing.assert_close(layer.eval()(x, star)[0], torch.ones(2), atol=1e-4, rtol=0)


def test_it_learns_whom_to_attend_to() -> None:
    """The label is that of the one neighbour that is marked: a mean over neighbours cannot tell."""
    torch.manual_seed(0)
    edges = torch.stack([torch.arange(1, 400), torch.arange(1, 400) // 4 * 4])
    adjacency = Adjacency.from_edge_index(edges, 400)
    x = torch.zeros(400, 3)
    x[torch.arange(400), torch.randint(0, 2, (400,))] = 1
    marked = torch.arange(100) * 4 + torch.randint(1, 4, (100,))
    x[marked, 2] = 1
    net = GAT(3, 8, 2, 1, heads=2)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        loss = F.cross_entropy(net(x, adjacency)[::4], x[marked, 1].long())
        loss.backward()
        optimiser.step()
    assert loss < 0.1


def test_autocast_stays_close(adjacency: Adjacency) -> None:
    net, x = build(dropout=0.0), torch.randn(NODES, 6)
    exact = net(x, adjacency)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(x, adjacency)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), exact, atol=0.1, rtol=0.1)
    logits.float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0, expected at least 1"),
        ({"dim_hidden": 0}, "dim_hidden is 0"),
        ({"heads": 0}, "heads is 0, expected at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0, expected a probability"),
        ({"attention_dropout": 1.0}, "attention_dropout is 1.0, expected a probability"),
        ({"norm": "group"}, "norm is 'group', expected one of batch, layer, none"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)
