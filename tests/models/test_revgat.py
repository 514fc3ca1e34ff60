from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glem_graphgym.models import revgat
from glem_graphgym.models.attention_propagation import AttentionGraph
from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.models.revgat import Draws, GroupLayer, ReversibleBlock, RevGAT, RevGATLayer
from tests.models.conftest import NODES, dense_attention, dense_mask, dense_sum


def build(**changes: Any) -> RevGAT:
    arguments: dict[str, Any] = {"dim_in": 6, "dim_hidden": 8, "dim_out": 3, "num_layers": 5, "heads": 3}
    torch.manual_seed(0)
    return RevGAT(**{**arguments, **changes})


def blocks_of(net: RevGAT) -> list[ReversibleBlock]:
    return [block for block in net.blocks if isinstance(block, ReversibleBlock)]


def plain(blocks: Sequence[ReversibleBlock], x: Tensor, draws: Draws) -> Tensor:
    """What `revgat.run_blocks` computes, differentiated by autograd."""
    groups: Sequence[Tensor] = x.chunk(len(draws.masks), dim=1)
    for block, seed in zip(blocks, draws.seeds, strict=True):
        groups = block(groups, draws, seed)
    return torch.cat(list(groups), dim=1)


@pytest.fixture
def with_plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Calls something with blocks that autograd differentiates."""

    def call(function: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(revgat, "run_blocks", plain)
            return function()

    return call


def step(net: RevGAT, x: Tensor, adjacency: Adjacency) -> dict[str, Tensor]:
    """Logits, gradients of the input and of all parameters, and buffers, after one pass under a fixed seed."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    logits = net(x, adjacency)
    assert x.grad is None
    (logits.float() if logits.dtype == torch.bfloat16 else logits).square().sum().backward()
    grads = {name: parameter.grad for name, parameter in net.named_parameters()}
    found = {"logits": logits.detach(), "x": x.grad, **grads, **dict(net.named_buffers())}
    assert all(value is not None for value in found.values())
    return {name: value.clone() for name, value in found.items() if value is not None}


def dense_layer(layer: RevGATLayer, x: Tensor, mask: Tensor) -> Tensor:
    """The layer on a dense mask (N, N), target by source, without dropping anything."""
    heads, dim = layer.source.shape
    values = F.linear(x, layer.linear.weight).view(NODES, heads, dim)
    if layer.symmetric_norm:
        values = values / mask.sum(0).clamp(min=1).sqrt()[:, None, None]
    out = dense_sum(dense_attention(mask, (values * layer.source).sum(2), None), values.flatten(1))
    if layer.symmetric_norm:
        out = out * mask.sum(1).clamp(min=1).sqrt()[:, None]
    return out + F.linear(x, layer.root.weight)


@pytest.mark.parametrize("symmetric_norm", [False, True])
def test_a_layer_equals_its_dense_form_forward_and_in_all_gradients(adjacency: Adjacency, symmetric_norm: bool) -> None:
    torch.manual_seed(0)
    layer = RevGATLayer(6, 4, 2, symmetric_norm=symmetric_norm).double()
    x, seed = torch.randn(NODES, 6, dtype=torch.float64), torch.randn(NODES, 8, dtype=torch.float64)
    results = []
    for dense in (False, True):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        if dense:
            out = dense_layer(layer, leaf, dense_mask(adjacency.with_self_loops()))
        else:
            out = layer(leaf, AttentionGraph.cached(adjacency, 2), None)
        out.backward(seed)
        results.append([out, leaf.grad, *[parameter.grad for parameter in layer.parameters()]])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)  # the symmetric weight is kept in float32


