from __future__ import annotations

import torch
from torch_geometric.nn import SGConv

from glem_graphgym.models.hops import propagate
from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.models.sgc import SGC


def test_sgc_equals_pyg_forward_and_in_gradients() -> None:
    edges = torch.randint(0, 20, (2, 60), generator=torch.Generator().manual_seed(0))
    edges = edges[:, edges[0] != edges[1]].unique(dim=1)
    x = torch.randn(20, 5, dtype=torch.float64)
    ours, theirs = SGC(5, 3).double(), SGConv(5, 3, K=3).double()
    with torch.no_grad():
        theirs.lin.weight.copy_(ours.linear.weight)
        theirs.lin.bias.copy_(ours.linear.bias)
    hops = propagate(Adjacency.from_edge_index(edges, 20).gcn(), x, 3)
    seed = torch.randn(20, 3, dtype=torch.float64)
    out, expected = ours(hops), theirs(x, edges)
    torch.testing.assert_close(out, expected)
    out.backward(seed)
    expected.backward(seed)
    torch.testing.assert_close(ours.linear.weight.grad, theirs.lin.weight.grad)
    torch.testing.assert_close(ours.linear.bias.grad, theirs.lin.bias.grad)


def test_only_the_last_hop_counts() -> None:
    net = SGC(5, 3)
    hops = torch.randn(4, 7, 5)
    assert torch.equal(net(hops), net(hops[-1:]))
    assert sum(parameter.numel() for parameter in net.parameters()) == 5 * 3 + 3
