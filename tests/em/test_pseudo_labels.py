from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glem_graphgym.em import pseudo_labels
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets, draw, keep_confident

NO_GOLD = Gold(np.empty(0, np.int64), np.empty(0, np.int64), 3)


def nodes_of(*nodes: int) -> np.ndarray:
    return np.array(nodes, dtype=np.int64)


def gold_of(*nodes: int, classes: int = 3) -> Gold:
    return Gold(nodes_of(*nodes), np.arange(len(nodes), dtype=np.int64) % classes, classes)


# ---- gold ---------------------------------------------------------------------------------------------------------


def test_gold_targets_are_one_hot() -> None:
    gold = Gold(nodes_of(4, 9), nodes_of(2, 0), 3)
    assert gold.targets().tolist() == [[0, 0, 1], [1, 0, 0]]


def test_gold_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="1 labels for 2 gold nodes"):
        Gold(nodes_of(1, 2), nodes_of(0), 3)


@pytest.mark.parametrize("label", [-1, 3])
def test_gold_label_out_of_range_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to 2"):
        Gold(nodes_of(1, 2), nodes_of(0, label), 3)


# ---- targets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_temperature_sharpens_soft_targets(dtype: type) -> None:
    # softmax(log 2 / T, 0): T = 1 gives 2/3, T = 1/2 gives 4/5, T = 2 gives √2 / (1 + √2).
    logits: np.ndarray = np.array([[9.0, 9.0], [math.log(2), 0.0]], dtype=dtype)
    expected = {1.0: 2 / 3, 0.5: 4 / 5, 2.0: math.sqrt(2) / (1 + math.sqrt(2))}
    for temperature, share in expected.items():
        pseudo = PseudoLabels(logits, nodes_of(1), Gold(nodes_of(0), nodes_of(0), 2), temperature=temperature)
        got = pseudo.targets(nodes_of(1))
        assert got.dtype == torch.float32
        assert got.tolist()[0] == pytest.approx([share, 1 - share], abs=2e-4)


def test_hard_targets_are_one_hot_whatever_the_temperature() -> None:
    logits = np.array([[0.1, 0.3, 0.2], [5.0, -1.0, 4.9]], dtype=np.float16)
    pseudo = PseudoLabels(logits, nodes_of(0, 1), NO_GOLD, temperature=0.2, hard=True)
    assert pseudo.targets(nodes_of(1, 0, 1)).tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]


# ---- confidence ---------------------------------------------------------------------------------------------------

# Top probability falls from node 0 to node 3.
FALLING = np.array([[4.0, 0.0], [0.0, 3.0], [2.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("share", "kept"),
    [
        (1.0, [0, 1, 2, 3]),
        (0.76, [0, 1, 2, 3]),
        (0.75, [0, 1, 2]),
        (0.5, [0, 1]),
        (0.26, [0, 1]),
        (0.01, [0]),
        (0.0, []),
    ],
)
def test_confidence_keeps_the_top_share_rounded_up(
    share: float, kept: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keep_confident(FALLING, np.arange(4), share).tolist() == kept
    monkeypatch.setattr(pseudo_labels, "ROWS_AT_ONCE", 3)
    assert keep_confident(FALLING, np.arange(4), share).tolist() == kept


def test_confidence_looks_at_candidates_only_and_answers_in_node_order() -> None:
    assert keep_confident(FALLING[::-1], nodes_of(0, 2, 3), 2 / 3).tolist() == [2, 3]
    pseudo = PseudoLabels(FALLING, nodes_of(1, 2, 3), Gold(nodes_of(0), nodes_of(0), 2), confidence=1 / 3)
    assert pseudo.nodes.tolist() == [1]


def test_confidence_of_a_whole_percentage_of_100_nodes_keeps_as_many() -> None:
    """Rounded up, but not for the error of a floating point product: 0.55 * 100 is 55.00000000000001."""
    kept = [len(keep_confident(np.zeros((100, 2)), np.arange(100), percent / 100)) for percent in range(101)]
    assert kept == list(range(101))


def test_confidence_goes_by_probability_not_by_logit() -> None:
    # Node 0 has the higher top logit, node 1 the higher top probability.
    assert keep_confident(np.array([[10.0, 9.9], [3.0, 0.0]]), np.arange(2), 0.5).tolist() == [1]


# ---- drawing ------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 30), st.integers(0, 10), st.floats(0, 4), st.integers(0, 2**32 - 1))
def test_draw_takes_ratio_times_gold_without_replacement(n: int, gold: int, ratio: float, seed: int) -> None:
    nodes = np.arange(100, 100 + 2 * n, 2)
    drawn = draw(nodes, ratio, gold, np.random.default_rng(seed))
    assert len(drawn) == min(n, round(ratio * gold))
    assert (np.diff(drawn) > 0).all()
    assert np.isin(drawn, nodes).all()


def step_targets(*, ratio: float = 1.0, redraw: bool = False, seed: int = 0) -> StepTargets:
    gold = gold_of(0, 1, 2, 3)
    logits = np.random.default_rng(1).normal(size=(60, 3))
    pseudo = PseudoLabels(logits, np.arange(4, 60), gold)
    return StepTargets(gold, pseudo, 0.5, ratio, redraw, seed)


def test_one_draw_serves_the_whole_step_unless_redrawn() -> None:
    kept, anew = step_targets(ratio=2.0), step_targets(ratio=2.0, redraw=True)
    assert all(kept.drawn(epoch).tolist() == kept.drawn(0).tolist() for epoch in range(1, 6))
    draws = {tuple(anew.drawn(epoch)) for epoch in range(6)}
    assert len(draws) == 6
    assert all(len(drawn) == 8 for drawn in draws)


def test_draws_depend_on_the_seed_and_on_nothing_else() -> None:
    first = step_targets(ratio=2.0, redraw=True, seed=5)
    np.random.seed(0)  # noqa: NPY002 - the global state must not matter
    before = first.drawn(3)
    np.random.seed(1)  # noqa: NPY002
    assert before.tolist() == step_targets(ratio=2.0, redraw=True, seed=5).drawn(3).tolist()
    assert before.tolist() != step_targets(ratio=2.0, redraw=True, seed=6).drawn(3).tolist()


def test_batch_holds_gold_first_and_each_node_with_its_own_target() -> None:
    targets = step_targets(ratio=1.5)
    nodes, target, is_gold = targets.batch(0)
    assert nodes[:4].tolist() == [0, 1, 2, 3]
    assert is_gold.tolist() == [True] * 4 + [False] * 6
    assert target[:4].tolist() == torch.eye(3)[[0, 1, 2, 0]].tolist()
    assert targets.pseudo is not None
    logits = targets.pseudo.logits[nodes[4:]]
    np.testing.assert_allclose(target[4:].numpy(), np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), rtol=1e-5)
    assert len(np.unique(nodes)) == len(nodes)


def test_gold_alone_and_ratio_zero_give_no_pseudo_nodes() -> None:
    for targets in (StepTargets(gold_of(0, 1), None, weight=0.8, ratio=3.0), step_targets(ratio=0.0)):
        nodes, target, is_gold = targets.batch(0)
        assert nodes.tolist() == targets.gold.nodes.tolist()
        assert bool(is_gold.all())
        assert torch.equal(target, targets.gold.targets())
