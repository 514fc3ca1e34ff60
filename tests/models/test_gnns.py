from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, SAGEConv

from glem_graphgym.models.gcn import GCN, GCNLayer
from glem_graphgym.models.mlp import MLP, LayerStack
from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.models.sage import SAGE, SAGELayer
from tests.models.conftest import NODES
from tests.tolerances import assert_all_equal_up_to_rounding

NETWORKS = [GCN, SAGE, MLP]


def build(network: type[LayerStack], **changes: Any) -> LayerStack:
    arguments: dict[str, Any] = {"dim_in": 6, "dim_hidden": 8, "dim_out": 3, "num_layers": 3}
    torch.manual_seed(0)
    return network(**{**arguments, **changes})


def gcn_pair(dim_in: int, dim_out: int) -> tuple[nn.Module, nn.Module, list[tuple[Any, Any]]]:
    ours, theirs = GCNLayer(dim_in, dim_out), GCNConv(dim_in, dim_out)
    return ours, theirs, [(ours.linear.weight, theirs.lin.weight), (ours.linear.bias, theirs.bias)]


def sage_pair(dim_in: int, dim_out: int) -> tuple[nn.Module, nn.Module, list[tuple[Any, Any]]]:
    ours, theirs = SAGELayer(dim_in, dim_out), SAGEConv(dim_in, dim_out)
    neighbour = [(ours.neighbour.weight, theirs.lin_l.weight), (ours.root.bias, theirs.lin_l.bias)]
    return ours, theirs, [*neighbour, (ours.root.weight, theirs.lin_r.weight)]


@pytest.mark.parametrize("pair", [gcn_pair, sage_pair])
@pytest.mark.parametrize(("dim_in", "dim_out"), [(7, 3), (3, 7), (4, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_layers_equal_pyg_forward_and_in_all_gradients(
    edges: Tensor, adjacency: Adjacency, pair: Any, dim_in: int, dim_out: int, dtype: torch.dtype
) -> None:
    ours, theirs, parameters = pair(dim_in, dim_out)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    with torch.no_grad():
        for mine, other in parameters:
            other.normal_()
            mine.copy_(other)
    x = torch.randn(NODES, dim_in, dtype=dtype)
    x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    seed = torch.randn(NODES, dim_out, dtype=dtype)
    out_ours, out_theirs = ours(x_ours, adjacency), theirs(x_theirs, edges)
    out_ours.backward(seed)
    out_theirs.backward(seed)
    assert len(list(ours.parameters())) == len(parameters)
    pairs = [(out_ours, out_theirs), (x_ours.grad, x_theirs.grad)]
    pairs += [(mine.grad, other.grad) for mine, other in parameters]
    assert_all_equal_up_to_rounding(pairs, summands=edges.shape[1] + NODES)  # a gradient sums over edges and nodes


def test_an_isolated_node_is_transformed_alone(adjacency: Adjacency) -> None:
    x = torch.randn(NODES, 6)
    gcn, sage = GCNLayer(6, 3), SAGELayer(6, 3)
    torch.testing.assert_close(gcn(x, adjacency)[-1], gcn.linear(x[-1]))
    torch.testing.assert_close(sage(x, adjacency)[-1], sage.root(x[-1]))


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        # weights and biases of 128 -> 256 -> 256 -> 40; scale and shift of two norms of 256
        (MLP, (128 * 256 + 256) + (256 * 256 + 256) + (256 * 40 + 40) + 2 * 2 * 256),
        (GCN, 110_120),  # as the MLP
        (SAGE, 110_120 + 128 * 256 + 256 * 256 + 256 * 40),  # a second weight in every layer
    ],
)
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_parameter_counts_of_the_ogbn_arxiv_baselines(network: type[LayerStack], expected: int, norm: str) -> None:
    net = network(128, 256, 40, 3, norm=norm)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected
    bare = network(128, 256, 40, 3, norm="none")
    assert sum(parameter.numel() for parameter in bare.parameters()) == expected - 1024


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_hidden_biases_can_be_left_out_of_a_gcn(norm: str, adjacency: Adjacency) -> None:
    """The GCN of GLEM's authors has 217,640 parameters at 808 -> 40. Under batch norm it is the same function."""
    assert sum(parameter.numel() for parameter in GCN(808, 256, 40, 2, hidden_bias=False).parameters()) == 217_640
    assert sum(parameter.numel() for parameter in GCN(808, 256, 40, 2).parameters()) == 217_640 + 256
    bare = build(GCN, hidden_bias=False, norm=norm, dropout=0.0)
    names = {name for name, _ in bare.named_parameters() if name.startswith("layers") and name.endswith("bias")}
    assert names == {"layers.2.linear.bias"}
    full = build(GCN, norm=norm, dropout=0.0)
    full.load_state_dict(bare.state_dict(), strict=False)
    with torch.no_grad():
        for layer in full.layers[:-1]:
            layer.linear.bias.normal_()
    x = torch.randn(NODES, 6)
    same = torch.allclose(full(x, adjacency), bare(x, adjacency), atol=1e-5)
    assert same == (norm == "batch")


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_a_network_is_layers_norms_and_relus_in_turn(
    network: type[LayerStack], norm: str, adjacency: Adjacency
) -> None:
    net = build(network, norm=norm).eval()
    x = torch.randn(NODES, 6)
    hidden = x
    for layer in net.layers[:2]:
        hidden = layer(hidden, adjacency)
        if norm == "batch":
            hidden = hidden / (1 + 1e-5) ** 0.5  # fresh running statistics: mean 0, variance 1
        if norm == "layer":
            centred = hidden - hidden.mean(1, keepdim=True)
            hidden = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()
        hidden = hidden.clamp(min=0)
    torch.testing.assert_close(net(x, adjacency), net.layers[2](hidden, adjacency))


@pytest.mark.parametrize("network", NETWORKS)
def test_residual_skips_the_hidden_layers_of_equal_width(network: type[LayerStack], adjacency: Adjacency) -> None:
    net = build(network, residual=True, norm="none").eval()
    x = torch.randn(NODES, 6)
    first = F.relu(net.layers[0](x, adjacency))
    second = first + F.relu(net.layers[1](first, adjacency))
    torch.testing.assert_close(net(x, adjacency), net.layers[2](second, adjacency))


@pytest.mark.parametrize("network", NETWORKS)
def test_one_layer_is_linear_in_the_features(network: type[LayerStack], adjacency: Adjacency) -> None:
    net = build(network, num_layers=1)
    x, y = torch.randn(2, NODES, 6)
    both = net(x, adjacency) + net(y, adjacency) - net(torch.zeros(NODES, 6), adjacency)
    torch.testing.assert_close(net(x + y, adjacency), both)
    assert both.shape == (NODES, 3)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_renumbering_the_nodes_renumbers_the_logits(
    network: type[LayerStack], norm: str, edges: Tensor, adjacency: Adjacency
) -> None:
    net = build(network, norm=norm, dropout=0.0).double().train()
    x = torch.randn(NODES, 6, dtype=torch.float64)
    new = torch.randperm(NODES)
    renumbered = torch.empty_like(x)
    renumbered[new] = x
    logits = net(renumbered, Adjacency.from_edge_index(new[edges], NODES))
    torch.testing.assert_close(logits[new], net(x, adjacency))
    assert not torch.allclose(logits, net(x, adjacency))


@pytest.mark.parametrize(("network", "reach"), [(GCN, 2), (SAGE, 2), (MLP, 0)])
def test_a_node_is_reached_from_as_many_hops_as_layers(network: type[LayerStack], reach: int) -> None:
    path = Adjacency.from_edge_index(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]), 5)  # 0 -> 1 -> ... -> 4
    net = build(network, num_layers=2, norm="none", dropout=0.0)
    x = torch.randn(5, 6, requires_grad=True)
    net(x, path)[4].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum(1).nonzero().flatten().tolist() == list(range(4 - reach, 5))


