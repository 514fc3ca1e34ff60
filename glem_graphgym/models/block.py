"""A sampled neighbourhood as the networks take it: the sum over drawn neighbours, weighted as in the whole graph."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from glem_graphgym.models.mlp import LayerStack
from glem_graphgym.models.propagation import Adjacency, SparseOperator, kept_operator


class BlockAdjacency(Adjacency):
    """Drawn edges among the n nodes of a block, as an `Adjacency` whose GCN operator knows the whole graph's degrees.

    Means and attention are over the drawn neighbours. GCN's weights are 1/√(d~_i d~_j) with degrees of the whole graph,
    times d~_i / (number drawn + 1): the full-batch ones where all neighbours are drawn, else as large on average.

    Args:
        rowptr, col: as `Adjacency`. The seeds come first, then what each hop adds.
        degree: int64 (n,), neighbours of each node in the whole graph.
        ends: how many nodes lie within 0, 1, … hops of the seeds; the last hop's nodes have no edges.
    """

    def __init__(self, rowptr: Tensor, col: Tensor, degree: Tensor, ends: Sequence[int]) -> None:
        super().__init__(rowptr, col, len(degree))
        self.degree, self.ends = degree, tuple(ends)

    @property
    def num_seeds(self) -> int:
        return self.ends[0]

    def target_degree(self) -> Tensor:
        """(T,), int64: number of neighbours of each target in the whole graph."""
        return self.targets_of(self.degree)

    def to(self, device: torch.device | str) -> BlockAdjacency:
        """The same block on ``device``; this very object when it is there already."""
        col = self.col.to(device)
        if col is self.col:
            return self
        return BlockAdjacency(self.rowptr.to(device).long(), col, self.degree.to(device), self.ends)

    @kept_operator
    def gcn(self) -> SparseOperator:
        """D~^-1/2 (A+I) D~^-1/2 of the whole graph, estimated from the drawn edges."""
        drawn, scale = self.rowptr.diff().double() + 1, self.degree.double() + 1
        pattern = self.with_self_loops()._pattern
        return SparseOperator(pattern, self.targets_of(scale).sqrt() / drawn, scale.rsqrt())

    def layers(self) -> list[BlockAdjacency]:
        """For each of a network's layers the edges into the nodes whose outputs are still needed, first layer first.

        Layer l of L reads the nodes within L - l hops, and its targets are those within L - l - 1 hops.
        """
        rowptr, col, layers = self.rowptr.long(), self.col, []
        for targets, nodes in reversed(list(pairwise(self.ends))):
            inner = rowptr[: targets + 1]
            layers.append(BlockAdjacency(inner, col[: int(inner[-1])], self.degree[:nodes], (targets, nodes)))
        return layers


def seed_logits(network: LayerStack, x: Tensor, block: BlockAdjacency) -> Tensor:
    """Logits (b, C) of a block's seeds, from features ``x`` (n, D) of all its nodes.

    Every layer gives outputs to the nodes that the next one reads alone, so norms see what they see in full batch.
    """
    hops = len(block.ends) - 1
    if hops != len(network.layers):
        raise ValueError(f"the block has {hops} hops, the network {len(network.layers)} layers; expected as many")
    for index, adjacency in enumerate(block.layers()):
        x = network.layer(index, x, adjacency)
    return x
