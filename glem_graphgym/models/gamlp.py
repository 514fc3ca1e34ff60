"""GAMLP: graph attention multi-layer perceptron (Zhang et al. 2022), and its label branch (GAMLP+RLU)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glem_graphgym.models.checks import check_probabilities, check_sizes
from glem_graphgym.models.dropout import Dropout, dropout
from glem_graphgym.models.hop_network import FeedForward, HopNetwork, reset_glorot, weighted_sum

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
}


class GAMLP(HopNetwork):
    """Node-wise recursive attention over hops, then an MLP with initial residual (Zhang et al. 2022).

    Hops are transformed, weighted and added up. With ``residual`` a linear map of x is added, followed by PReLU and
    dropout. An `InitialResidual` net yields the logits. With ``label_hops`` a feed-forward net on the label hops adds
    to the logits; the published one (GAMLP+RLU) reads only the last label hop.

    Published for ogbn-products: 512 hidden, 5 hops, nets of 4 layers, leaky_relu, residual, dropout 0.5, input 0.2,
    attention 0.5; for ogbn-papers100M: 1024 hidden, 6 hops, output net of 6 layers, sigmoid, no residual, dropout 0.5.

    Args:
        dim_in, dim_hidden, dim_out, hops: D, H, C and K.
        output_layers, label_layers: layers of the output net (published as n-layers-2) and label net (n-layers-3).
        alpha: share 0-1 of the first layer's output in the input of every middle layer of the output net.
        activation: of the attention scores: ``"sigmoid"``, ``"relu"`` or ``"leaky_relu"``.
        dropout: probability after each PReLU; the other three: of dropping an input or an attention weight.
        input_norm: batch norm of the node features, over all hops at once. GLEM's authors normalise each hop by its own
            statistics in training, and by statistics that mix the hops in evaluation.
        label_hops: number of label hops that the label branch reads; 0 = no label branch.
    """

    def __init__(
        self,
        dim_in: int,
        dim_hidden: int,
        dim_out: int,
        hops: int,
        residual: bool = True,
        output_layers: int = 4,
        alpha: float = 0.5,
        activation: str = "leaky_relu",
        dropout: float = 0.5,
        input_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        input_norm: bool = False,
        label_hops: int = 0,
        label_layers: int = 4,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__(dim_in, dim_out, hops, label_hops, input_dropout)
        check_sizes(dim_hidden=dim_hidden)
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}, expected one of {', '.join(_ACTIVATIONS)}")
        check_probabilities(attention_dropout=attention_dropout, label_dropout=label_dropout)
        self.dropout, self.attention_dropout = dropout, attention_dropout
        self.input_norm = nn.BatchNorm1d(dim_in) if input_norm else None
        self.preprocess = nn.ModuleList(
            FeedForward(dim_in, dim_hidden, dim_hidden, 2, dropout) for _ in range(hops + 1)
        )
        self.prelu = nn.PReLU() if residual else None
        self.attention = RecursiveAttention(dim_hidden, _ACTIVATIONS[activation], attention_dropout)
        self.residual = nn.Linear(dim_in, dim_hidden) if residual else None
        self.output = InitialResidual(dim_hidden, dim_hidden, dim_out, output_layers, dropout, alpha)
        if label_hops:
            label_net = FeedForward(label_hops * dim_out, dim_hidden, dim_out, label_layers, dropout)
            self.label_branch = nn.Sequential(Dropout(label_dropout), label_net)
        if self.residual is not None:
            reset_glorot(self.residual)

    def hop_logits(self, x: Tensor) -> Tensor:
        if self.input_norm is not None:
            x = self.input_norm(x.flatten(0, 1)).view_as(x)
        hidden = [transform(x[hop]) for hop, transform in enumerate(self.preprocess)]
        weights = dropout(self.attention(hidden), self.attention_dropout, self.training)
        out = weighted_sum(hidden, weights)
        if self.residual is not None and self.prelu is not None:
            out = dropout(self.prelu(out + self.residual(x[0])), self.dropout, self.training)
        return self.output(out)


class RecursiveAttention(nn.Module):
    """Recursive attention over hops (Zhang et al. 2022): hop k gets the weight softmax_k s_k.

    s_k = δ(w · [Σ_{j<k} softmax_j(s_0..s_{k-1}) h_j ‖ h_k] + b), with h_0 as its own history. Each h_j is multiplied by
    both halves of w once, so the recursion runs over scalars. ``activation`` is δ; ``dropout`` drops history weights.
    """

    def __init__(self, dim: int, activation: Callable[[Tensor], Tensor], dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * dim, 1)
        self.activation, self.dropout = activation, dropout
        reset_glorot(self.linear)

    def forward(self, hidden: list[Tensor]) -> Tensor:
        """Weights (B, K+1) of K+1 hops (B, H)."""
        halves = self.linear.weight.view(2, -1)
        history, current = torch.stack([F.linear(h, halves) for h in hidden], dim=-1).unbind(1)  # (B, K+1) each
        current = current + self.linear.bias
        scores = [self.activation(history[:, 0] + current[:, 0])]
        for hop in range(1, len(hidden)):
            weights = dropout(torch.stack(scores, dim=1).softmax(1), self.dropout, self.training)
            gathered = (weights * history[:, :hop]).sum(1)
            scores.append(self.activation(gathered + current[:, hop]))
        return torch.stack(scores, dim=1).softmax(1)


class InitialResidual(nn.Module):
    """GAMLP's output net: linear layers without bias, each with batch norm, and PReLU and dropout between them.

    First layer: x_1 = BN(x W_1); middle layers: x_l = BN(((1-α) x̂ + α x_1) W_l) + x̂, where x̂ is x_{l-1} after PReLU
    and dropout; last layer: BN(x̂ W_L). First and last layer add their input too if the widths agree. From GCNII (Chen
    et al. 2020) by way of GBP; all layers share one PReLU.
    """

    def __init__(
        self, dim_in: int, dim_hidden: int, dim_out: int, num_layers: int, dropout: float, alpha: float
    ) -> None:
        super().__init__()
        check_sizes(dim_in=dim_in, dim_hidden=dim_hidden, dim_out=dim_out, num_layers=num_layers)
        check_probabilities(dropout=dropout)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}, expected a share from 0 to 1")
        dims = [dim_in, *[dim_hidden] * (num_layers - 1), dim_out]
        self.linears = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(dims))
        self.norms = nn.ModuleList(nn.BatchNorm1d(dim) for dim in dims[1:])
        self.prelu = nn.PReLU() if num_layers > 1 else None
        self.dropout, self.alpha = dropout, alpha
        for linear in self.linears:
            assert isinstance(linear, nn.Linear)
            bound = linear.out_features**-0.5
            nn.init.uniform_(linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:  # (B, dim_in) -> (B, dim_out)
        x = first = self._layer(0, x, x)
        last = len(self.linears) - 1
        for layer in range(1, last + 1):
            x = dropout(self.prelu(x), self.dropout, self.training)  # type: ignore[misc]
            mixed = torch.lerp(x, first.to(x.dtype), self.alpha) if layer < last else x
            x = self._layer(layer, mixed, x)
        return x

    def _layer(self, layer: int, x: Tensor, skip: Tensor) -> Tensor:
        out = self.norms[layer](self.linears[layer](x))
        return out + skip if out.shape == skip.shape else out
