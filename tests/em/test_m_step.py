from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from glem_graphgym.data.text_graph import csr_from_edges
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.inputs import FOLDS, GNNInputs, LabelChannel
from glem_graphgym.em.m_step import (
    GNNLearner,
    GNNSettings,
    GraphViews,
    LabelReuse,
)
from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.on_gold import SelfDistillation, distillation_loss
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.gcn import GCN
from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.models.sage import SAGE
from tests.held import Held

N, C, D = 24, 3, 4
GOLD = np.arange(0, N, 4)  # 6 nodes
REST = np.setdiff1d(np.arange(N), GOLD)


def graph() -> Adjacency:
    """A ring with chords, so that every node is its own neighbour's neighbour."""
    i = np.arange(N)
    source, target = np.concatenate([i, i]), np.concatenate([(i + 1) % N, (i + 5) % N])
    rowptr, col = csr_from_edges(source, target, N)
    return Adjacency(torch.from_numpy(rowptr), torch.from_numpy(col))


def logits_of(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, C)).astype(np.float32)


def features_of(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, D)).astype(np.float32)


def step_targets(logits: np.ndarray | None = None, gold_labels: Any = None, **options: Any) -> StepTargets:
    labels = np.arange(len(GOLD)) % C if gold_labels is None else np.array(gold_labels)
    gold = Gold(GOLD, labels, C)
    pseudo = PseudoLabels(logits_of() if logits is None else logits, REST, gold)
    defaults = {"weight": 0.5, "ratio": 1.0, "redraw": True, "seed": 7}
    return StepTargets(gold, pseudo, **{**defaults, **options})


# ---- the label channel --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [1.0, 0.5])
def test_label_channel_holds_gold_one_hot_and_the_candidates_distributions(confidence: float) -> None:
    """Of all candidates, also of those that the filter leaves no targets."""
    logits = logits_of()
    gold = Gold(np.array([0, 2]), np.array([2, 1]), C)
    pseudo = PseudoLabels(logits, np.array([1, 5]), gold, temperature=0.5, confidence=confidence)
    assert len(pseudo.nodes) == 2 * confidence
    channel = LabelChannel(N, StepTargets(gold, pseudo)).all_rows()
    assert channel[[0, 2]].tolist() == [[0, 0, 1], [0, 1, 0]]
    expected = np.exp(logits[[1, 5]] / 0.5)
    np.testing.assert_allclose(channel[[1, 5]], expected / expected.sum(-1, keepdims=True), rtol=1e-5)
    assert channel[np.setdiff1d(np.arange(N), [0, 1, 2, 5])].abs().sum() == 0


def test_without_pseudo_labels_the_channel_holds_gold_alone() -> None:
    gold = Gold(np.array([3]), np.array([1]), C)
    channel = LabelChannel(N, StepTargets(gold)).all_rows()
    assert channel[3].tolist() == [0, 1, 0]
    assert channel.sum() == 1


def test_hidden_nodes_have_zeros_and_all_others_their_labels() -> None:
    inputs = GNNInputs(torch.from_numpy(features_of()), step_targets())
    assert inputs.dim == D + C
    assert inputs.labels is not None
    hidden = np.array([0, 5, 6])
    x = inputs.hiding(hidden)
    assert torch.equal(x[:, :D], inputs.x)
    assert x[hidden, D:].abs().sum() == 0
    shown = np.setdiff1d(np.arange(N), hidden)
    assert torch.equal(x[shown, D:], inputs.labels[shown])
    assert torch.equal(inputs.labels, LabelChannel(N, step_targets()).all_rows())  # hiding is not for ever


def test_without_label_input_there_is_no_channel() -> None:
    x = torch.from_numpy(features_of())
    inputs = GNNInputs(x, None)
    assert inputs.dim == D
    assert inputs.hiding(np.array([1])) is x
    ((nodes, given_x),) = inputs.for_prediction(np.arange(N))
    assert nodes.tolist() == list(range(N))
    assert given_x is x


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, N - 1)), st.sets(st.integers(0, N - 1), min_size=1))
def test_folds_cover_each_node_once_and_hide_it(gold_nodes: set[int], asked: set[int]) -> None:
    gold = Gold(np.array(sorted(gold_nodes), dtype=np.int64), np.zeros(len(gold_nodes), dtype=np.int64), C)
    rest = np.setdiff1d(np.arange(N), gold.nodes)
    inputs = GNNInputs(torch.zeros(N, D), StepTargets(gold, PseudoLabels(logits_of(), rest, gold)))
    nodes = np.array(sorted(asked))
    groups = list(inputs.for_prediction(nodes))
    assert sorted(node for group, _ in groups for node in group) == nodes.tolist()
    for group, x in groups:
        assert x[group, D:].abs().sum() == 0
        # A group is of gold nodes or of others, and hides none of the other kind.
        is_gold = np.isin(group, gold.nodes)
        assert is_gold.all() or not is_gold.any()
        others = rest if is_gold.all() else gold.nodes
        assert (x[others, D:].sum(-1) > 0.99).all()


