"""SAGN: scalable and adaptive graph neural network, with the label model of SLE (Sun et al. 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glem_graphgym.models.checks import check_probabilities, check_sizes
from glem_graphgym.models.dropout import dropout, relu_dropout
from glem_graphgym.models.hop_network import FeedForward, HopNetwork, weighted_sum

NEGATIVE_SLOPE = 0.2


class SAGN(HopNetwork):
    """Attention over hops, with the node's own features as the query (Sun et al. 2021).

    Hop k is encoded to h_k and weighted, per head, by softmax_k(leaky_relu(a_hop · h_k + a_query · h_0)). The weighted
    sum plus a linear map of x passes batch norm, ReLU, dropout and one MLP per head; the heads' logits are averaged.
    With ``label_hops`` a net on the label hops adds to the logits (SLE); the published one reads the last label hop.

    The published setting for ogbn-products: 512 hidden, 3 hops, 1 head, 2 layers (1 layer of 256 on GIANT's features);
    label net of 4 layers; dropout 0.5, input 0.2, attention 0.4, label 0.5.

    Args:
        dim_in, dim_hidden, dim_out, hops: D, H (per head), C and K.
        num_layers: layers of each hop's encoder, and of the MLP after attention.
        heads: attention heads, each with its own encoders.
    """

    def __init__(
        self,
        dim_in: int,
        dim_hidden: int,
        dim_out: int,
        hops: int,
        num_layers: int = 2,
        heads: int = 1,
        dropout: float = 0.5,
        input_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        label_hops: int = 0,
        label_layers: int = 4,
        label_dropout: float = 0.5,
    ) -> None:
        super().__init__(dim_in, dim_out, hops, label_hops, input_dropout)
        check_sizes(heads=heads)
        check_probabilities(attention_dropout=attention_dropout, label_dropout=label_dropout)
        self.dropout, self.attention_dropout = dropout, attention_dropout
        self.encoders = nn.ModuleList(
            _Heads(heads, dim_in, dim_hidden, dim_hidden, num_layers, dropout) for _ in range(hops + 1)
        )
        self.hop_vector = nn.Parameter(torch.zeros(heads, dim_hidden))  # at first all hops count the same
        self.query_vector = nn.Parameter(torch.zeros(heads, dim_hidden))
        self.residual = nn.Linear(dim_in, heads * dim_hidden, bias=False)
        self.norm = nn.BatchNorm1d(heads * dim_hidden)
        self.decoder = _Heads(heads, dim_hidden, dim_hidden, dim_out, num_layers, dropout)
        if label_hops:
            self.label_branch = _MeanOfHeads(
                heads, label_hops * dim_out, dim_hidden, dim_out, label_layers, label_dropout
            )
        nn.init.xavier_normal_(self.residual.weight, gain=nn.init.calculate_gain("relu"))

    def hop_logits(self, x: Tensor) -> Tensor:
        hidden = [encoder(x[hop]) for hop, encoder in enumerate(self.encoders)]  # (B, heads, H) each
        weights = dropout(self.attention(hidden), self.attention_dropout, self.training)
        out = weighted_sum(hidden, weights).flatten(1) + self.residual(x[0])
        out = relu_dropout(self.norm(out), self.dropout, self.training)
        return self.decoder(out.view_as(hidden[0])).mean(1)

    def attention(self, hidden: list[Tensor]) -> Tensor:
        """Weights (B, heads, K+1) of encoded hops, without dropout; they add up to 1 over the hops."""
        query = (hidden[0] * self.query_vector).sum(-1, keepdim=True)
        scores = torch.stack([(h * self.hop_vector).sum(-1) for h in hidden], dim=-1) + query
        return F.leaky_relu(scores, NEGATIVE_SLOPE).softmax(-1)


class _Heads(nn.Module):
    """One feed-forward net per head: (B, heads, dim_in), or (B, dim_in) for all heads, -> (B, heads, dim_out)."""

    def __init__(self, heads: int, dim_in: int, dim_hidden: int, dim_out: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            FeedForward(dim_in, dim_hidden, dim_out, num_layers, dropout, prelu=False) for _ in range(heads)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([net(x if x.dim() == 2 else x[:, head]) for head, net in enumerate(self.nets)], dim=1)


class _MeanOfHeads(_Heads):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(1)
