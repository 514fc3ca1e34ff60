"""Transformers on graphs that PyG has, under GraphGym's names, as GNNs of an M-step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.gnn import build_gnn
from glem_graphgym.models.propagation import Adjacency

NODES, WIDTH, CLASSES = 30, 6, 3


@pytest.fixture
def graph(fresh_config: None) -> tuple[Tensor, Adjacency]:
    torch.manual_seed(0)
    edges = torch.arange(NODES - 10)  # a path, and ten nodes without neighbours
    one_way = torch.stack([edges[:-1], edges[1:]])
    cfg.gnn.dim_inner, cfg.gnn.layers_mp, cfg.gnn.layers_post_mp, cfg.gnn.dropout = 8, 2, 1, 0.0
    return torch.randn(NODES, WIDTH), Adjacency.from_edge_index(torch.cat([one_way, one_way.flip(0)], dim=1), NODES)


def reach(network: nn.Module, x: Tensor, adjacency: Adjacency) -> list[int]:
    """The nodes whose features the last node's logits depend on, which has no neighbour."""
    x = x.clone().requires_grad_()
    network.eval()(x, adjacency)[-1].square().sum().backward()
    assert x.grad is not None
    return x.grad.any(dim=1).nonzero().flatten().tolist()


def test_polynormer_attends_to_all_nodes_after_its_local_epochs(graph: tuple[Tensor, Adjacency]) -> None:
    cfg.model.type, cfg.gnn.local_epochs = "polynormer", 2
    network = build_gnn(cfg, WIDTH, CLASSES)
    reached = []
    for _ in range(3):
        logits = network.train()(*graph)
        assert logits.shape == (NODES, CLASSES)
        logits.sum().backward()
        with torch.no_grad():
            network(*graph)  # a pass that trains nothing counts nothing
        reached.append(len(reach(network, *graph)))
    assert reached == [1, 1, NODES]
    again = build_gnn(cfg, WIDTH, CLASSES)
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(again.eval()(*graph), network.eval()(*graph))  # it knows which of them it was


def test_gps_layers_see_all_nodes_and_want_equal_widths(graph: tuple[Tensor, Adjacency]) -> None:
    cfg.model.type, cfg.gnn.layer_type, cfg.gnn.layers_pre_mp, cfg.gnn.att_heads = "gnn", "gpsconv", 1, 2
    cfg.gnn.head = "node"
    network = build_gnn(cfg, WIDTH, CLASSES)
    logits = network.train()(*graph)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert len(reach(network, *graph)) == NODES
    cfg.gnn.layers_pre_mp = 0
    with pytest.raises(ValueError, match=r"from width 6 to 8 .* set gnn\.layers_pre_mp to 1"):
        build_gnn(cfg, WIDTH, CLASSES)
