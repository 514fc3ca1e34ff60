"""MLP over node features, and the stack of layers that it shares with the graph networks."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from glem_graphgym.models.checks import check_probabilities, check_sizes
from glem_graphgym.models.dropout import dropout, relu_dropout
from glem_graphgym.models.propagation import Adjacency

_NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}


class LayerStack(nn.Module):
    """Layers with norm, ReLU and dropout between them: all that GCN, SAGE and MLP have in common.

    A subclass names its ``Layer``: a module built as ``Layer(dim_in, dim_out)`` whose ``forward(x, adjacency)``
    gives the adjacency's targets (T, D') from the nodes' (N, D). What the last layer gives are the logits.

    Args:
        dim_in, dim_hidden, dim_out: widths of the node features, of every layer but the last, and C.
        dropout: probability, 0 to below 1, after each ReLU; ``input_dropout``: of dropping an input feature.
        norm: ``"batch"``, ``"layer"`` or ``"none"``, before each ReLU.
        residual: add a hidden layer's input to its output where both have the same width.
    """

    Layer: type[nn.Module]

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
    ) -> None:
        super().__init__()
        check_sizes(dim_in=dim_in, dim_hidden=dim_hidden, dim_out=dim_out, num_layers=num_layers)
        check_probabilities(input_dropout=input_dropout)
        dims = [dim_in, *[dim_hidden] * (num_layers - 1), dim_out]
        self.layers = nn.ModuleList(self.Layer(a, b) for a, b in pairwise(dims))
        self.activations = nn.ModuleList(Activation(dim_hidden, norm, dropout) for _ in range(num_layers - 1))
        self.input_dropout = input_dropout
        self.residual = residual

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        """Logits (N, C) of node features ``x`` (N, dim_in)."""
        for index in range(len(self.layers)):
            x = self.layer(index, x, adjacency)
        return x

    def layer(self, index: int, x: Tensor, adjacency: Adjacency) -> Tensor:
        """What layer ``index`` gives the adjacency's targets, (T, D'), from its nodes' (N, D)."""
        if index == 0:
            x = dropout(x, self.input_dropout, self.training)
        out = self.layers[index](x, adjacency)
        if index == len(self.layers) - 1:
            return out
        out = self.activations[index](out)
        return adjacency.targets_of(x) + out if self.residual and x.shape[1] == out.shape[1] else out


class Activation(nn.Module):
    """Norm, ReLU, dropout: what follows every layer but the last."""

    def __init__(self, dim: int, norm: str, dropout: float) -> None:
        super().__init__()
        if norm not in _NORMS:
            raise ValueError(f"norm is {norm!r}, expected one of {', '.join(_NORMS)}")
        check_probabilities(dropout=dropout)
        self.norm = _NORMS[norm](dim)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return relu_dropout(self.norm(x), self.dropout, self.training)


class MLPLayer(nn.Module):
    """x Wᵀ + b: a linear layer that ignores the graph, so that an MLP can stand in for a graph network."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim_in, dim_out)

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        return self.linear(adjacency.targets_of(x))


class MLP(LayerStack):
    """Multi-layer perceptron on each node's own features; arguments as `LayerStack`."""

    Layer = MLPLayer
