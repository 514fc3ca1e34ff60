from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glem_graphgym.data.text_graph import csr_from_edges
from glem_graphgym.em.hop_step import HopLearner
from glem_graphgym.em.m_step import GNNSettings, Structures
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.em.stage import Hardware, Validation
from glem_graphgym.models.gamlp import GAMLP
from glem_graphgym.models.hops import propagate
from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.models.sagn import SAGN
from glem_graphgym.models.sgc import SGC

N, C, D, HOPS = 40, 3, 5, 2
RNG = np.random.default_rng(0)
GOLD, VALID = np.arange(0, 24, 3), np.arange(24, 32)
REST = np.setdiff1d(np.arange(N), GOLD)
ROWPTR, COL = csr_from_edges(RNG.integers(0, N, 90), RNG.integers(0, N, 90), N)
ADJACENCY = Adjacency(torch.from_numpy(ROWPTR), torch.from_numpy(COL))
FEATURES = RNG.normal(size=(N, D)).astype(np.float32)
LABELS = RNG.integers(0, C, N)


def targets(pseudo: bool = True, labels: np.ndarray = LABELS, **options: Any) -> StepTargets:
    gold = Gold(GOLD, labels[GOLD], C)
    logits = np.random.default_rng(1).normal(size=(N, C))
    made = PseudoLabels(logits, REST, gold) if pseudo else None
    return StepTargets(gold, made, **{"weight": 0.3, "ratio": 1.5, "redraw": True, "seed": 5, **options})


def learner_of(
    build: Callable[[int, int], nn.Module] = lambda dim_in, classes: SGC(dim_in, classes),
    structures: Structures | None = None,
    lr: float = 0.05,
    score: Callable[[np.ndarray], float] = lambda logits: 0.5,
    hardware: Hardware | None = None,
    batch_size: int = 0,
    **options: Any,
) -> HopLearner:
    def optimizer(params: Iterator[nn.Parameter]) -> tuple[Any, Any]:
        made = torch.optim.SGD(params, lr=lr)
        return made, torch.optim.lr_scheduler.ConstantLR(made, 1.0)

    settings = GNNSettings(**{"epochs": 3, **options})
    return HopLearner(
        build,
        structures or Structures(ADJACENCY, ADJACENCY),
        optimizer,
        settings,
        Validation(VALID, score),
        hardware or Hardware(),
        operator=lambda adjacency: adjacency.gcn(),
        hops=HOPS,
        label_hops=2,
        batch_size=batch_size,
    )


def gamlp(dim_in: int, classes: int) -> nn.Module:
    torch.manual_seed(0)
    return GAMLP(dim_in, 8, classes, HOPS, dropout=0.0, label_hops=1, label_dropout=0.0)


def sagn(dim_in: int, classes: int) -> nn.Module:
    torch.manual_seed(0)
    return SAGN(dim_in, 8, classes, HOPS, dropout=0.0, label_hops=1, label_dropout=0.0)


def predictions(learner: HopLearner) -> np.ndarray:
    out = np.zeros((N, C), dtype=np.float32)
    learner.predict(out)
    return out


def test_predictions_are_the_networks_on_propagated_features() -> None:
    learner = learner_of()
    learner.fit(targets(), FEATURES, "test")
    assert learner.model is not None
    with torch.no_grad():
        wanted = learner.model(propagate(ADJACENCY.gcn(), torch.from_numpy(FEATURES), HOPS))
    np.testing.assert_allclose(predictions(learner), wanted, rtol=1e-3, atol=1e-3)


def test_one_full_batch_step_is_that_of_the_objective_by_hand() -> None:
    learner = learner_of(epochs=1)
    torch.manual_seed(3)
    learner.fit(targets(), FEATURES, "test")
    torch.manual_seed(3)
    twin = SGC(D, C)
    nodes, target, is_gold = targets().batch(0)
    logits = twin(propagate(ADJACENCY.gcn(), torch.from_numpy(FEATURES), HOPS)[:, torch.from_numpy(nodes)])
    entropy = -(target * torch.log_softmax(logits, -1)).sum(-1)
    (0.3 * entropy[~is_gold].mean() + 0.7 * entropy[is_gold].mean()).backward()
    assert learner.model is not None
    for ours, theirs in zip(learner.model.parameters(), twin.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(ours, theirs - 0.05 * theirs.grad)


@pytest.mark.parametrize(("size", "sizes"), [(0, [20]), (7, [6, 7, 7]), (1000, [20])])
def test_an_epochs_nodes_come_once_each_in_batches_of_one_size(size: int, sizes: list[int]) -> None:
    seen: list[list[Tensor]] = []

    class Watched(SGC):
        def hop_logits(self, hop_features: Tensor) -> Tensor:
            if self.training:
                seen.append(list(hop_features[0]))
            return super().hop_logits(hop_features)

    learner = learner_of(lambda dim_in, classes: Watched(dim_in, classes), batch_size=size, epochs=2)
    learner.fit(targets(), FEATURES, "test")
    per_epoch = len(sizes)
    assert sorted(map(len, seen[:per_epoch])) == sizes
    for epoch in range(2):
        rows = torch.stack([row for batch in seen[epoch * per_epoch : (epoch + 1) * per_epoch] for row in batch])
        wanted = torch.from_numpy(FEATURES[targets().batch(epoch)[0]])
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, wanted.tolist()))