@pytest.mark.parametrize("group", [2, 4])
def test_the_network_is_its_published_formula(adjacency: Adjacency, group: int) -> None:
    net = build(group=group, num_layers=4, norm="layer").double().eval()
    x = torch.randn(NODES, 6, dtype=torch.float64)
    mask = dense_mask(adjacency.with_self_loops())

    def norm(x: Tensor) -> Tensor:
        return F.relu((x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt())

    hidden = dense_layer(net.first, x, mask)
    for block in blocks_of(net):
        parts = hidden.chunk(group, dim=1)
        given = torch.stack(parts[1:]).sum(0)
        outputs = []
        for part, layer in zip(parts, block.layers, strict=True):
            assert isinstance(layer, GroupLayer)
            given = part + dense_layer(layer.layer, norm(given), mask)
            outputs.append(given)
        hidden = torch.cat(outputs, dim=1)
    logits = dense_layer(net.last, norm(hidden), mask) + net.bias
    torch.testing.assert_close(net(x, adjacency), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_layers": 2},
        {"num_layers": 12},
        {"group": 4},
        {"group": 8, "heads": 1},
        {"norm": "layer"},
        {"norm": "none", "attention_dropout": 0.4},
        {"dropout": 0.0, "edge_drop": 0.0},
        {"symmetric_norm": False, "input_norm": True},
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_and_statistics_are_those_of_plain_autograd(
    adjacency: Adjacency, with_plain: Any, changes: dict[str, Any], training: bool
) -> None:
    x = torch.randn(NODES, 6, dtype=torch.float64)
    nets = [build(**changes).double().train(training) for _ in range(2)]
    for net in nets:  # biases and statistics that are not 0; weights under which nothing explodes without batch norm
        generator = torch.Generator().manual_seed(2)
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.data.mul_(0.5 if tensor.requires_grad else 1).add_(noise, alpha=0.1)
    found = step(nets[0], x, adjacency)
    wanted = with_plain(lambda: step(nets[1], x, adjacency))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-9, rtol=1e-9, msg=partial("{}: {}".format, name))


def test_frozen_parameters_get_no_gradient_and_the_others_the_same(adjacency: Adjacency) -> None:
    x = torch.randn(NODES, 6, dtype=torch.float64)
    whole = step(build().double(), x, adjacency)
    net = build().double()
    for parameter in net.blocks[1].parameters():
        parameter.requires_grad_(False)
    net.first.requires_grad_(False)
    torch.manual_seed(1)
    net(x, adjacency).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == (name.startswith(("blocks.1.", "first.")))
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, whole[name])


def saved_bytes(net: RevGAT, x: Tensor, adjacency: Adjacency) -> int:
    """What one forward pass keeps for the backward pass, each storage once, parameters and graph aside."""
    storages: dict[int, int] = {}
    known = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    kept: list[Tensor] = []  # alive, so that no address comes twice

    def pack(saved: Tensor) -> Tensor:
        kept.append(saved)
        storage = saved.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return saved

    net(x, adjacency)  # what is made once
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        net(x, adjacency)
    return sum(storages.values())


def test_what_is_saved_does_not_grow_with_the_number_of_layers(adjacency: Adjacency, with_plain: Any) -> None:
    x = torch.randn(NODES, 6)
    few, many = (saved_bytes(build(num_layers=n, attention_dropout=0.1), x, adjacency) for n in (3, 30))
    assert few == many
    plain_few, plain_many = (
        with_plain(lambda n=n: saved_bytes(build(num_layers=n, attention_dropout=0.1), x, adjacency)) for n in (3, 30)
    )
    assert plain_many > 8 * plain_few  # so the count sees what is saved


def test_blocks_share_the_mask_and_draw_their_own_edges(adjacency: Adjacency, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Draws] = []

    def watched(blocks: Sequence[ReversibleBlock], x: Tensor, draws: Draws) -> Tensor:
        seen.append(draws)
        return plain(blocks, x, draws)

    monkeypatch.setattr(revgat, "run_blocks", watched)
    net, x = build(dim_hidden=200), torch.randn(NODES, 6)
    net(x, adjacency)
    net(x, adjacency)
    for draws in seen:
        assert len(set(draws.seeds)) == len(net.blocks) == 3
        for mask in draws.masks:
            assert mask is not None
            assert mask.unique().tolist() == [0, 4]  # 1 / (1 - 0.75)
            assert abs((mask > 0).float().mean() - 0.25) < 0.02
    pairs = itertools.combinations([mask for draws in seen for mask in draws.masks], 2)
    assert not any(torch.equal(a, b) for a, b in pairs if a is not None and b is not None)
    assert not set(seen[0].seeds) & set(seen[1].seeds)
    net.eval()(x, adjacency)
    assert set(seen[-1].masks) == set(seen[-1].seeds) == {None}


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_recomputes_close_to_what_was(adjacency: Adjacency, with_plain: Any, inside: bool) -> None:
    """Backward inside or outside of autocast: gradients as plain autograd has them, up to bfloat16's rounding."""
    x = torch.randn(NODES, 6)

    def run() -> dict[str, Tensor]:
        net = build(num_layers=8, dropout=0.5)
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net(x, adjacency)
            loss = logits.float().square().mean()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        assert logits.dtype == torch.bfloat16
        grads = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}
        assert grads.keys() == dict(net.named_parameters()).keys()
        return {"logits": logits.detach().float(), **grads}

    found, wanted = run(), with_plain(run)
    assert torch.equal(found["logits"], wanted["logits"])
    for name, value in wanted.items():
        assert found[name].dtype == torch.float32
        error = (found[name] - value).norm() / value.norm()
        assert error < 0.02, f"{name}: relative error {error}"


def test_a_change_of_the_parameters_before_the_backward_pass_is_noticed(adjacency: Adjacency) -> None:
    net = build()
    loss = net(torch.randn(NODES, 6), adjacency).sum()
    with torch.no_grad():
        next(net.blocks[0].parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
