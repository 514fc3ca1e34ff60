"""GCN: graph convolutional network (Kipf and Welling 2017)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from glem_graphgym.models.mlp import LayerStack
from glem_graphgym.models.propagation import Adjacency, aggregate


class GCNLayer(nn.Module):
    """D~^-1/2 (A+I) D~^-1/2 x Wᵀ + b (Kipf and Welling 2017, equation 2), as PyG's ``GCNConv``."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim_in, dim_out)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        return aggregate(adjacency.gcn(), x, self.linear)


class GCN(LayerStack):
    """Graph convolutional network; for arguments see `LayerStack`.

    With 3 layers of 256, batch norm and dropout 0.5 this is OGB's baseline for ogbn-arxiv. With 2 layers, input dropout
    0.1 and no ``hidden_bias``, which batch norm would cancel, it is the GCN of GLEM's authors.
    """

    Layer = GCNLayer

    def __init__(self, *args: Any, hidden_bias: bool = True, **options: Any) -> None:
        super().__init__(*args, **options)
        if not hidden_bias:
            for layer in self.layers[: len(self.activations)]:
                assert isinstance(layer, GCNLayer)
                layer.linear.register_parameter("bias", None)
