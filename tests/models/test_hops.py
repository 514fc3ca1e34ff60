"""Hop features and label hops, and what all networks on them have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glem_graphgym.models import hops as hops_module
from glem_graphgym.models.gamlp import GAMLP
from glem_graphgym.models.hop_network import FeedForward, HopNetwork, weighted_sum
from glem_graphgym.models.hops import draw_folds, fold_label_hops, propagate
from glem_graphgym.models.propagation import Adjacency, SparseOperator
from glem_graphgym.models.sagn import SAGN
from glem_graphgym.models.sgc import SGC
from glem_graphgym.models.sign import SIGN

NODES, CLASSES, HOPS = 40, 3, 4


@pytest.fixture
def adjacency() -> Adjacency:
    """Undirected, so that every walk of two steps can lead back; the last three nodes have no edge."""
    drawn = torch.randint(0, NODES - 3, (2, 90), generator=torch.Generator().manual_seed(0))
    return Adjacency.from_edge_index(torch.cat([drawn, drawn.flip(0)], dim=1), NODES)


@pytest.fixture(params=["gcn", "mean"])
def operator(request: pytest.FixtureRequest, adjacency: Adjacency) -> SparseOperator:
    return getattr(adjacency, request.param)()


def dense(operator: SparseOperator) -> Tensor:
    return operator @ torch.eye(NODES, dtype=torch.float64)


def one_hot(seed: int = 0) -> Tensor:
    classes = torch.randint(0, CLASSES, (NODES,), generator=torch.Generator().manual_seed(seed))
    return torch.eye(CLASSES, dtype=torch.float64)[classes]


class Widths(SparseOperator):
    """An operator that notes how many columns it is given at a time."""

    def __init__(self, operator: SparseOperator) -> None:
        self.__dict__.update(operator.__dict__)
        self.seen: list[int] = []

    def __matmul__(self, x: Tensor) -> Tensor:
        self.seen.append(x.shape[1])
        return super().__matmul__(x)


def test_hop_features_are_powers_of_the_operator(operator: SparseOperator) -> None:
    x = torch.randn(NODES, 7, dtype=torch.float64)
    hops = propagate(operator, x, HOPS)
    assert hops.shape == (HOPS + 1, NODES, 7) and hops.dtype == torch.float64
    for hop in range(HOPS + 1):
        torch.testing.assert_close(hops[hop], torch.linalg.matrix_power(dense(operator), hop) @ x)


def test_no_gradient_and_no_hop(operator: SparseOperator) -> None:
    x = torch.randn(NODES, 7, requires_grad=True)
    assert not propagate(operator, x, 2).requires_grad
    assert torch.equal(propagate(operator, x, 0), x.detach()[None])


@pytest.mark.parametrize("columns", [0, 1, 2, 3, 7, 100])
def test_blocks_bound_the_width_and_change_no_bit(
    operator: SparseOperator, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    x, spy = torch.randn(NODES, 7), Widths(operator)
    expected = propagate(operator, x, 2)
    monkeypatch.setattr(hops_module, "BLOCK_BYTES", 3 * NODES * 4 * columns)
    assert torch.equal(propagate(spy, x, 2), expected)
    assert max(spy.seen) == min(max(1, columns), 7) and sum(spy.seen) == 7 * 2  # a column however little is allowed


def test_hops_are_rounded_when_stored_and_not_between(operator: SparseOperator) -> None:
    x = torch.randn(NODES, 7)
    assert torch.equal(propagate(operator, x, 2, torch.float16), propagate(operator, x, 2).half())
    half = propagate(operator, x.half(), 2)
    assert torch.equal(half, propagate(operator, x.half().float(), 2).half()) and half.dtype == torch.float16


def test_bad_arguments_of_propagate(operator: SparseOperator) -> None:
    x = torch.randn(NODES, 7)
    with pytest.raises(
        ValueError, match=r"x is torch.int64 of shape \(40, 7\), expected floats of shape \(40, columns\)"
    ):
        propagate(operator, x.long(), 1)
    with pytest.raises(ValueError, match=r"x is .* of shape \(39, 7\)"):
        propagate(operator, x[1:], 1)
    with pytest.raises(ValueError, match="hops is -1, expected at least 0"):
        propagate(operator, x, -1)


@pytest.fixture
def folds() -> Tensor:
    is_given = torch.arange(NODES) % 4 != 0
    return draw_folds(is_given, 3, torch.Generator().manual_seed(1))


def test_folds_are_even_random_and_follow_the_generator() -> None:
    is_given = torch.arange(NODES) % 4 != 0
    folds = draw_folds(is_given, 4, torch.Generator().manual_seed(1))
    assert torch.equal(folds >= 0, is_given)
    assert sorted(folds[is_given].bincount().tolist()) == [7, 7, 8, 8]
    assert torch.equal(folds, draw_folds(is_given, 4, torch.Generator().manual_seed(1)))
    assert not torch.equal(folds, draw_folds(is_given, 4, torch.Generator().manual_seed(2)))
    with pytest.raises(ValueError, match="num_folds is 1, expected at least 2"):
        draw_folds(is_given, 1)
    with pytest.raises(ValueError, match=r"expected torch\.bool"):
        draw_folds(is_given.long(), 2)


def label_hops(operator: SparseOperator, labels: Tensor, folds: Tensor) -> Tensor:
    """All hops from the first, (HOPS, N, C)."""
    return torch.cat([fold_label_hops(operator, labels, folds, hops) for hops in range(1, HOPS + 1)])


def test_no_label_reaches_its_own_node_at_any_hop(operator: SparseOperator, folds: Tensor) -> None:
    """To the bit: a rounding error that depends on the own label would tell of it too."""
    labels = one_hot().float()
    before = label_hops(operator, labels, folds)
    for node in folds.ge(0).nonzero().flatten().tolist():
        for other in (labels[node].roll(1), torch.tensor([torch.nan, 1e30, -torch.inf])):
            changed = labels.clone()
            changed[node] = other
            after = label_hops(operator, changed, folds)
            assert torch.equal(before[:, node], after[:, node])


def test_label_hops_are_sums_over_the_other_folds(operator: SparseOperator, folds: Tensor) -> None:
    labels = one_hot()
    given = labels.clone()
    given[folds < 0] = torch.nan  # labels not to be seen, such as those of the test split
    hops = label_hops(operator, given, folds)
    for node in range(NODES):
        seen = (folds >= 0) & (folds != folds[node])  # of a node in no fold: all that are given
        for hop in range(HOPS):
            power = torch.linalg.matrix_power(dense(operator), hop + 1)[node]
            torch.testing.assert_close(hops[hop, node], power @ (labels * seen[:, None]))


def test_label_hops_may_be_stored_in_another_type(
    operator: SparseOperator, folds: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = one_hot().float()
    expected = fold_label_hops(operator, labels, folds, HOPS).half()
    monkeypatch.setattr(hops_module, "BLOCK_BYTES", 1)
    assert torch.equal(fold_label_hops(operator, labels, folds.to(torch.int8), HOPS, torch.float16), expected)


def test_bad_arguments_of_label_hops(operator: SparseOperator, folds: Tensor) -> None:
    labels = one_hot()
    with pytest.raises(ValueError, match=r"labels is torch\.int64"):
        fold_label_hops(operator, labels.long(), folds, 1)
    with pytest.raises(ValueError, match="hops is 0, expected at least 1"):
        fold_label_hops(operator, labels, folds, 0)
    with pytest.raises(ValueError, match=r"folds is torch.float32 of shape \(40,\), expected signed integers"):
        fold_label_hops(operator, labels, folds.float(), 1)
    with pytest.raises(ValueError, match="folds has -2"):
        fold_label_hops(operator, labels, folds - 1, 1)


# What all networks on hop features have in common

BATCH, DIM = 30, 6
COMMON: dict[str, Any] = {"dim_in": DIM, "dim_hidden": 8, "dim_out": CLASSES, "hops": HOPS}
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


def without_dropout(net: HopNetwork) -> HopNetwork:
    for module in net.modules():
        for attribute in [name for name in vars(module) if name.endswith("dropout")]:
            setattr(module, attribute, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


@every_network
def test_a_node_is_predicted_alike_alone_and_in_a_batch(name: str) -> None:
    net = build(name).double()
    x, labels = batch_of(net, dtype=torch.float64)
    net(x, labels)  # moves batch norm's running statistics
    net.eval()
    alone = net(x[:, 3:4], None if labels is None else labels[:, 3:4])
    torch.testing.assert_close(alone, net(x, labels)[3:4])


@every_network
def test_dropout_acts_in_training_only_and_follows_the_seed(name: str) -> None:
    if name == "sgc":
        pytest.skip("has no dropout")
    net = build(name, input_dropout=0.3)
    x, labels = batch_of(net)
    torch.manual_seed(1)
    first, other = net(x, labels), net(x, labels)
    torch.manual_seed(1)
    assert torch.equal(first, net(x, labels))
    assert not torch.equal(first, other)
    net.eval()
    evaluated = net(x, labels)
    assert torch.equal(evaluated, net(x, labels))
    assert torch.equal(evaluated, without_dropout(net)(x, labels))


@every_network
def test_bfloat16_autocast_stays_close(name: str) -> None:
    net = without_dropout(build(name)).eval()
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
        with pytest.raises(ValueError, match=r"label_features are None, expected \(2, 30, 3\) with label_hops = 2"):
            net(x)


@every_network
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim_in": 0}, "dim_in is 0, expected at least 1"),
        ({"dim_out": 0}, "dim_out is 0"),
        ({"dim_hidden": 0}, "dim_hidden is 0"),
        ({"hops": -1}, "hops is -1, expected at least 0"),
        ({"dropout": 1.0}, "dropout is 1.0, expected a probability"),
        ({"input_dropout": -0.1}, "input_dropout is -0.1"),
        ({"label_hops": -1}, "label_hops is -1"),
    ],
)
def test_bad_arguments_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    if not changes.keys() <= NETWORKS[name][0].__init__.__annotations__.keys():
        pytest.skip("has no such argument")
    with pytest.raises(ValueError, match=message):
        build(name, **changes)


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
