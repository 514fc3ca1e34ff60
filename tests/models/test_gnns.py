"""The layer stacks: layers equal PyG's, networks are their layers in turn, and all are built and trained alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

from glem_graphgym.models.gat import GAT, GATLayer
from glem_graphgym.models.gcn import GCN, GCNLayer
from glem_graphgym.models.mlp import MLP, LayerStack
from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.models.sage import SAGE, SAGELayer
from tests.models.conftest import NODES
from tests.tolerances import assert_all_equal_up_to_rounding

every_network = pytest.mark.parametrize("network", [GCN, SAGE, MLP, GAT])
every_norm = pytest.mark.parametrize("norm", ["batch", "layer", "none"])


def build(network: type[LayerStack], **changes: Any) -> Any:
    """With hidden layers of width 8: a GAT's are two heads of 4."""
    own = {"dim_hidden": 4, "heads": 2} if network is GAT else {"dim_hidden": 8}
    torch.manual_seed(0)
    return network(**{"dim_in": 6, "dim_out": 3, "num_layers": 3, **own, **changes})


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


LAYERS: dict[Any, tuple[Any, Any]] = {GCN: (GCNLayer, GCNConv), SAGE: (SAGELayer, SAGEConv), GAT: (GATLayer, GATConv)}
NAMES = {  # ours -> PyG's
    GCN: {"linear.weight": "lin.weight", "linear.bias": "bias"},
    SAGE: {"neighbour.weight": "lin_l.weight", "root.bias": "lin_l.bias", "root.weight": "lin_r.weight"},
    GAT: {"linear.weight": "lin.weight", "source": "att_src", "target": "att_dst", "bias": "bias"},
}
HEADS = [{"heads": heads, "concat": concat} for heads in (1, 3) for concat in (True, False)]


