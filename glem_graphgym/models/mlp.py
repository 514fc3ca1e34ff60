"""MLP over node features, and the stack of layers that it shares with the graph networks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from glem_graphgym.models.checks import check_probabilities, check_sizes
from glem_graphgym.models.dropout import dropout, relu_dropout
from glem_graphgym.models.propagation import Adjacency

_NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}


class LayerStack(nn.Module):
    """Stack of layers with norm, ReLU and dropout between them: the base of MLP, GCN, SAGE and GAT.

    A subclass names its ``Layer``: a module built as ``Layer(dim_in, dim_out)`` whose ``forward(x, adjacency)``
    maps inputs (N, D) of all nodes to outputs (T, D') of the adjacency's targets.

    Args:
        dim_in, dim_hidden, dim_out: width of the node features and of every hidden layer, and number of classes C.
        dropout: probability, 0 to below 1, after each ReLU; ``input_dropout``: of dropping an input feature.
        norm: ``"batch"``, ``"layer"`` or ``"none"``, before each ReLU.
        residual: add a hidden layer's input to its output where both have the same width.
        linear_skip: add a linear map of a hidden layer's input to its output, before the norm.
        pre_layers: number of linear layers before the first layer, each with norm, ReLU and dropout.
        readout: source of the logits: ``"layer"``, the last layer; ``"linear"``, a linear map of the last layer, which
            is then a hidden one; ``"sum"``, a linear map of the sum of all layers (jumping knowledge, Xu et al. 2018).
        layer_options: further arguments of every ``Layer``.
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
        linear_skip: bool = False,
        pre_layers: int = 0,
        readout: str = "layer",
        **layer_options: Any,
    ) -> None:
        super().__init__()
        check_sizes(dim_in=dim_in, dim_hidden=dim_hidden, dim_out=dim_out, num_layers=num_layers)
        check_probabilities(input_dropout=input_dropout)
        first = dim_hidden if pre_layers else dim_in
        self.widths = [first, *[dim_hidden] * (num_layers - 1), dim_out if readout == "layer" else dim_hidden]
        hidden = num_layers - (readout == "layer")
        self.layers = nn.ModuleList(self.Layer(a, b, **layer_options) for a, b in pairwise(self.widths))
        self.activations = nn.ModuleList(Activation(dim_hidden, norm, dropout) for _ in range(hidden))
        self.input_dropout = input_dropout
        self.residual, self.readout = residual, readout
        linears = [nn.Linear(dim_hidden if index else dim_in, dim_hidden) for index in range(pre_layers)]
        self.before = nn.ModuleList(nn.Sequential(linear, Activation(dim_hidden, norm, dropout)) for linear in linears)
        skips = pairwise(self.widths[: hidden + 1]) if linear_skip else ()
        self.skips = nn.ModuleList(nn.Linear(a, b) for a, b in skips)
        self.classifier = None if readout == "layer" else nn.Linear(dim_hidden, dim_out)

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        """Logits (N, C) of node features ``x`` (N, dim_in)."""
        for index in range(len(self.layers)):
            x = self.layer(index, x, adjacency)
        return x

    def layer(self, index: int, x: Tensor, adjacency: Adjacency) -> Tensor:
        """Output (T, D') of layer ``index`` for the adjacency's targets, from inputs (N, D) of all its nodes.

        With ``readout`` ``"sum"``, layers before the last return (T, 2 D'): their output and the sum of all so far.
        """
        total = None
        if index == 0:
            x = dropout(x, self.input_dropout, self.training)
            for layer in self.before:
                x = layer(x)
        elif self.readout == "sum":
            x, total = x.chunk(2, dim=1)
        out = self.layers[index](x, adjacency)
        if index == len(self.activations):
            return out
        if self.skips:
            out = out + self.skips[index](adjacency.targets_of(x))
        out = self.activations[index](out)
        if self.residual and x.shape[1] == out.shape[1]:
            out = adjacency.targets_of(x) + out
        if self.readout == "sum":
            total = out if total is None else adjacency.targets_of(total) + out
        if self.classifier is not None and index == len(self.layers) - 1:
            return self.classifier(out if total is None else total)
        return out if total is None else torch.cat([out, total], dim=1)


class Activation(nn.Module):
    """Norm, ReLU and dropout, as after every hidden layer."""

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
    """Multi-layer perceptron on each node's own features; for arguments see `LayerStack`."""

    Layer = MLPLayer
