from __future__ import annotations

import numpy as np
import pytest

from glem_graphgym.em import combine
from glem_graphgym.em.combine import WEIGHTS, ensemble
from glem_graphgym.em.fit import Validation

LABELS = np.array([0, 1, 0, 1, 0, 1])
VALID = np.arange(4)


def validation(nodes: np.ndarray = VALID) -> Validation:
    return Validation(nodes, lambda logits: float((logits.argmax(-1) == LABELS[nodes]).mean()))


def logits_of(first: list[float]) -> np.ndarray:
    """Logits (6, 2) whose softmax gives class 0 these probabilities."""
    p = np.array(first)
    return np.log(np.stack([p, 1 - p], axis=1))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combine, "ROWS_AT_ONCE", 4)


def test_probabilities_are_mixed_by_the_weight_that_validation_prefers() -> None:
    lm = logits_of([0.99, 0.01, 0.45, 0.55, 0.5, 0.5])  # sure of the first two nodes, a little wrong on the next
    gnn = logits_of([0.45, 0.55, 0.99, 0.01, 0.9, 0.2])  # and the other way round
    mixed = np.zeros((6, 2))
    weight = ensemble(lm, gnn, validation(), mixed)
    assert weight == 0.5
    assert mixed.argmax(-1)[:4].tolist() == LABELS[:4].tolist()
    np.testing.assert_allclose(np.exp(mixed[4]), [0.5 * 0.5 + 0.5 * 0.9, 0.5 * 0.5 + 0.5 * 0.1], rtol=1e-5)
    np.testing.assert_allclose(np.exp(mixed).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(("better", "worse"), [(1.0, 0.0), (0.0, 1.0)])
def test_where_one_is_right_and_the_other_as_surely_wrong_the_right_one_decides(better: float, worse: float) -> None:
    right = logits_of([0.8, 0.2, 0.8, 0.2, 0.5, 0.5])
    wrong = logits_of([0.2, 0.8, 0.2, 0.8, 0.5, 0.5])
    models = {better: right, worse: wrong}
    mixed = np.zeros((6, 2))
    weight = ensemble(models[1.0], models[0.0], validation(), mixed)
    assert weight == (0.55 if better else 0.45)  # the nearest to 1/2 that is enough
    assert mixed.argmax(-1)[:4].tolist() == LABELS[:4].tolist()


def test_labels_outside_of_validation_play_no_part() -> None:
    rng = np.random.default_rng(0)
    lm, gnn = rng.normal(size=(2, 6, 2))
    scored: list[int] = []

    def score(logits: np.ndarray) -> float:
        scored.append(len(logits))
        return 0.5

    ensemble(lm, gnn, Validation(VALID, score), np.zeros((6, 2)))
    assert scored == [len(VALID)] * len(WEIGHTS)
