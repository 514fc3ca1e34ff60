"""The networks on hop features: each by hand, their published sizes, and what all have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import SGConv

from glem_graphgym.models.gamlp import GAMLP, InitialResidual, RecursiveAttention
from glem_graphgym.models.hop_network import FeedForward, HopNetwork, weighted_sum
from glem_graphgym.models.hops import propagate
from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.models.sagn import SAGN
from glem_graphgym.models.sgc import SGC
from glem_graphgym.models.sign import SIGN

HOPS, BATCH, DIM, CLASSES = 3, 9, 5, 3
COMMON: dict[str, Any] = {"dim_in": DIM, "dim_hidden": 4, "dim_out": CLASSES, "hops": HOPS}
LABELLED: dict[str, Any] = {**COMMON, "label_hops": 2}
NETWORKS: dict[str, tuple[type[HopNetwork], dict[str, Any]]] = {
    "sgc": (SGC, {"dim_in": DIM, "dim_out": CLASSES}),
    "sign": (SIGN, COMMON),
    "sagn": (SAGN, {**COMMON, "attention_dropout": 0.3}),
    "sagn, heads and labels": (SAGN, {**LABELLED, "heads": 2}),
    "sagn, one layer": (SAGN, {**COMMON, "num_layers": 1}),
    "recursive gamlp": (GAMLP, COMMON),
    "recursive gamlp, labels": (GAMLP, {**LABELLED, "attention_dropout": 0.3, "label_dropout": 0.2}),
    "normed gamlp, labels": (GAMLP, {**LABELLED, "activation": "sigmoid", "input_norm": True}),
    "plain gamlp": (GAMLP, {**COMMON, "residual": False, "output_layers": 1}),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def build(name: str, **changes: Any) -> Any:
    network, arguments = NETWORKS[name]
    torch.manual_seed(0)
    return network(**{**arguments, **changes})


def batch_of(net: HopNetwork, size: int = BATCH, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(HOPS + 1, size, DIM, generator=generator, dtype=dtype)
    labels = torch.rand(net.label_hops, size, CLASSES, generator=generator, dtype=dtype).softmax(-1)
    return x, labels if net.label_hops else None


@every_network
def test_a_node_is_predicted_alike_alone_and_in_a_batch(name: str) -> None:
    net = build(name).double()
    x, labels = batch_of(net, dtype=torch.float64)
    net(x, labels)  # moves batch norm's running statistics
    net.eval()
    alone = net(x[:, 3:4], None if labels is None else labels[:, 3:4])
    torch.testing.assert_close(alone, net(x, labels)[3:4])


@every_network
def test_bfloat16_autocast_stays_close(name: str) -> None:
    net = build(name).eval()
    x, labels = batch_of(net)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(x, labels)
        net(x, labels).float().sum().backward()
    torch.testing.assert_close(logits.float(), net(x, labels), atol=0.1, rtol=0.1)


@every_network
def test_wrong_shapes_are_refused(name: str) -> None:
    net = build(name)
    x, labels = batch_of(net)
    hops = "hops" if name == "sgc" else HOPS + 1
    for wrong in (x[0], x[:, :, 1:], x[:0], *([] if name == "sgc" else [x[1:]])):
        with pytest.raises(ValueError, match=rf"hop_features are .* expected \({hops}, batch, {DIM}\)"):
            net(wrong, labels)
    wrong_labels = torch.zeros(5, BATCH, CLASSES) if labels is None else labels[:, 1:]
    with pytest.raises(ValueError, match="label_features are"):
        net(x, wrong_labels)
    if labels is not None:
        with pytest.raises(ValueError, match=r"label_features are None, expected \(2, 9, 3\) with label_hops = 2"):
            net(x)


def test_a_feed_forward_net_is_its_layers_in_turn() -> None:
    x = torch.randn(9, 4)
    for prelu, slope in ((True, 0.25), (False, 0.0)):
        net = FeedForward(4, 8, 2, 3, 0.5, prelu=prelu).eval()
        hidden = x
        for linear in net.linears[:-1]:
            hidden = linear(hidden) / (1 + 1e-5) ** 0.5  # fresh running statistics: mean 0, variance 1
            hidden = hidden.clamp(min=0) + slope * hidden.clamp(max=0)
        torch.testing.assert_close(net(x), net.linears[-1](hidden))
    assert [*FeedForward(4, 8, 2, 1, 0.5).state_dict()] == ["linears.0.weight", "linears.0.bias"]


def test_weighted_sum() -> None:
    hidden, weights = torch.randn(3, 5, 2, 4), torch.rand(5, 2, 3)
    torch.testing.assert_close(weighted_sum([*hidden], weights), torch.einsum("kbhd,bhk->bhd", hidden, weights))


# ---- by hand ------------------------------------------------------------------------------------------------------


def batch() -> Tensor:
    return torch.randn(HOPS + 1, BATCH, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def batch_norm(x: Tensor) -> Tensor:
    return x / (1 + 1e-5) ** 0.5  # fresh running statistics: mean 0, variance 1


def encoded(encoders: Iterable[Any], hops: Tensor) -> list[Tensor]:
    return [encoder(x) for encoder, x in zip(encoders, hops, strict=True)]


def sagn(**changes: Any) -> SAGN:
    torch.manual_seed(0)
    net = SAGN(**{**COMMON, "heads": 2, **changes}).double().eval()
    for vector in (net.hop_vector, net.query_vector):  # which start as zeros
        torch.nn.init.normal_(vector)
    return net


def gamlp(**changes: Any) -> GAMLP:
    torch.manual_seed(0)
    return GAMLP(**{**COMMON, **changes}).double().eval()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
}


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


def test_sagns_attention_by_hand() -> None:
    net = sagn()
    hidden = encoded(net.requires_grad_(False).encoders, batch())
    weights = net.attention(hidden)
    for node in range(BATCH):
        for head in range(2):
            query = float(net.query_vector[head] @ hidden[0][node, head])
            raw = [float(net.hop_vector[head] @ h[node, head]) + query for h in hidden]
            exp = torch.tensor([s if s > 0 else 0.2 * s for s in raw], dtype=torch.float64).exp()
            torch.testing.assert_close(weights[node, head], exp / exp.sum())


def test_sagn_by_hand() -> None:
    net = sagn(label_hops=2, num_layers=1)
    hops = batch()
    labels = torch.rand(2, BATCH, 3, dtype=torch.float64)
    hidden = encoded(net.encoders, hops)
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


def test_sagns_attention_starts_with_equal_weights_and_learns() -> None:
    net = SAGN(5, 4, 3, HOPS, heads=2).double().eval()
    hidden = encoded(net.encoders, batch())
    torch.testing.assert_close(net.attention(hidden), torch.full((BATCH, 2, HOPS + 1), 1 / (HOPS + 1)).double())
    net(batch()).pow(2).sum().backward()
    assert net.hop_vector.grad is not None and net.hop_vector.grad.abs().sum() > 0


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_recursive_attention_by_hand(activation: str) -> None:
    """The formula as written: vectors are gathered, and concatenated with the hop's own."""
    net = gamlp(activation=activation)
    hidden = encoded(net.preprocess, batch())
    nn.init.normal_(net.attention.linear.bias)
    weights, delta = net.attention(hidden), ACTIVATIONS[activation]
    for node in range(BATCH):
        h = [x[node] for x in hidden]
        scores = [delta(net.attention.linear(torch.cat([h[0], h[0]])))]
        for k in range(1, HOPS + 1):
            past = torch.cat(scores).softmax(0)
            history = sum(past[j] * h[j] for j in range(k))
            scores.append(delta(net.attention.linear(torch.cat([history, h[k]]))))  # type: ignore[list-item]
        torch.testing.assert_close(weights[node], torch.cat(scores).softmax(0))