def test_a_nodes_input_is_the_same_whichever_others_are_asked_for() -> None:
    inputs = GNNInputs(torch.from_numpy(features_of()), step_targets())
    everyone = {int(node): x for group, x in inputs.for_prediction(np.arange(N)) for node in group}
    for node in range(N):
        ((group, x),) = inputs.for_prediction(np.array([node]))
        assert group.tolist() == [node]
        assert torch.equal(x, everyone[node])


# ---- a target's own label -----------------------------------------------------------------------------------------

NETWORKS: list[Callable[[int, int], nn.Module]] = [
    lambda dim_in, dim_out: GCN(dim_in, 16, dim_out, num_layers=2, dropout=0.0),
    lambda dim_in, dim_out: SAGE(dim_in, 16, dim_out, num_layers=3, dropout=0.0),
]


@pytest.mark.parametrize("build", NETWORKS)
def test_a_predictions_gradient_on_its_own_label_is_zero(build: Callable[[int, int], nn.Module]) -> None:
    """Also by way of the neighbours: two layers bring a node's input back to it."""
    torch.manual_seed(0)
    inputs = GNNInputs(torch.from_numpy(features_of()), step_targets())
    assert inputs.labels is not None
    inputs.labels.requires_grad_()
    model, structure = build(inputs.dim, C).eval(), graph()
    reached = torch.zeros(N, N)
    for nodes, x in inputs.for_prediction(np.arange(N)):
        logits = model(x, structure)
        for node in nodes:
            (gradient,) = torch.autograd.grad(logits[node].square().sum(), inputs.labels, retain_graph=True)
            reached[node] = gradient.abs().sum(-1)
    assert reached.diagonal().abs().max() == 0
    # The test has teeth: other labels do reach a prediction, and without hiding a node's own would.
    assert (reached.sum(1) > 0).all()
    (gradient,) = torch.autograd.grad(
        model(torch.cat([inputs.x, inputs.labels], 1), structure)[5].square().sum(), inputs.labels
    )
    assert gradient[5].abs().sum() > 0


@pytest.mark.parametrize("label_reuse", [0, 2])
@pytest.mark.parametrize("node", [5, 8])
def test_changing_a_nodes_own_label_leaves_its_prediction_and_changing_a_neighbours_does_not(
    node: int, label_reuse: int
) -> None:
    """Node 5 has a pseudo-label, node 8 a gold label; through the learner, bit for bit."""
    learner = gnn_learner(NETWORKS[0], GNNSettings(epochs=0, label_input=True), label_reuse=label_reuse)

    def prediction(changed: int | None) -> np.ndarray:
        logits, labels = logits_of(), np.arange(len(GOLD)) % C
        if changed is not None and changed in GOLD:
            labels[changed == GOLD] = (labels[changed == GOLD] + 1) % C
        elif changed is not None:
            logits[changed] = np.roll(logits[changed], 1)
        torch.manual_seed(0)
        learner.load(step_targets(logits, labels), features_of(), None)
        out = np.zeros((N, C), dtype=np.float32)
        learner.predict(out)
        return out[node]

    assert np.array_equal(prediction(node), prediction(None))
    # 4 and 13 in another fold or of the other kind than node 5 and 8, at distance 1.
    neighbour = {5: 4, 8: 13}[node]
    assert not np.array_equal(prediction(neighbour), prediction(None))


# ---- the learner --------------------------------------------------------------------------------------------------


