"""Base class of the networks on hop features, and their feed-forward blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from glem_graphgym.models.checks import check_probabilities, check_sizes
from glem_graphgym.models.dropout import dropout, relu_dropout


class HopNetwork(nn.Module):
    """Network that reads the graph only through its nodes' hop features, so that any nodes can form a batch.

    A subclass defines `hop_logits` and, for label hops, ``label_branch``: a module (B, label_hops · C) -> (B, C) whose
    output is added to the logits. With ``hops`` K it expects K+1 hop features; None = any number. ``input_dropout`` is
    the probability of dropping a hop feature.
    """

    def __init__(
        self, dim_in: int, dim_out: int, hops: int | None, label_hops: int = 0, input_dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_sizes(dim_in=dim_in, dim_out=dim_out)
        check_sizes(0, hops=hops or 0, label_hops=label_hops)
        check_probabilities(input_dropout=input_dropout)
        self.dim_in, self.dim_out, self.hops, self.label_hops = dim_in, dim_out, hops, label_hops
        self.input_dropout = input_dropout
        self.label_branch: nn.Module | None = None

    def forward(self, hop_features: Tensor, label_features: Tensor | None = None) -> Tensor:
        """Logits (B, C) of a batch of nodes, from hop features (K+1, B, D) as made by `propagate`.

        ``label_features`` are (label_hops, B, C), as made by `fold_label_hops`; None without a label branch.
        """
        hops = "hops" if self.hops is None else str(self.hops + 1)
        valid = hop_features.dim() == 3 and hop_features.shape[2] == self.dim_in and len(hop_features) > 0
        if not valid or (self.hops is not None and len(hop_features) != self.hops + 1):
            raise ValueError(f"hop_features are {tuple(hop_features.shape)}, expected ({hops}, batch, {self.dim_in})")
        expected = (self.label_hops, hop_features.shape[1], self.dim_out) if self.label_hops else None
        shape = None if label_features is None else tuple(label_features.shape)
        if shape != expected:
            raise ValueError(f"label_features are {shape}, expected {expected} with label_hops = {self.label_hops}")
        logits = self.hop_logits(dropout(hop_features, self.input_dropout, self.training))
        if self.label_branch is None or label_features is None:
            return logits
        return logits + self.label_branch(label_features.transpose(0, 1).flatten(1))

    def hop_logits(self, x: Tensor) -> Tensor:
        """Logits (B, C) of hop features (K+1, B, D), after their dropout."""
        raise NotImplementedError


class FeedForward(nn.Module):
    """Linear layers with batch norm, PReLU or ReLU, and dropout between them.

    All layers share one PReLU, as in the published code of SIGN and GAMLP. With one layer ``dim_hidden`` is unused.
    """

    def __init__(
        self,
        dim_in: int,
        dim_hidden: int,
        dim_out: int,
        num_layers: int,
        dropout: float,
        *,
        prelu: bool = True,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(dim_in=dim_in, dim_hidden=dim_hidden, dim_out=dim_out, num_layers=num_layers)
        check_probabilities(dropout=dropout)
        dims = [dim_in, *[dim_hidden] * (num_layers - 1), dim_out]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))
        self.norms = nn.ModuleList(nn.BatchNorm1d(dim) if batch_norm else nn.Identity() for dim in dims[1:-1])
        self.prelu = nn.PReLU() if prelu and num_layers > 1 else None
        self.dropout = dropout
        for linear in self.linears:
            reset_glorot(linear)

    def forward(self, x: Tensor) -> Tensor:  # (B, dim_in) -> (B, dim_out)
        for linear, norm in zip(self.linears[:-1], self.norms, strict=True):
            x = norm(linear(x))
            if self.prelu is None:
                x = relu_dropout(x, self.dropout, self.training)
            else:
                x = dropout(self.prelu(x), self.dropout, self.training)
        return self.linears[-1](x)


def weighted_sum(hidden: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Σ_k weights[..., k] · hidden[k], (..., H), for K+1 hops (..., H) and weights (..., K+1)."""
    out = hidden[0] * weights[..., :1]
    for hop, x in enumerate(hidden[1:], start=1):
        out = torch.addcmul(out, x, weights[..., hop, None].to(x.dtype))
    return out


def reset_glorot(linear: nn.Module) -> None:
    """Initialise the weights Glorot-uniform with the gain of ReLU, the bias with 0."""
    assert isinstance(linear, nn.Linear)
    nn.init.xavier_uniform_(linear.weight, gain=nn.init.calculate_gain("relu"))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