def test_history_weights_are_dropped_in_training_only() -> None:
    attention = RecursiveAttention(4, torch.sigmoid, dropout=0.5)
    hidden = [*torch.randn(HOPS + 1, BATCH, 4)]
    assert not torch.equal(attention(hidden), attention(hidden))
    attention.eval()
    assert torch.equal(attention(hidden), attention(hidden))


@pytest.mark.parametrize("residual", [True, False])
def test_gamlp_by_hand(residual: bool) -> None:
    net: Any = gamlp(label_hops=2, input_norm=True, residual=residual)
    hops = batch()
    labels = torch.rand(2, BATCH, 3, dtype=torch.float64)
    x = batch_norm(hops)
    hidden = encoded(net.preprocess, x)
    out = torch.einsum("kbd,bk->bd", torch.stack(hidden), net.attention(hidden))
    if residual:
        out = net.prelu(out + net.residual(x[0]))
    of_labels = net.label_branch[1](torch.cat([labels[0], labels[1]], dim=1))
    torch.testing.assert_close(net(hops, labels), net.output(out) + of_labels)
    assert (net.prelu is None) == (net.residual is None) == (not residual)


@pytest.mark.parametrize(("dim_in", "dim_out"), [(4, 4), (5, 3), (4, 3), (5, 4)])
def test_initial_residual_by_hand(dim_in: int, dim_out: int) -> None:
    net = InitialResidual(dim_in, 4, dim_out, num_layers=4, dropout=0.5, alpha=0.3).double().eval()
    assert net.prelu is not None
    x = torch.randn(BATCH, dim_in, dtype=torch.float64)
    w: list[Any] = [linear.weight.T for linear in net.linears]
    first = hidden = batch_norm(x @ w[0]) + (x if dim_in == 4 else 0)
    for layer in (1, 2):
        hidden = net.prelu(hidden)
        hidden = batch_norm((0.7 * hidden + 0.3 * first) @ w[layer]) + hidden
    hidden = net.prelu(hidden)
    torch.testing.assert_close(net(x), batch_norm(hidden @ w[3]) + (hidden if dim_out == 4 else 0))


def test_sgc_equals_pyg_forward_and_in_gradients() -> None:
    edges = torch.randint(0, 20, (2, 60), generator=torch.Generator().manual_seed(0))
    edges = edges[:, edges[0] != edges[1]].unique(dim=1)
    x = torch.randn(20, 5, dtype=torch.float64)
    ours, theirs = SGC(5, 3).double(), SGConv(5, 3, K=3).double()
    with torch.no_grad():
        theirs.lin.weight.copy_(ours.linear.weight)
        theirs.lin.bias.copy_(ours.linear.bias)
    hops = propagate(Adjacency.from_edge_index(edges, 20).gcn(), x, 3)
    seed = torch.randn(20, 3, dtype=torch.float64)
    out, expected = ours(hops), theirs(x, edges)
    torch.testing.assert_close(out, expected)
    out.backward(seed)
    expected.backward(seed)
    torch.testing.assert_close(ours.linear.weight.grad, theirs.lin.weight.grad)
    torch.testing.assert_close(ours.linear.bias.grad, theirs.lin.bias.grad)


def test_sgc_reads_the_last_hop_alone() -> None:
    net = SGC(5, 3)
    hops = torch.randn(4, 7, 5)
    assert torch.equal(net(hops), net(hops[-1:]))
