from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glem_graphgym.models.sagn import SAGN

HOPS, BATCH = 3, 9


def build(**changes: Any) -> SAGN:
    torch.manual_seed(0)
    arguments = {"dim_in": 5, "dim_hidden": 4, "dim_out": 3, "hops": HOPS, "heads": 2}
    net = SAGN(**{**arguments, **changes}).double().eval()
    for vector in (net.hop_vector, net.query_vector):  # which start as zeros
        torch.nn.init.normal_(vector)
    return net


def batch() -> Tensor:
    return torch.randn(HOPS + 1, BATCH, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def encoded(net: SAGN, hops: Tensor) -> list[Tensor]:
    return [encoder(x) for encoder, x in zip(net.encoders, hops, strict=True)]


def test_attention_by_hand() -> None:
    net = build()
    hidden = encoded(net.requires_grad_(False), batch())
    weights = net.attention(hidden)
    for node in range(BATCH):
        for head in range(2):
            query = float(net.query_vector[head] @ hidden[0][node, head])
            raw = [float(net.hop_vector[head] @ h[node, head]) + query for h in hidden]
            exp = torch.tensor([s if s > 0 else 0.2 * s for s in raw], dtype=torch.float64).exp()
            torch.testing.assert_close(weights[node, head], exp / exp.sum())


def test_sagn_by_hand() -> None:
    net = build(label_hops=2, num_layers=1)
    hops = batch()
    labels = torch.rand(2, BATCH, 3, dtype=torch.float64)
    hidden = encoded(net, hops)
    weights = net.attention(hidden)
    logits = []
    for head in range(2):
        gathered = sum(weights[:, head, [k]] * hidden[k][:, head] for k in range(HOPS + 1))
        residual = hops[0] @ net.residual.weight[4 * head : 4 * head + 4].T
        out = F.relu((gathered + residual) / (1 + 1e-5) ** 0.5)  # fresh running statistics
        logits.append(net.decoder.nets[head](out))
    assert net.label_branch is not None
    inputs = torch.cat([labels[0], labels[1]], dim=1)
    of_labels = sum(branch(inputs) for branch in net.label_branch.nets) / 2  # type: ignore[union-attr]
    torch.testing.assert_close(net(hops, labels), (logits[0] + logits[1]) / 2 + of_labels)


def test_attention_starts_with_equal_weights_and_learns() -> None:
    net = SAGN(5, 4, 3, HOPS, heads=2).double().eval()
    hidden = encoded(net, batch())
    torch.testing.assert_close(net.attention(hidden), torch.full((BATCH, 2, HOPS + 1), 1 / (HOPS + 1)).double())
    net(batch()).pow(2).sum().backward()
    assert net.hop_vector.grad is not None and net.hop_vector.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("dim_in", "h", "hops", "layers", "labels", "published"),
    [
        (100, 512, 3, 2, True, 2_179_678),  # SCR's README: SAGN+SCR-m on ogbn-products
        (768, 256, 3, 1, True, 1_154_654),  # SCR's README: GIANT-XRT+SAGN+SCR on ogbn-products, GLEM's setting
        (100, 512, 5, 2, False, 2_233_391),  # OGB's leaderboard: SAGN on ogbn-products, April 2021
    ],
)
def test_published_parameter_counts(dim_in: int, h: int, hops: int, layers: int, labels: bool, published: int) -> None:
    """Of ogbn-products, 47 classes, 1 head, label net of 4 layers on one label hop.

    2,233,391 is the plain SAGN of the leaderboard (5 hops, no label net), not SAGN+SCR: that has 3 hops and a label
    net, and its published 2,179,678. SCR itself adds no trained parameters: the teacher's are averages.
    """
    model = SAGN(dim_in, h, 47, hops, layers, label_hops=int(labels))
    assert sum(parameter.numel() for parameter in model.parameters()) == published


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 0}, "heads is 0, expected at least 1"),
        ({"attention_dropout": 1}, "attention_dropout is 1, expected a probability"),
        ({"num_layers": 0}, "num_layers is 0"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)