@pytest.mark.parametrize("build", [gamlp, sagn])
def test_with_label_input_no_target_sees_its_own_label(build: Callable[[int, int], nn.Module]) -> None:
    """What any node sees of labels is the same whatever its own label is, gold or pseudo."""
    learner = learner_of(build, label_input=True)
    learner.load(targets(), FEATURES, None)
    assert learner.label_features is not None
    before = learner.label_features.clone()
    for node in GOLD:
        changed = LABELS.copy()
        changed[node] = (changed[node] + 1) % C
        learner.load(targets(labels=changed), FEATURES, None)
        assert torch.equal(learner.label_features[:, node], before[:, node])
        assert not torch.equal(learner.label_features, before)
    assert before.shape == (1, N, C)


def test_validation_and_test_labels_change_nothing() -> None:
    others = LABELS.copy()
    others[REST] = (others[REST] + 1) % C
    found = []
    for labels in (LABELS, others):
        learner = learner_of(gamlp, label_input=True)
        learner.fit(targets(labels=labels), FEATURES, "test")
        found.append(predictions(learner))
    assert np.array_equal(found[0], found[1])


def test_unseen_nodes_are_out_of_training_and_predicted_on_the_whole_graph() -> None:
    unseen = np.arange(32, N)
    is_seen = np.ones(N, dtype=bool)
    is_seen[unseen] = False
    seen = np.flatnonzero(is_seen)
    row = np.repeat(np.arange(N), np.diff(ROWPTR))
    kept = is_seen[row] & is_seen[COL]
    inner = torch.from_numpy(np.stack([row[kept], COL[kept]]).astype(np.int64))
    train = Adjacency.from_edge_index(inner, len(seen))
    learner = learner_of(structures=Structures(train, ADJACENCY, seen))
    made = replace(targets(), pseudo=None)
    learner.fit(made, FEATURES, "test")
    assert learner.hop_features is not None
    x = torch.from_numpy(FEATURES)
    torch.testing.assert_close(learner.hop_features[:, seen], propagate(train.gcn(), x[: len(seen)], HOPS))
    torch.testing.assert_close(learner.hop_features[:, unseen], propagate(ADJACENCY.gcn(), x, HOPS)[:, unseen])
    before = predictions(learner)
    changed = FEATURES.copy()
    changed[unseen] += 1
    other = learner_of(structures=Structures(train, ADJACENCY, seen))
    torch.manual_seed(0)
    other.fit(made, changed, "test")
    assert other.model is not None and learner.model is not None
    learner.load(made, changed, dict(learner.model.state_dict()))
    after = predictions(learner)
    assert np.array_equal(before[seen], after[seen])
    assert not np.array_equal(before[unseen], after[unseen])


def test_the_best_weights_by_validation_are_kept_and_patience_ends_training() -> None:
    scores = iter([0.1, 0.9, 0.3, 0.2, 0.1])
    learner = learner_of(score=lambda logits: next(scores), epochs=50, patience=2)
    log = learner.fit(targets(), FEATURES, "test")
    assert (log.best_epoch, log.epochs) == (2, 4)


def test_bfloat16_keeps_hops_in_half_the_bytes_and_agrees_up_to_rounding() -> None:
    found = []
    for hardware in (Hardware(), Hardware("cpu", "bf16-mixed")):
        learner = learner_of(gamlp, hardware=hardware, epochs=5, label_input=True)
        learner.fit(targets(), FEATURES, "test")
        found.append(predictions(learner))
    assert learner.hop_features is not None
    assert learner.hop_features.dtype == torch.bfloat16
    np.testing.assert_allclose(found[1], found[0], atol=0.15)


def test_weights_loaded_again_predict_the_same() -> None:
    learner = learner_of(gamlp, label_input=True, epochs=4)
    learner.fit(targets(), FEATURES, "test")
    assert learner.model is not None
    before, weights = predictions(learner), {k: v.clone() for k, v in learner.model.state_dict().items()}
    again = learner_of(gamlp, label_input=True)
    again.load(targets(), FEATURES, weights)
    assert np.array_equal(predictions(again), before)