def test_mlp_takes_no_graph_and_heeds_none(adjacency: Adjacency) -> None:
    net = build(MLP).eval()
    x = torch.randn(NODES, 6)
    assert torch.equal(net(x, adjacency), net(x))


@pytest.mark.parametrize("network", NETWORKS)
def test_dropout_acts_in_training_only_and_follows_the_seed(network: type[LayerStack], adjacency: Adjacency) -> None:
    x = torch.randn(NODES, 6)
    for changes in ({"dropout": 0.5}, {"dropout": 0.0, "input_dropout": 0.5}):
        net = build(network, norm="none", **changes)
        plain = build(network, norm="none", dropout=0.0)
        torch.manual_seed(1)
        first, other = net(x, adjacency), net(x, adjacency)
        torch.manual_seed(1)
        assert torch.equal(first, net(x, adjacency))
        assert not torch.equal(first, other)
        assert torch.equal(net.eval()(x, adjacency), plain(x, adjacency))


@pytest.mark.parametrize("network", NETWORKS)
def test_same_seed_same_bits_in_training(network: type[LayerStack], adjacency: Adjacency) -> None:
    x = torch.randn(NODES, 6)

    def trained() -> list[Tensor]:
        net = build(network)
        optimiser = torch.optim.Adam(net.parameters())
        for _ in range(3):
            optimiser.zero_grad()
            net(x, adjacency).logsumexp(1).sum().backward()
            optimiser.step()
        return list(net.state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(trained(), trained(), strict=True))


def test_gcn_starts_as_glorot_with_zero_bias() -> None:
    layer = GCNLayer(200, 100)
    bound = (6 / 300) ** 0.5
    assert bound * 0.99 < layer.linear.weight.abs().max() <= bound
    assert layer.linear.bias.eq(0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0, expected at least 1"),
        ({"dim_hidden": 0}, "dim_hidden is 0"),
        ({"dropout": 1.0}, "dropout is 1.0, expected a probability"),
        ({"input_dropout": -0.1}, "input_dropout is -0.1"),
        ({"norm": "group"}, "norm is 'group', expected one of batch, layer, none"),
    ],
)
@pytest.mark.parametrize("network", NETWORKS)
def test_bad_arguments_are_refused(network: type[LayerStack], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(network, **changes)
