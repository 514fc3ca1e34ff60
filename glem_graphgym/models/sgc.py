"""SGC: simplified graph convolution (Wu et al. 2019)."""

from __future__ import annotations

from torch import Tensor, nn

from glem_graphgym.models.hop_network import HopNetwork


class SGC(HopNetwork):
    """A^K x Wᵀ + b: logistic regression on the last hop (Wu et al. 2019).

    Accepts any number of hop features and reads only the last, so a batch may consist of that one.
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out, hops=None)
        self.linear = nn.Linear(dim_in, dim_out)

    def hop_logits(self, x: Tensor) -> Tensor:
        return self.linear(x[-1])
