"""GAT: graph attention network (Velickovic et al. 2018)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from glem_graphgym.models.attention_propagation import AttentionGraph, attention_scores
from glem_graphgym.models.checks import check_probabilities, check_sizes
from glem_graphgym.models.dropout import dropout
from glem_graphgym.models.mlp import LayerStack
from glem_graphgym.models.propagation import Adjacency


class GATLayer(nn.Module):
    """Graph attention (Velickovic et al. 2018, equations 1 to 6), as PyG's ``GATConv``.

    With ``concat`` the H heads of width D are concatenated, (N, H·D); else they are averaged, (N, D).
    """

    def __init__(
        self, dim_in: int, dim_out: int, heads: int = 1, concat: bool = True, attention_dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_sizes(heads=heads)
        check_probabilities(attention_dropout=attention_dropout)
        self.heads, self.concat, self.attention_dropout = heads, concat, attention_dropout
        self.linear = nn.Linear(dim_in, heads * dim_out, bias=False)
        self.source = nn.Parameter(torch.empty(heads, dim_out))
        self.target = nn.Parameter(torch.empty(heads, dim_out))
        self.bias = nn.Parameter(torch.empty(heads * dim_out if concat else dim_out))
        for weight in (self.linear.weight, self.source, self.target):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        graph = AttentionGraph.cached(adjacency, self.heads)
        source, target = attention_scores(x, self.linear.weight, self.source, self.target)
        attention = dropout(graph.softmax(source, adjacency.targets_of(target)), self.attention_dropout, self.training)
        out = graph.sum(self.linear(x), attention)
        if not self.concat:
            out = out.view(len(out), self.heads, -1).mean(dim=1)
        return out + self.bias.to(out.dtype)


class GAT(LayerStack):
    """Graph attention network: heads are concatenated in hidden layers and averaged in the last one.

    Between layers there are norm, ReLU and dropout; the paper has ELU and dropout. Arguments: see `LayerStack` and
    `GATLayer`, but ``dim_hidden`` is the width **per head**, as published; a hidden layer is ``heads`` times as wide.
    """

    Layer = nn.Identity  # a placeholder: the layers differ, so they are made below

    def __init__(
        self,
        dim_in: int,
        dim_hidden: int,
        dim_out: int,
        num_layers: int,
        *args: Any,
        heads: int = 3,
        attention_dropout: float = 0.0,
        **options: Any,
    ) -> None:
        check_sizes(heads=heads, dim_hidden=dim_hidden)
        super().__init__(dim_in, heads * dim_hidden, dim_out, num_layers, *args, **options)
        hidden = len(self.activations)
        self.layers = nn.ModuleList(
            GATLayer(a, dim_hidden if index < hidden else b, heads, index < hidden, attention_dropout)
            for index, (a, b) in enumerate(pairwise(self.widths))
        )
