from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from glem_graphgym.models.sign import SIGN


def test_sign_is_an_mlp_on_the_concatenated_transforms() -> None:
    net: Any = SIGN(5, 8, 3, hops=2).double().eval()
    with torch.no_grad():
        for slope in (net.prelu, net.mlp.prelu, *[transform.prelu for transform in net.transforms]):
            slope.weight.uniform_(0.1, 0.9)
    hops = torch.randn(3, 9, 5, dtype=torch.float64)
    hidden = []
    for x, transform in zip(hops, net.transforms, strict=True):
        inner = F.prelu(x @ transform.linears[0].weight.T + transform.linears[0].bias, transform.prelu.weight)
        hidden.append(inner @ transform.linears[1].weight.T + transform.linears[1].bias)
    together = F.prelu(torch.cat(hidden, dim=1), net.prelu.weight)
    first, second = net.mlp.linears
    inner = F.prelu(together @ first.weight.T + first.bias, net.mlp.prelu.weight)
    torch.testing.assert_close(net(hops), inner @ second.weight.T + second.bias)


@pytest.mark.parametrize(("dim_in", "classes", "published"), [(100, 47, 3_483_703), (128, 40, 3_566_128)])
def test_parameter_counts_of_the_leaderboard_entries(dim_in: int, classes: int, published: int) -> None:
    """OGB's entries SIGN for ogbn-products and ogbn-arxiv: DGL's example, 512 hidden, 5 hops, 2 layers."""
    assert sum(parameter.numel() for parameter in SIGN(dim_in, 512, classes, hops=5).parameters()) == published
