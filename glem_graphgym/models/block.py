"""Sampled neighbourhoods as an `Adjacency`, over whose drawn edges the networks propagate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glem_graphgym.models.mlp import LayerStack
from glem_graphgym.models.propagation import Adjacency, SparseOperator, cached_operator

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing from Python 3.11 on


class BlockAdjacency(Adjacency):
    """Drawn edges among the n nodes of a block, as an `Adjacency` whose GCN operator uses the whole graph's degrees.

    Means and attention are over the drawn neighbours. GCN's weights are 1/√(d~_i d~_j) with degrees of the whole graph,
    times d~_i / (number drawn + 1): exact if all neighbours are drawn, else scaled up for those that were not.

    Edges per hop are counted on construction, on the CPU, so that work on a GPU never waits for them.

    Args:
        rowptr, col: see `Adjacency`; without self-loops. Nodes are ordered: the seeds, then those that each hop adds.
        degree: int64 (n,), number of neighbours of each node in the whole graph.
        ends: number of nodes within 0, 1, … hops of the seeds; the nodes of the last hop have no edges.
    """

    is_reused = False

    def __init__(self, rowptr: Tensor, col: Tensor, degree: Tensor, ends: Sequence[int]) -> None:
        super().__init__(rowptr, col, len(degree))
        self.degree, self.ends = degree, tuple(ends)
        self._edges_within = rowptr[list(self.ends[:-1])].tolist()

    @classmethod
    def of(cls, block: Any) -> BlockAdjacency:
        """The edges of a `data.sampling.Block`."""
        rowptr, col, degree = (torch.from_numpy(array) for array in (block.rowptr, block.col, block.degree))
        return cls(rowptr, col, degree, block.ends.tolist())

    @property
    def num_seeds(self) -> int:
        return self.ends[0]

    def target_degree(self) -> Tensor:
        """Number of neighbours of each target in the whole graph, int64 (T,)."""
        return self.targets_of(self.degree)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        moved = super()._moved(move)
        if moved is not self:
            moved.degree = move(self.degree)
        return moved

    @cached_operator
    def gcn(self) -> SparseOperator:
        """D~^-1/2 (A+I) D~^-1/2 of the whole graph, estimated from the drawn edges."""
        drawn, scale = self.rowptr.diff().double() + 1, self.degree.double() + 1
        return self.with_self_loops()._operator(self.targets_of(scale).sqrt() / drawn, scale.rsqrt())

    def layers(self) -> list[BlockAdjacency]:
        """One adjacency per layer, in order, with the edges into the nodes whose outputs are still needed.

        Layer l = 0, …, L - 1 reads the nodes within L - l hops; its targets are those within L - l - 1 hops.
        """
        layers = []
        for hop in reversed(range(len(self.ends) - 1)):
            targets, nodes = self.ends[hop : hop + 2]
            edges = self._edges_within[hop]
            layer = self._with_entries(self.rowptr[: targets + 1], self.col[:edges], nodes)
            layer.degree, layer.ends, layer._edges_within = self.degree[:nodes], (targets, nodes), [edges]
            layers.append(layer)
        return layers


def seed_logits(network: LayerStack, x: Tensor, block: BlockAdjacency) -> Tensor:
    """Logits (b, C) of a block's seeds, from features ``x`` (n, D) of all its nodes.

    Each layer computes only the nodes that the next one reads, so nodes without drawn edges never enter the norms.
    """
    hops = len(block.ends) - 1
    if hops != len(network.layers):
        raise ValueError(f"the block has {hops} hops, the network {len(network.layers)} layers; expected as many")
    for index, adjacency in enumerate(block.layers()):
        x = network.layer(index, x, adjacency)
    return x
