"""SAGE: GraphSAGE with mean aggregation (Hamilton et al. 2017), over all neighbours."""

from __future__ import annotations

from torch import Tensor, nn

from glem_graphgym.models.mlp import LayerStack
from glem_graphgym.models.propagation import Adjacency, aggregate


class SAGELayer(nn.Module):
    """W_self x + W_neigh mean(x of neighbours) + b, as PyG's ``SAGEConv``; a mean over no neighbours is 0.

    ``self_loops`` counts each node among its own neighbours, as on a graph with self-loops.
    """

    def __init__(self, dim_in: int, dim_out: int, self_loops: bool = False) -> None:
        super().__init__()
        self.self_loops = self_loops
        self.neighbour = nn.Linear(dim_in, dim_out, bias=False)
        self.root = nn.Linear(dim_in, dim_out)

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        targets = adjacency.targets_of(x)
        if not self.self_loops:
            return aggregate(adjacency.mean(), x, self.neighbour, addend=self.root(targets))
        degree = adjacency.target_degree()
        neighbour_share = (degree / (degree + 1)).unsqueeze(1).to(x.dtype)
        mean = aggregate(adjacency.mean(), x, self.neighbour)
        return neighbour_share * mean + (1 - neighbour_share) * self.neighbour(targets) + self.root(targets)


class SAGE(LayerStack):
    """GraphSAGE without sampling; for arguments see `LayerStack` and `SAGELayer`.

    With 3 layers of 256, batch norm and dropout 0.5 this is OGB's full-batch baseline for ogbn-arxiv.
    """

    Layer = SAGELayer
