"""Networks on sampled neighbourhoods: with every neighbour drawn, the seeds' logits are those of the whole graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glem_graphgym.models.block import BlockAdjacency, seed_logits
from glem_graphgym.models.gat import GAT
from glem_graphgym.models.gcn import GCN
from glem_graphgym.models.mlp import MLP, LayerStack
from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.models.sage import SAGE

N, D, C = 40, 5, 3
RNG = np.random.default_rng(0)
PAIRS = RNG.integers(0, N, (2, 70))
PAIRS = PAIRS[:, PAIRS[0] != PAIRS[1]]
GRAPH = Adjacency.from_edge_index(torch.from_numpy(np.hstack([PAIRS, PAIRS[::-1]])), N)
X = torch.from_numpy(RNG.normal(size=(N, D))).float()
NETWORKS: list[type[LayerStack]] = [SAGE, GCN, GAT, MLP]


def neighbours(node: int) -> list[int]:
    return GRAPH.col[GRAPH.rowptr[node] : GRAPH.rowptr[node + 1]].tolist()


def block_of(
    seeds: Sequence[int], hops: int, keep: Callable[[list[int]], list[int]] = lambda all_of_them: all_of_them
) -> tuple[list[int], BlockAdjacency]:
    """The block in which every node within all hops but the last has the neighbours that ``keep`` leaves; by search."""
    nodes, ends, edges = list(seeds), [len(seeds)], []
    start = 0
    for _ in range(hops):
        for place in range(start, ends[-1]):
            for other in keep(neighbours(nodes[place])):
                if other not in nodes:
                    nodes.append(other)
                edges.append((nodes.index(other), place))
        start, ends = ends[-1], [*ends, len(nodes)]
    whole = Adjacency.from_edge_index(torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T.contiguous(), len(nodes))
    degree = torch.tensor([len(neighbours(node)) for node in nodes])
    return nodes, BlockAdjacency(whole.rowptr.long(), whole.col.long(), degree, ends)


def network_of(make: type[LayerStack], layers: int, **options: Any) -> LayerStack:
    torch.manual_seed(1)
    return make(D, 8, C, layers, **{"dropout": 0.0, "norm": "layer", **options})


def gradients(network: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters())))


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"residual": True},
        {"linear_skip": True, "readout": "linear", "pre_layers": 1},
        {"readout": "sum", "residual": True},
    ],
)
def test_all_neighbours_give_the_whole_graphs_logits_and_gradients(
    make: type[LayerStack], layers: int, options: dict[str, Any]
) -> None:
    seeds = [7, 0, 33, 12]
    network = network_of(make, layers, **options, **({"self_loops": bool(options)} if make is SAGE else {}))
    nodes, block = block_of(seeds, layers)
    full, x = network(X, GRAPH)[seeds], X[nodes].requires_grad_()
    found = seed_logits(network, x, block)
    assert found.shape == (len(seeds), C)
    torch.testing.assert_close(found, full)
    weight = torch.randn_like(full)
    for ours, theirs in zip(
        gradients(network, (found * weight).sum()), gradients(network, (full * weight).sum()), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("training", [False, True])
def test_wide_outputs_are_computed_for_the_nodes_that_need_them_alone(make: type[LayerStack], training: bool) -> None:
    """A layer's targets are a tenth of what it reads where ten neighbours are drawn. GAT reads transformed sources."""
    network = network_of(make, 2).train(training)
    nodes, block = block_of([7, 0, 33], 2)
    ends = block.ends
    assert ends[0] < ends[1] < ends[2]
    seen: list[tuple[int, ...]] = []
    for module in network.modules():
        module.register_forward_hook(lambda module, inputs, out: seen.append(tuple(out.shape)))
    seed_logits(network, X[nodes], block)
    targets = [ends[1], ends[0]]
    wide = [shape[0] for shape in seen if shape[0] not in targets]
    assert seen
    assert wide == ([ends[2]] if make is GAT else [])


@pytest.mark.parametrize("make", NETWORKS)
def test_batch_norm_sees_the_nodes_whose_outputs_are_read_and_no_others(make: type[LayerStack]) -> None:
    """The nodes of the last hop have no neighbours in the block: their hidden states would be none of the graph's."""
    network = network_of(make, 2, norm="batch")
    nodes, block = block_of([7, 0, 33], 2)
    assert block.ends[1] < len(nodes)
    seed_logits(network, X[nodes], block)
    norm: Any = network.activations[0].norm
    hidden = network.layers[0](X, GRAPH)[nodes[: block.ends[1]]]
    torch.testing.assert_close(norm.running_mean, 0.1 * hidden.mean(0))


def test_gcn_of_drawn_neighbours_has_the_whole_graphs_degrees() -> None:
    seeds = [int(GRAPH.rowptr.diff().argmax())]
    nodes, block = block_of(seeds, 1, lambda all_of_them: all_of_them[:2])
    d = {node: len(neighbours(node)) + 1 for node in nodes}
    assert len(nodes) == 3 < d[seeds[0]]
    row = (block.gcn() @ torch.eye(3))[0]
    wanted = [d[seeds[0]] / 3 / np.sqrt(d[seeds[0]] * d[node]) for node in nodes]
    torch.testing.assert_close(row, torch.tensor(wanted).float())


def test_another_number_of_layers() -> None:
    nodes, block = block_of([1], 2)
    with pytest.raises(ValueError, match="the block has 2 hops, the network 3 layers"):
        seed_logits(network_of(SAGE, 3), X[nodes], block)
