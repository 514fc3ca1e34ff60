from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glem_graphgym.em import objective
from glem_graphgym.em.objective import glem_loss, objective_report
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels

LOG3 = math.log(3)

# ---- the loss by hand: logits (log 3, 0) are the probabilities 3/4, 1/4 -------------------------------------------

LOGITS = torch.tensor([[LOG3, 0.0], [0.0, LOG3], [LOG3, 0.0]])
TARGET = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
IS_GOLD = torch.tensor([True, True, False])
CE_GOLD = -(math.log(3 / 4) + math.log(1 / 4)) / 2
CE_PSEUDO = -(math.log(3 / 4) + math.log(1 / 4)) / 2


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_loss_weighs_the_means_of_pseudo_and_gold_nodes(weight: float) -> None:
    target = TARGET.clone()
    target[2] = torch.tensor([0.9, 0.1])
    on_pseudo = -(0.9 * math.log(3 / 4) + 0.1 * math.log(1 / 4))
    loss = glem_loss(LOGITS, target, IS_GOLD, weight)
    assert float(loss) == pytest.approx(weight * on_pseudo + (1 - weight) * CE_GOLD, rel=1e-6)


def test_each_term_is_a_mean_over_its_own_nodes_not_over_the_batch() -> None:
    """Twenty copies of the pseudo node weigh as much as one."""
    many = [0, 1] + [2] * 20
    once = glem_loss(LOGITS, TARGET, IS_GOLD, 0.4)
    often = glem_loss(LOGITS[many], TARGET[many], IS_GOLD[many], 0.4)
    assert float(once) == pytest.approx(0.4 * CE_PSEUDO + 0.6 * CE_GOLD, rel=1e-6)
    assert float(often) == pytest.approx(float(once), rel=1e-6)


def test_label_smoothing_moves_mass_of_gold_targets_only() -> None:
    # Smoothing 0.2 of 2 classes turns (1, 0) into (0.9, 0.1).
    gold = -(0.9 * math.log(3 / 4) + 0.1 * math.log(1 / 4) + 0.9 * math.log(1 / 4) + 0.1 * math.log(3 / 4)) / 2
    target = TARGET.clone()
    target[2] = torch.tensor([1.0, 0.0])
    pseudo = -math.log(3 / 4)
    loss = glem_loss(LOGITS, target, IS_GOLD, 0.3, label_smoothing=0.2)
    assert float(loss) == pytest.approx(0.3 * pseudo + 0.7 * gold, rel=1e-6)
    alone = glem_loss(LOGITS[:2], target[:2], IS_GOLD[:2], 0.3, label_smoothing=0.2)
    classes = torch.tensor([0, 0])
    torch.testing.assert_close(alone, torch.nn.functional.cross_entropy(LOGITS[:2], classes, label_smoothing=0.2))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_weigh_both_terms_as_in_torch(smoothing: float) -> None:
    weights, target = torch.tensor([0.5, 3.0]), TARGET.clone()
    target[:2] = torch.eye(2)
    loss = glem_loss(LOGITS, target, IS_GOLD, 0.3, smoothing, None, True, class_weights=weights)
    gold, pseudo = (
        torch.nn.functional.cross_entropy(LOGITS[rows], target[rows], weights, label_smoothing=smoothing)
        for rows in (IS_GOLD, ~IS_GOLD)
    )
    torch.testing.assert_close(loss, 0.3 * pseudo + 0.7 * gold)


def test_balanced_class_weights_have_the_mean_1_over_gold_nodes_and_1_for_a_class_without_any() -> None:
    weights = Gold(np.arange(4), np.array([0, 0, 3, 0]), 4).balanced().class_weights
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 1, 1, 2]))


