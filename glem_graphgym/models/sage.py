"""SAGE: GraphSAGE with mean aggregation (Hamilton et al. 2017), over all neighbours."""

from __future__ import annotations

from torch import Tensor, nn

from glem_graphgym.models.mlp import LayerStack
from glem_graphgym.models.propagation import Adjacency, aggregate


class SAGELayer(nn.Module):
    """W_self x + W_neigh mean(x of neighbours) + b, as PyG's ``SAGEConv``; a mean over no neighbours is 0."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.neighbour = nn.Linear(dim_in, dim_out, bias=False)
        self.root = nn.Linear(dim_in, dim_out)

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        return aggregate(adjacency.mean(), x, self.neighbour, plus=self.root(adjacency.targets_of(x)))


class SAGE(LayerStack):
    """GraphSAGE without sampling; arguments as `LayerStack`.

    With 3 layers of 256, batch norm and dropout 0.5 this is OGB's full-batch baseline for ogbn-arxiv.
    """

    Layer = SAGELayer
