"""SIGN: scalable inception graph neural network (Frasca et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glem_graphgym.models.dropout import dropout
from glem_graphgym.models.hop_network import FeedForward, HopNetwork


class SIGN(HopNetwork):
    """MLP([f_0(x) ‖ f_1(Ax) ‖ ... ‖ f_K(A^K x)]): one transform per hop, concatenated (Frasca et al. 2020).

    Transforms and MLP are feed-forward nets of ``num_layers`` layers with PReLU and without batch norm, as in DGL's
    example, which is the entry on OGB's leaderboards (512 hidden, 5 hops, 2 layers).
    """

    def __init__(
        self,
        dim_in: int,
        dim_hidden: int,
        dim_out: int,
        hops: int,
        num_layers: int = 2,
        dropout: float = 0.5,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__(dim_in, dim_out, hops, input_dropout=input_dropout)
        self.transforms = nn.ModuleList(
            FeedForward(dim_in, dim_hidden, dim_hidden, num_layers, dropout, batch_norm=False) for _ in range(hops + 1)
        )
        self.prelu = nn.PReLU()
        self.mlp = FeedForward((hops + 1) * dim_hidden, dim_hidden, dim_out, num_layers, dropout, batch_norm=False)
        self.dropout = dropout

    def hop_logits(self, x: Tensor) -> Tensor:
        hidden = torch.cat([transform(x[hop]) for hop, transform in enumerate(self.transforms)], dim=1)
        return self.mlp(dropout(self.prelu(hidden), self.dropout, self.training))
