"""GAT: graph attention network (Velickovic et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glem_graphgym.models.attention_propagation import AttentionGraph, attention_scores
from glem_graphgym.models.dropout import dropout
from glem_graphgym.models.mlp import LayerStack
from glem_graphgym.models.propagation import Adjacency


class GATLayer(nn.Module):
    """Graph attention (Velickovic et al. 2018, equations 1 to 6), as PyG's ``GATConv``.

    Args:
        dim_in: D_in.
        dim_out: D, width of a head.
        heads: H.
        concat: put the heads beside one another, (N, H·D); else their mean, (N, D).
        attention_dropout: probability, 0 to below 1, of dropping an attention weight.

    Raises:
        ValueError: ``heads`` or ``attention_dropout`` is out of range.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        heads: int = 1,
        concat: bool = True,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"heads is {heads}, expected at least 1")
        if not 0 <= attention_dropout < 1:
            raise ValueError(f"attention_dropout is {attention_dropout}, expected a probability from 0 to below 1")
        self.heads, self.concat = heads, concat
        self.attention_dropout = attention_dropout
        self.linear = nn.Linear(dim_in, heads * dim_out, bias=False)
        self.source = nn.Parameter(torch.empty(heads, dim_out))
        self.target = nn.Parameter(torch.empty(heads, dim_out))
        self.bias = nn.Parameter(torch.empty(heads * dim_out if concat else dim_out))
        for weight in (self.linear.weight, self.source, self.target):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        graph = AttentionGraph.of(adjacency, self.heads)
        source, target = attention_scores(x, self.linear.weight, self.source, self.target)
        attention = dropout(graph.softmax(source, adjacency.targets_of(target)), self.attention_dropout, self.training)
        out = graph.sum(self.linear(x), attention)
        if not self.concat:
            out = out.view(len(out), self.heads, -1).mean(dim=1)
        return out + self.bias.to(out.dtype)


class GAT(LayerStack):
    """Graph attention network: concatenated heads in the hidden layers, their mean in the last one.

    Between the layers norm, ReLU and dropout as in `LayerStack`, where the paper has ELU and dropout.

    Args:
        dim_hidden: width **of a head**, as published ("8 heads of 8 features each"); a hidden layer is ``heads`` times
            as wide.
        heads: attention heads of every layer.
        attention_dropout: probability, 0 to below 1, of dropping an attention weight.

        The others as `LayerStack`.

    Raises:
        ValueError: an argument is out of range.
    """

    Layer = nn.Identity  # a placeholder: the layers differ, so they are made below

    def __init__(
        self,
        dim_in: int,
        dim_hidden: int,
        dim_out: int,
        num_layers: int,
        dropout: float = 0.5,
        norm: str = "batch",
        input_dropout: float = 0.0,
        residual: bool = False,
        heads: int = 3,
        attention_dropout: float = 0.0,
    ) -> None:
        if heads < 1:
            raise ValueError(f"heads is {heads}, expected at least 1")
        if dim_hidden < 1:
            raise ValueError(f"dim_hidden is {dim_hidden}, expected at least 1")
        width = heads * dim_hidden
        super().__init__(dim_in, width, dim_out, num_layers, dropout, norm, input_dropout, residual)
        last = num_layers - 1
        self.layers = nn.ModuleList(
            GATLayer(
                width if i else dim_in,
                dim_hidden if i < last else dim_out,
                heads,
                concat=i < last,
                attention_dropout=attention_dropout,
            )
            for i in range(num_layers)
        )