class Watched(nn.Module):
    """A linear map of a node's own features that remembers what it was called with."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim_in, dim_out)
        self.calls: list[tuple[bool, Tensor, Any]] = []

    def forward(self, x: Tensor, structure: Any) -> Tensor:
        self.calls.append((self.training, x.detach().clone(), structure))
        return self.linear(x)

    def inputs(self, training: bool) -> list[Tensor]:
        return [x for mode, x, _ in self.calls if mode == training]


def sgd(lr: float) -> Callable[[Any], tuple[Any, Any]]:
    def make(parameters: Any) -> tuple[Any, Any]:
        optimizer = torch.optim.SGD(parameters, lr=lr)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    return make


def gnn_learner(
    build: Callable[[int, int], nn.Module] = Watched,
    options: GNNSettings | None = None,
    graphs: GraphViews | None = None,
    validation: Validation | None = None,
    lr: float = 0.1,
    label_reuse: int = 0,
    distillation: float = 0.0,
) -> Held:
    learner = GNNLearner(
        build,
        graphs or GraphViews(graph(), graph()),
        sgd(lr),
        options or GNNSettings(epochs=1),
        validation or Validation(REST[:5], lambda logits: 0.5),
        Hardware(),
        label_reuse=LabelReuse(label_reuse) if label_reuse else None,
    )
    return Held(SelfDistillation(learner, distillation) if distillation else learner)


def weights_of(learner: Held) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in learner.model.state_dict().items()}


def test_one_epoch_is_one_step_down_the_objective_over_all_targets() -> None:
    targets, learner = step_targets(), gnn_learner(lr=0.25)
    torch.manual_seed(3)
    learner.fit(targets, features_of(), "test")
    torch.manual_seed(3)
    linear = Watched(D, C).linear
    nodes, target, is_gold = targets.batch(0)
    glem_loss(linear(torch.from_numpy(features_of()))[nodes], target, is_gold, 0.5).backward()
    assert linear.weight.grad is not None
    expected = linear.weight.detach() - 0.25 * linear.weight.grad
    torch.testing.assert_close(weights_of(learner)["linear.weight"], expected)


def test_dropout_acts_in_training_and_not_in_prediction() -> None:
    learner = gnn_learner(build=lambda dim_in, dim_out: GCN(dim_in, 8, dim_out, 2, dropout=0.5))
    losses = set()
    for seed in (0, 1):
        learner.load(step_targets(), features_of())
        torch.manual_seed(seed)
        losses.add(learner.task.train()(learner.task.batches(0).prepare(0)).item())
        found = [np.zeros((N, C), np.float32) for _ in range(2)]
        for logits in found:
            learner.predict(logits)
        np.testing.assert_array_equal(*found)
    assert len(losses) == 2


def test_the_schedule_counts_epochs() -> None:
    log = gnn_learner(options=GNNSettings(epochs=4)).fit(step_targets(), features_of(), "test")
    assert [row["lr"] for row in log.history] == pytest.approx([0.1, 0.05, 0.025, 0.0125])


def test_pseudo_nodes_are_drawn_anew_every_epoch_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[int]] = []
    batch = StepTargets.batch

    def watched(self: StepTargets, epoch: int) -> Any:
        drawn.append(batch(self, epoch)[0].tolist())
        return batch(self, epoch)

    monkeypatch.setattr(StepTargets, "batch", watched)
    for redraw, different in ((True, 5), (False, 1)):
        drawn.clear()
        gnn_learner(options=GNNSettings(epochs=5)).fit(step_targets(redraw=redraw), features_of(), "test")
        assert len(drawn) == 5
        assert len(set(map(tuple, drawn))) == different
        assert all(nodes[: len(GOLD)] == GOLD.tolist() for nodes in drawn)


# Test nodes that training must not see (inductive settings): every sixth, none of them gold.
UNSEEN = np.arange(1, N, 6)
SEEN = np.setdiff1d(np.arange(N), UNSEEN)


def part_of_graph(nodes: np.ndarray, renumbered: bool) -> Adjacency:
    """The graph among ``nodes``, under new numbers 0, 1, … or with the others as isolated nodes."""
    whole = graph()
    row, col = np.repeat(np.arange(N), np.diff(whole.rowptr)), whole.col.numpy()
    kept = np.isin(row, nodes) & np.isin(col, nodes)
    row, col = row[kept], col[kept]
    if renumbered:
        row, col = np.searchsorted(nodes, row), np.searchsorted(nodes, col)
    rowptr, col = csr_from_edges(row, col, len(nodes) if renumbered else N)
    return Adjacency(torch.from_numpy(rowptr), torch.from_numpy(col))


def test_in_the_transductive_setting_all_is_seen_by_all() -> None:
    train = graph()
    learner = gnn_learner(graphs=GraphViews(train, train))
    learner.fit(step_targets(), features_of(), "test")
    learner.predict(np.zeros((N, C)))
    assert isinstance(learner.model, Watched)
    # A step, a validation, a prediction.
    assert [(mode, seen is train, len(x)) for mode, x, seen in learner.model.calls] == [
        (True, True, N),
        (False, True, N),
        (False, True, N),
    ]


def inductive(structure_free: bool, changed: bool, label_input: bool) -> tuple[np.ndarray, dict[str, Tensor], float]:
    """Predictions, weights and loss of a GCN with batch norm; with ``changed``, unseen nodes have other features."""
    features = features_of()
    features[UNSEEN] += 3.0 * changed
    gold = Gold(GOLD, np.arange(len(GOLD)) % C, C)
    pseudo = PseudoLabels(logits_of(), np.setdiff1d(REST, UNSEEN), gold)
    targets = StepTargets(gold, pseudo, weight=0.5, ratio=1.0, redraw=True, seed=7)
    predict = part_of_graph(SEEN, renumbered=False) if structure_free else graph()
    torch.manual_seed(0)
    learner = gnn_learner(
        NETWORKS[0],
        GNNSettings(epochs=5, label_input=label_input),
        GraphViews(part_of_graph(SEEN, renumbered=True), predict, SEEN),
        Validation(SEEN[1::4], lambda logits: float(logits[0, 0])),
    )
    log = learner.fit(targets, features, "test")
    out = np.zeros((N, C), dtype=np.float32)
    learner.predict(out)
    return out, weights_of(learner), log.history[-1]["loss"]


@pytest.mark.parametrize("label_input", [False, True])
@pytest.mark.parametrize("structure_free", [False, True])
def test_unseen_nodes_have_no_part_in_training_nor_in_the_predictions_of_others(
    structure_free: bool, label_input: bool
) -> None:
    out, weights, loss = inductive(structure_free, False, label_input)
    other_out, other_weights, other_loss = inductive(structure_free, True, label_input)
    assert loss == other_loss
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    np.testing.assert_array_equal(out[SEEN], other_out[SEEN])
    assert (out[UNSEEN] != other_out[UNSEEN]).any(axis=1).all()


@pytest.mark.parametrize("structure_free", [False, True])
def test_unseen_nodes_are_predicted_with_their_edges_unless_structure_free(structure_free: bool) -> None:
    features = features_of()
    predict = part_of_graph(SEEN, renumbered=False) if structure_free else graph()
    views = GraphViews(part_of_graph(SEEN, renumbered=True), predict, SEEN)
    learner = gnn_learner(NETWORKS[0], GNNSettings(epochs=1), views)

    def prediction(x: np.ndarray) -> np.ndarray:
        torch.manual_seed(0)
        learner.load(step_targets(), x, None)
        out = np.zeros((N, C), dtype=np.float32)
        learner.predict(out)
        return out

    before = prediction(features)
    features[UNSEEN[0] - 1] += 3.0
    after = prediction(features)
    assert np.array_equal(after[UNSEEN[0]], before[UNSEEN[0]]) == structure_free
    assert not np.array_equal(after[UNSEEN[0] - 1], before[UNSEEN[0] - 1])


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_no_target_of_a_training_step_sees_its_own_label(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    """Gold nodes whose labels are given as input in an epoch are no targets in it."""
    losses: list[tuple[Tensor, Tensor]] = []

    def watched(logits: Tensor, target: Tensor, is_gold: Tensor, weight: float) -> Tensor:
        losses.append((target, is_gold))
        return glem_loss(logits, target, is_gold, weight)

    monkeypatch.setattr("glem_graphgym.em.m_step.glem_loss", watched)
    # Features that name the node tell from an input which nodes it hides.
    targets, epochs = step_targets(), 20
    learner = gnn_learner(options=GNNSettings(epochs=epochs, label_input=True, label_input_rate=rate))
    learner.fit(targets, np.eye(N, dtype=np.float32), "test")
    assert isinstance(learner.model, Watched)
    channel = LabelChannel(N, targets).all_rows()
    given_gold = []
    for epoch, (x, (target, is_gold)) in enumerate(zip(learner.model.inputs(True), losses, strict=True)):
        hidden = np.flatnonzero(x[:, N:].abs().sum(-1) == 0)
        shown = np.setdiff1d(np.arange(N), hidden)
        drawn = targets.drawn(epoch)
        assert np.isin(drawn, hidden).all()
        assert torch.equal(x[shown, N:], channel[shown])
        assert np.setdiff1d(hidden, np.concatenate([GOLD, drawn])).size == 0
        # The targets are what is hidden, each with its own label.
        assert len(target) == len(hidden)
        assert int(is_gold.sum()) == np.isin(GOLD, hidden).sum() > 0
        goal = torch.cat([channel[np.intersect1d(GOLD, hidden)], channel[drawn]])
        torch.testing.assert_close(target, goal)
        given_gold.append(len(GOLD) - int(is_gold.sum()))
    mean = {0.0: 0, 0.5: 3, 1.0: 0}[rate]  # with rate 1 no gold target would be left, so all stay targets
    assert np.mean(given_gold) == pytest.approx(mean, abs=0.8 if rate == 0.5 else 0)
    assert len(set(given_gold)) > 1 or rate != 0.5


@pytest.mark.parametrize("label_reuse", [0, 1])
def test_validation_and_prediction_hide_alike(label_reuse: int) -> None:
    scored: list[np.ndarray] = []

    def score(logits: np.ndarray) -> float:
        scored.append(logits)
        return 0.5

    valid = np.array([1, 2, 3, 10, 13])
    options = GNNSettings(epochs=1, label_input=True)
    learner = gnn_learner(NETWORKS[0], options, validation=Validation(valid, score), label_reuse=label_reuse)
    learner.fit(step_targets(), features_of(), "test")
    out = np.zeros((N, C), dtype=np.float32)
    learner.predict(out)
    np.testing.assert_allclose(scored[-1], out[valid], rtol=1e-3, atol=1e-5)  # predictions are kept in half


def test_weights_come_back_into_a_new_model_and_predict_the_same() -> None:
    options = GNNSettings(epochs=3, label_input=True)
    learner, other = gnn_learner(NETWORKS[1], options), gnn_learner(NETWORKS[1], options)
    learner.fit(step_targets(), features_of(), "test")
    other.load(step_targets(), features_of(), weights_of(learner))
    outs = [np.zeros((N, C), dtype=np.float16) for _ in range(2)]
    learner.predict(outs[0])
    other.predict(outs[1])
    np.testing.assert_array_equal(outs[0], outs[1])
    assert np.abs(outs[0]).min() > 0


@pytest.mark.parametrize("network", NETWORKS)
def test_what_has_not_been_trained_here_rounds_as_what_has(network: Callable[[int, int], nn.Module]) -> None:
    """A resumed stage predicts from weights that another process trained."""
    trained, loaded = (gnn_learner(network, GNNSettings(epochs=5)) for _ in range(2))
    trained.fit(step_targets(), features_of(), "test")
    loaded.load(step_targets(), features_of(), weights_of(trained))
    with torch.inference_mode():
        one, other = (list(learner.task.eval().exact_logits(np.arange(N))) for learner in (trained, loaded))
    assert all(torch.equal(logits, again) for (_, logits), (_, again) in zip(one, other, strict=True))


def test_each_fit_starts_from_new_weights() -> None:
    learner = gnn_learner(options=GNNSettings(epochs=0))
    learner.fit(step_targets(), features_of(), "test")
    first = weights_of(learner)["linear.weight"]
    learner.fit(step_targets(), features_of(), "test")
    assert not torch.equal(weights_of(learner)["linear.weight"], first)


def test_patience_and_interval_of_validation_reach_the_trainer() -> None:
    validation = Validation(REST[:5], lambda logits: 0.5)
    options = GNNSettings(epochs=40, eval_every=3, patience=2)
    log = gnn_learner(options=options, validation=validation).fit(step_targets(), features_of(), "test")
    assert [row["epoch"] for row in log.history] == [3, 6, 9]


# ---- label reuse --------------------------------------------------------------------------------------------------


def gold_alone() -> StepTargets:
    return StepTargets(Gold(GOLD, np.arange(len(GOLD)) % C, C), seed=7)


def test_label_reuse_gives_predictions_for_labels_that_are_not_given() -> None:
    learner = gnn_learner(options=GNNSettings(epochs=1, label_input=True), label_reuse=2)
    torch.manual_seed(0)
    learner.fit(gold_alone(), features_of(), "test")
    assert isinstance(learner.model, Watched)
    first, second, third = learner.model.inputs(training=True)
    given = first[:, D:].any(dim=1)
    assert 0 < given.sum() < len(GOLD) and set(given.nonzero().flatten().tolist()) < set(GOLD)
    torch.manual_seed(0)
    untrained = Watched(D + C, C).linear
    for before, after in ((first, second), (second, third)):
        assert torch.equal(after[:, :D], before[:, :D])
        assert torch.equal(after[given], first[given])
        torch.testing.assert_close(after[~given, D:], untrained(before).softmax(-1)[~given])


def test_label_reuse_lets_gradients_through_the_last_pass_alone() -> None:
    learner = gnn_learner(options=GNNSettings(label_input=True), label_reuse=1)
    learner.load(gold_alone(), features_of(), None)
    x = learner.inputs.hiding(GOLD)
    passes: list[Tensor] = []

    def logits_of_input(given: Tensor) -> Tensor:
        passes.append(learner.model(given, None))
        return passes[-1]

    learner.task._reusing_labels(x, logits_of_input)
    assert [found.requires_grad for found in passes] == [False, True]


# ---- self-distillation --------------------------------------------------------------------------------------------


def test_distillation_loss_is_the_divergence_from_the_teacher() -> None:
    ours, theirs = torch.tensor([[0.0, 1.0], [2.0, 0.0]], requires_grad=True), torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    p, q = (theirs / 2).softmax(-1), (ours / 2).softmax(-1)
    wanted = 4 * (p * (p / q).log()).sum() / (2 * 2)
    found = distillation_loss(ours, theirs, 2.0)
    torch.testing.assert_close(found, wanted)
    found.backward()
    assert ours.grad is not None
    assert ours.grad[0].abs().sum() > 0 and ours.grad[1].abs().max() < 1e-7  # nothing to learn where they agree
    assert distillation_loss(theirs, theirs, 0.5) == 0


def test_a_student_that_sees_its_teacher_alone_becomes_it() -> None:
    rising = iter(range(1000))
    validation = Validation(REST[:5], lambda logits: float(next(rising)))  # so that the student is kept
    options = GNNSettings(epochs=150)
    models: list[Watched] = []

    def build(dim_in: int, classes: int) -> nn.Module:
        models.append(Watched(dim_in, classes))
        return models[-1]

    plain = GNNLearner(build, GraphViews(graph(), graph()), adam, options, validation, Hardware())
    learner = Held(SelfDistillation(plain, 1.0))
    log = learner.fit(gold_alone(), features_of(), "test")
    teacher, student = models
    assert learner.model is student and log.epochs == 300 and log.best_epoch == 300
    assert [row["epoch"] for row in log.history] == list(range(1, 301))
    x = torch.from_numpy(features_of())
    p, q = (model.linear(x).softmax(-1) for model in models)
    assert (p - q).abs().max() < 0.05
    assert not torch.equal(teacher.linear.weight, student.linear.weight)


def adam(parameters: Any) -> tuple[Any, Any]:
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)


def test_validation_chooses_between_teacher_and_student(monkeypatch: pytest.MonkeyPatch) -> None:
    falling = iter(range(1000, 0, -1))
    validation = Validation(REST[:5], lambda logits: float(next(falling)))
    learner = gnn_learner(options=GNNSettings(epochs=3), validation=validation, distillation=0.5)
    weights: list[Tensor] = []
    fit_task = GNNLearner.fit_task

    def noted(self: GNNLearner, *args: Any) -> Any:
        fitted = fit_task(self, *args)
        weights.append(fitted.task.model.linear.weight.detach().clone())
        return fitted

    monkeypatch.setattr(GNNLearner, "fit_task", noted)
    log = learner.fit(gold_alone(), features_of(), "test")
    assert len(weights) == 2 and torch.equal(weights_of(learner)["linear.weight"], weights[0])
    assert log.best_epoch == 1 and log.epochs == 6


def test_a_step_with_pseudo_labels_has_no_teacher_of_its_own_kind() -> None:
    log = gnn_learner(options=GNNSettings(epochs=3), distillation=0.5).fit(step_targets(), features_of(), "test")
    assert log.epochs == 3


def test_with_label_input_half_of_the_candidates_stay_visible_however_many_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All candidates are drawn, as targets; were all hidden, training would never see what prediction sees."""
    targets = replace(step_targets(), ratio=1e6)
    assert targets.pseudo is not None
    candidates = targets.pseudo.nodes
    assert targets.drawn(0).tolist() == candidates.tolist()
    learner = gnn_learner(options=GNNSettings(epochs=12, label_input=True))
    learner.fit(targets, np.eye(N, dtype=np.float32), "test")
    assert isinstance(learner.model, Watched)
    hidden_sets = set()
    for x in learner.model.inputs(True):
        hidden = candidates[(x[candidates, N:].abs().sum(-1) == 0).numpy()]
        assert len(hidden) == -(-len(candidates) // FOLDS)
        hidden_sets.add(tuple(hidden))
    assert len(hidden_sets) > 6