@pytest.mark.parametrize(("network", "options"), [(GCN, {}), (SAGE, {}), *((GAT, heads) for heads in HEADS)])
@pytest.mark.parametrize(("dim_in", "dim_out"), [(7, 3), (3, 7), (4, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_layers_equal_pyg_forward_and_in_all_gradients(
    edges: Tensor,
    adjacency: Adjacency,
    network: type[LayerStack],
    options: dict[str, Any],
    dim_in: int,
    dim_out: int,
    dtype: torch.dtype,
) -> None:
    ours, theirs = (layer(dim_in, dim_out, **options).to(dtype) for layer in LAYERS[network])
    parameters = [(mine, theirs.get_parameter(NAMES[network][name])) for name, mine in ours.named_parameters()]
    with torch.no_grad():
        for mine, other in parameters:
            other.normal_()
            mine.copy_(other.view(mine.shape))
    x = torch.randn(NODES, dim_in, dtype=dtype)
    x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out_ours, out_theirs = ours(x_ours, adjacency), theirs(x_theirs, edges)
    seed = torch.randn_like(out_ours)
    out_ours.backward(seed)
    out_theirs.backward(seed)
    assert len(list(theirs.parameters())) == len(parameters)
    pairs = [(out_ours, out_theirs), (x_ours.grad, x_theirs.grad)]
    pairs += [(mine.grad, other.grad.view(mine.shape)) for mine, other in parameters]
    assert_all_equal_up_to_rounding(pairs, summands=edges.shape[1] + NODES)  # a gradient sums over edges and nodes


MLP_COUNT = 110_120  # weights and biases of 128 -> 256 -> 256 -> 40; scale and shift of two norms of 256
GAT_WEIGHTS = (128 * 768 + 3 * 768) + (768 * 768 + 3 * 768) + (768 * 120 + 2 * 120 + 40)  # 3 heads, two vectors a head


@pytest.mark.parametrize(
    ("network", "expected", "norms"),
    [
        (MLP, MLP_COUNT, 1024),
        (GCN, MLP_COUNT, 1024),
        (SAGE, MLP_COUNT + 128 * 256 + 256 * 256 + 256 * 40, 1024),  # a second weight in every layer
        (GAT, GAT_WEIGHTS + 2 * 2 * 768, 2 * 2 * 768),
    ],
)
def test_parameter_counts_of_the_ogbn_arxiv_baselines(network: type[LayerStack], expected: int, norms: int) -> None:
    assert count(network(128, 256, 40, 3)) == count(network(128, 256, 40, 3, norm="layer")) == expected
    assert count(network(128, 256, 40, 3, norm="none")) == expected - norms


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_hidden_biases_can_be_left_out_of_a_gcn(norm: str, adjacency: Adjacency) -> None:
    """The GCN of GLEM's authors has 217,640 parameters at 808 -> 40. Under batch norm it is the same function."""
    assert count(GCN(808, 256, 40, 2, hidden_bias=False)) == count(GCN(808, 256, 40, 2)) - 256 == 217_640
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


@every_network
@every_norm
@pytest.mark.parametrize("residual", [False, True])
def test_a_network_is_layers_norms_and_relus_in_turn(
    network: type[LayerStack], norm: str, residual: bool, adjacency: Adjacency
) -> None:
    net = build(network, norm=norm, residual=residual).eval()
    x = torch.randn(NODES, 6)
    hidden = x
    for layer in net.layers[:2]:
        out = layer(hidden, adjacency)
        if norm == "batch":
            out = out / (1 + 1e-5) ** 0.5  # fresh running statistics: mean 0, variance 1
        if norm == "layer":
            centred = out - out.mean(1, keepdim=True)
            out = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()
        out = out.clamp(min=0)
        hidden = hidden + out if residual and hidden.shape == out.shape == (NODES, 8) else out
    torch.testing.assert_close(net(x, adjacency), net.layers[2](hidden, adjacency))


@pytest.mark.parametrize("network", LAYERS)
@pytest.mark.parametrize("readout", ["linear", "sum"])
@pytest.mark.parametrize("pre_layers", [0, 2])
@pytest.mark.parametrize("linear_skip", [False, True])
def test_tuned_networks_are_those_of_pygs_layers_on_a_graph_with_self_loops(
    network: type[LayerStack], readout: str, pre_layers: int, linear_skip: bool, edges: Tensor
) -> None:
    """Luo et al. 2024: norm(conv(x) + Linear(x)), ReLU; a linear classifier of the last layer, or of the sum of all."""
    more = {SAGE: {"self_loops": True}, GAT: {"heads": 1, "dim_hidden": 8}}.get(network, {})
    options = {"readout": readout, "pre_layers": pre_layers, "linear_skip": linear_skip}
    net = build(network, norm="layer", dropout=0.0, **options, **more)
    edges = edges[:, edges[0] != edges[1]]
    adjacency = Adjacency.from_edge_index(edges, NODES)
    looped = torch.cat([edges, torch.arange(NODES).repeat(2, 1)], dim=1).unique(dim=1)
    own_loops = {} if network is SAGE else {"add_self_loops": False}
    x = start = torch.randn(NODES, 6)
    for layer in net.before:
        x = layer(x)
    outs = []
    for place, layer in enumerate(net.layers):
        conv = LAYERS[network][1](x.shape[1], 8, **own_loops)
        names = NAMES[network]
        state = {names[name]: value for name, value in layer.state_dict().items()}
        conv.load_state_dict({name: state[name].view(value.shape) for name, value in conv.state_dict().items()})
        out = conv(x, looped)
        out = out + net.skips[place](x) if linear_skip else out
        x = net.activations[place].norm(out).relu()
        outs.append(x)
    expected = net.classifier(sum(outs) if readout == "sum" else x)
    torch.testing.assert_close(net(start, adjacency), expected)
    assert len(net.before) == pre_layers and len(net.skips) == 3 * linear_skip


def test_gcn_starts_as_glorot_with_zero_bias() -> None:
    layer = GCNLayer(200, 100)
    bound = (6 / 300) ** 0.5
    assert bound * 0.99 < layer.linear.weight.abs().max() <= bound
    assert layer.linear.bias.eq(0).all()


def test_autocast_stays_close(adjacency: Adjacency) -> None:
    net, x = build(GAT, dropout=0.0), torch.randn(NODES, 6)
    exact = net(x, adjacency)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(x, adjacency)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), exact, atol=0.1, rtol=0.1)
    logits.float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