def test_loss_of_half_precision_logits_is_computed_in_single_precision() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        logits = LOGITS.to(dtype)
        loss = glem_loss(logits, TARGET, IS_GOLD, 0.5)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, glem_loss(logits.float(), TARGET, IS_GOLD, 0.5), rtol=0, atol=0)


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """The report goes through nodes in blocks, as it would through millions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "ROWS_AT_ONCE", 4)
        yield


# ---- an independent twin in float64 -------------------------------------------------------------------------------


class Batch(NamedTuple):
    logits: np.ndarray
    target: np.ndarray
    is_gold: np.ndarray
    weight: float
    smoothing: float
    smooth_pseudo: bool


def twin(batch: Batch) -> float:
    """The objective written again, node by node, in float64."""
    classes = batch.logits.shape[1]
    terms: dict[bool, list[float]] = {True: [], False: []}
    for z, t, gold in zip(batch.logits.astype(np.float64), batch.target, batch.is_gold, strict=True):
        log_q = z - z.max() - np.log(np.exp(z - z.max()).sum())
        smoothed = gold or batch.smooth_pseudo
        goal = (1 - batch.smoothing) * t + batch.smoothing / classes if smoothed else t
        terms[bool(gold)].append(-float(np.dot(goal, log_q)))
    if not terms[False]:
        return float(np.mean(terms[True]))
    gold_mean = np.mean(terms[True]) if terms[True] else 0.0
    return float(batch.weight * np.mean(terms[False]) + (1 - batch.weight) * gold_mean)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    rows, classes = draw(st.integers(1, 9)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(scale=draw(st.sampled_from([0.1, 1.0, 8.0])), size=(rows, classes)).astype(np.float32)
    is_gold = np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    soft = rng.dirichlet(np.ones(classes), size=rows)
    hard = np.eye(classes)[rng.integers(0, classes, rows)]
    target = np.where(is_gold[:, None], hard, soft)
    share = st.floats(0, 1, width=32)
    smoothing, smooth_pseudo = draw(st.sampled_from([0.0, 0.1, 1.0])), draw(st.booleans())
    return Batch(logits, target, is_gold, draw(share), smoothing, smooth_pseudo)


def loss_of(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    target, is_gold = torch.from_numpy(batch.target).float(), torch.from_numpy(batch.is_gold)
    return glem_loss(logits, target, is_gold, batch.weight, batch.smoothing, None, batch.smooth_pseudo)


@settings(max_examples=200, deadline=None)
@given(batches())
def test_loss_equals_a_twin_in_double_precision(batch: Batch) -> None:
    assert float(loss_of(batch, torch.from_numpy(batch.logits))) == pytest.approx(twin(batch), rel=1e-5, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(batches())
def test_gradient_equals_central_differences_of_the_twin(batch: Batch) -> None:
    logits = torch.from_numpy(batch.logits).requires_grad_()
    loss_of(batch, logits).backward()
    assert logits.grad is not None
    step = 1e-5
    expected = np.zeros(batch.logits.shape)
    for index in np.ndindex(*batch.logits.shape):
        moved = batch.logits.astype(np.float64)
        up, down = moved.copy(), moved
        up[index] += step
        down[index] -= step
        expected[index] = (twin(batch._replace(logits=up)) - twin(batch._replace(logits=down))) / (2 * step)
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=2e-6, rtol=1e-4)


# ---- the report ---------------------------------------------------------------------------------------------------


def report(lm: np.ndarray, gnn: np.ndarray, gold: Gold, alpha: float, beta: float, **how: Any) -> dict[str, float]:
    unlabelled = np.setdiff1d(np.arange(len(lm)), gold.nodes)

    def pseudo_labels(logits: np.ndarray) -> PseudoLabels:
        return PseudoLabels(logits, unlabelled, gold, **how)

    return objective_report(lm, gnn, gold, unlabelled, alpha=alpha, beta=beta, pseudo_labels=pseudo_labels)


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 5),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([0.2, 1.0]),
    st.booleans(),
)
def test_report_equals_a_twin(
    seed: int, classes: int, alpha: float, beta: float, temperature: float, hard: bool
) -> None:
    rng = np.random.default_rng(seed)
    lm, gnn = rng.normal(size=(2, 12, classes))
    gold = Gold(np.array([1, 4, 5]), rng.integers(0, classes, 3), classes)
    u = np.setdiff1d(np.arange(12), gold.nodes)

    def target(logits: np.ndarray) -> np.ndarray:
        return np.eye(classes)[logits.argmax(-1)] if hard else np.exp(log_softmax(logits / temperature))

    q, p, rows = log_softmax(lm), log_softmax(gnn), np.arange(3)
    on_gold_q, on_gold_p = (log[gold.nodes][rows, gold.labels].mean() for log in (q, p))
    expected = {
        "o_q": alpha * (target(gnn)[u] * q[u]).sum(-1).mean() + (1 - alpha) * on_gold_q,
        "o_phi": beta * (target(lm)[u] * p[u]).sum(-1).mean() + (1 - beta) * on_gold_p,
        "entropy_q": -(np.exp(q[u]) * q[u]).sum(-1).mean(),
        "agreement": (lm[u].argmax(-1) == gnn[u].argmax(-1)).mean(),
    }
    got = report(lm, gnn, gold, alpha, beta, temperature=temperature, hard=hard)
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_report_without_unlabelled_nodes_is_the_gold_term_alone() -> None:
    gold = Gold(np.array([0, 1]), np.array([0, 1]), 2)
    logits = np.array([[LOG3, 0], [0, LOG3]])
    got = report(logits, logits, gold, alpha=0.8, beta=0.5)
    assert got["o_q"] == pytest.approx(0.2 * math.log(3 / 4), rel=1e-6)
    assert got["o_phi"] == pytest.approx(0.5 * math.log(3 / 4), rel=1e-6)
