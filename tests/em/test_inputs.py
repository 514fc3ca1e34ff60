"""The label channel of the GNN's input."""

from __future__ import annotations

import numpy as np
import pytest

from glem_graphgym.em.inputs import LabelChannel
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets

N, C = 70, 3


def targets(hard: bool = False, shift: int = 0, pseudo: bool = True) -> StepTargets:
    nodes = np.array([60, 3, 11, 40])  # in no order
    gold = Gold(nodes, (np.array([0, 2, 1, 1]) + shift) % C, C)
    logits = np.random.default_rng(1).normal(size=(N, C)).astype(np.float16)
    rest = np.setdiff1d(np.arange(N), nodes)[::2]
    made = PseudoLabels(logits, rest, gold, temperature=0.5, hard=hard, confidence=0.7) if pseudo else None
    return StepTargets(gold, made)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("pseudo", [False, True])
def test_the_label_channel_holds_gold_one_hot_candidates_distributions_and_zeros(hard: bool, pseudo: bool) -> None:
    made = targets(hard, pseudo=pseudo)
    wanted = np.zeros((N, C), dtype=np.float32)
    if made.pseudo is not None:
        wanted[made.pseudo.candidates] = made.pseudo.targets(made.pseudo.candidates).numpy()
    wanted[made.gold.nodes] = np.eye(C, dtype=np.float32)[made.gold.labels]
    channel = LabelChannel(N, made)
    assert channel.shape == (N, C)
    np.testing.assert_array_equal(channel.all_rows().numpy(), wanted)
    for first, end in ((0, N), (0, 1), (3, 12), (59, 61), (61, N)):
        np.testing.assert_array_equal(channel.read(first, end), wanted[first:end])
    nodes = np.array([60, 2, 11, 0, 60])
    np.testing.assert_array_equal(channel.take(nodes), wanted[nodes])


def test_keys_of_labels_differ_where_labels_do() -> None:
    keys = {LabelChannel(N, made).key() for made in (targets(), targets(True), targets(shift=1), targets(pseudo=False))}
    assert len(keys) == 4
    assert LabelChannel(N, targets()).key() in keys
