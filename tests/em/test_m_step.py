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
from glem_graphgym.em.m_step import GNNLearner, GNNSettings, GNNTask, GraphViews, LabelReuse
from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.on_gold import SelfDistillation, distillation_loss
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.gcn import GCN
from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.models.sage import SAGE

N, C, D = 24, 3, 4
GOLD = np.arange(0, N, 4)  # 6 nodes
REST = np.setdiff1d(np.arange(N), GOLD)
FEATURES = np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)
NETWORKS: list[Callable[[int, int], nn.Module]] = [
    lambda dim_in, dim_out: GCN(dim_in, 16, dim_out, num_layers=2, dropout=0.0),
    lambda dim_in, dim_out: SAGE(dim_in, 16, dim_out, num_layers=3, dropout=0.0),
]


def graph() -> Adjacency:
    """A ring with chords, so that every node is its own neighbour's neighbour."""
    i = np.arange(N)
    source, target = np.concatenate([i, i]), np.concatenate([(i + 1) % N, (i + 5) % N])
    rowptr, col = csr_from_edges(source, target, N)
    return Adjacency(torch.from_numpy(rowptr), torch.from_numpy(col))


def logits_of(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, C)).astype(np.float32)


def step_targets(
    logits: np.ndarray | None = None, gold_labels: Any = None, candidates: np.ndarray = REST, **options: Any
) -> StepTargets:
    labels = np.arange(len(GOLD)) % C if gold_labels is None else np.array(gold_labels)
    gold = Gold(GOLD, labels, C)
    pseudo = PseudoLabels(logits_of() if logits is None else logits, candidates, gold)
    defaults = {"weight": 0.5, "ratio": 1.0, "redraw": True, "seed": 7}
    return StepTargets(gold, pseudo, **{**defaults, **options})


def gold_alone() -> StepTargets:
    return StepTargets(Gold(GOLD, np.arange(len(GOLD)) % C, C), seed=7)


def inputs_of(targets: StepTargets | None) -> GNNInputs:
    return GNNInputs(torch.from_numpy(FEATURES), targets)


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


def sgd(parameters: Any) -> tuple[Any, Any]:
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)


def adam(parameters: Any) -> tuple[Any, Any]:
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)


def learner_of(
    build: Callable[[int, int], nn.Module] = Watched,
    graphs: GraphViews | None = None,
    valid: np.ndarray = REST[:5],
    score: Callable[[np.ndarray], float] = lambda logits: 0.5,
    reuse: int = 0,
    make_optimizer: Callable[[Any], Any] = sgd,
    **options: Any,
) -> GNNLearner:
    return GNNLearner(
        build,
        graphs or GraphViews(graph(), graph()),
        make_optimizer,
        GNNSettings(**{"epochs": 1, **options}),
        Validation(valid, score),
        Hardware(),
        label_reuse=LabelReuse(reuse) if reuse else None,
    )


def weights_of(task: GNNTask) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in task.model.state_dict().items()}


def predictions(task: GNNTask) -> np.ndarray:
    out = np.zeros((N, C), dtype=np.float32)
    task.predict(out)
    return out


# ---- the label channel --------------------------------------------------------------------------------------------


def test_hidden_nodes_have_zeros_and_all_others_their_labels() -> None:
    inputs = inputs_of(step_targets())
    assert inputs.dim == D + C and inputs.labels is not None
    hidden = np.array([0, 5, 6])
    x = inputs.hiding(hidden)
    assert torch.equal(x[:, :D], inputs.x)
    assert x[hidden, D:].abs().sum() == 0
    shown = np.setdiff1d(np.arange(N), hidden)
    assert torch.equal(x[shown, D:], inputs.labels[shown])
    assert torch.equal(inputs.labels, LabelChannel(N, step_targets()).all_rows())  # hiding is not for ever


def test_without_label_input_there_is_no_channel() -> None:
    inputs = inputs_of(None)
    assert inputs.dim == D
    assert inputs.hiding(np.array([1])) is inputs.x
    ((nodes, given_x),) = inputs.for_prediction(np.arange(N))
    assert nodes.tolist() == list(range(N))
    assert given_x is inputs.x


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, N - 1)), st.sets(st.integers(0, N - 1), min_size=1))
def test_folds_cover_each_node_once_and_hide_it(gold_nodes: set[int], asked: set[int]) -> None:
    gold = Gold(np.array(sorted(gold_nodes), dtype=np.int64), np.zeros(len(gold_nodes), dtype=np.int64), C)
    rest = np.setdiff1d(np.arange(N), gold.nodes)
    inputs = GNNInputs(torch.zeros(N, D), StepTargets(gold, PseudoLabels(logits_of(), rest, gold)))
    nodes = np.array(sorted(asked))
    groups = list(inputs.for_prediction(nodes))
    assert sorted(node for group, _ in groups for node in group) == nodes.tolist()
    everyone = {int(node): x for group, x in inputs.for_prediction(np.arange(N)) for node in group}
    for group, x in groups:
        assert x[group, D:].abs().sum() == 0
        # A group is of gold nodes or of others, and hides none of the other kind.
        is_gold = np.isin(group, gold.nodes)
        assert is_gold.all() or not is_gold.any()
        others = rest if is_gold.all() else gold.nodes
        assert (x[others, D:].sum(-1) > 0.99).all()
        assert all(torch.equal(x, everyone[node]) for node in group)  # whichever others are asked for


# ---- a target's own label -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", NETWORKS)
def test_a_predictions_gradient_on_its_own_label_is_zero(build: Callable[[int, int], nn.Module]) -> None:
    """Also by way of the neighbours: two layers bring a node's input back to it."""
    torch.manual_seed(0)
    inputs = inputs_of(step_targets())
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
    shown = model(torch.cat([inputs.x, inputs.labels], 1), structure)
    (gradient,) = torch.autograd.grad(shown[5].square().sum(), inputs.labels)
    assert gradient[5].abs().sum() > 0


@pytest.mark.parametrize("reuse", [0, 2])
@pytest.mark.parametrize("node", [5, 8])
def test_changing_a_nodes_own_label_leaves_its_prediction_and_changing_a_neighbours_does_not(
    node: int, reuse: int
) -> None:
    """Node 5 has a pseudo-label, node 8 a gold label; through the learner, bit for bit."""
    learner = learner_of(NETWORKS[0], label_input=True, reuse=reuse)

    def prediction(changed: int | None) -> np.ndarray:
        logits, labels = logits_of(), np.arange(len(GOLD)) % C
        if changed is not None and changed in GOLD:
            labels[changed == GOLD] = (labels[changed == GOLD] + 1) % C
        elif changed is not None:
            logits[changed] = np.roll(logits[changed], 1)
        torch.manual_seed(0)
        return predictions(learner.start(step_targets(logits, labels), FEATURES))[node]

    assert np.array_equal(prediction(node), prediction(None))
    # 4 and 13 in another fold or of the other kind than node 5 and 8, at distance 1.
    neighbour = {5: 4, 8: 13}[node]
    assert not np.array_equal(prediction(neighbour), prediction(None))


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_no_target_of_a_training_step_sees_its_own_label(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    """Gold nodes whose labels are given as input in an epoch are no targets in it."""
    losses: list[tuple[Tensor, Tensor]] = []

    def watched(logits: Tensor, target: Tensor, is_gold: Tensor, weight: float, **how: Any) -> Tensor:
        losses.append((target, is_gold))
        return glem_loss(logits, target, is_gold, weight, **how)

    monkeypatch.setattr("glem_graphgym.em.m_step.glem_loss", watched)
    # Features that name the node tell from an input which nodes it hides.
    targets, learner = step_targets(), learner_of(epochs=20, label_input=True, label_input_rate=rate)
    model = learner.fit(targets, np.eye(N, dtype=np.float32), "test").task.model
    channel = LabelChannel(N, targets).all_rows()
    given_gold = []
    for epoch, (x, (target, is_gold)) in enumerate(zip(model.inputs(True), losses, strict=True)):
        hidden = np.flatnonzero(x[:, N:].abs().sum(-1) == 0)
        shown = np.setdiff1d(np.arange(N), hidden)
        drawn = targets.drawn(epoch)
        assert np.isin(drawn, hidden).all()
        assert torch.equal(x[shown, N:], channel[shown])
        assert np.setdiff1d(hidden, np.concatenate([GOLD, drawn])).size == 0
        # The targets are what is hidden, each with its own label.
        assert len(target) == len(hidden)
        assert int(is_gold.sum()) == np.isin(GOLD, hidden).sum() > 0
        torch.testing.assert_close(target, torch.cat([channel[np.intersect1d(GOLD, hidden)], channel[drawn]]))
        given_gold.append(len(GOLD) - int(is_gold.sum()))
    mean = {0.0: 0, 0.5: 3, 1.0: 0}[rate]  # with rate 1 no gold target would be left, so all stay targets
    assert np.mean(given_gold) == pytest.approx(mean, abs=0.8 if rate == 0.5 else 0)
    assert len(set(given_gold)) > 1 or rate != 0.5


def test_with_label_input_half_of_the_candidates_stay_visible_however_many_are_drawn() -> None:
    """All candidates are drawn, as targets; were all hidden, training would never see what prediction sees."""
    targets, hidden_sets = step_targets(ratio=1e6), set()
    assert targets.drawn(0).tolist() == REST.tolist()
    fitted = learner_of(epochs=12, label_input=True).fit(targets, np.eye(N, dtype=np.float32), "test")
    for x in fitted.task.model.inputs(True):
        hidden = REST[(x[REST, N:].abs().sum(-1) == 0).numpy()]
        assert len(hidden) == -(-len(REST) // FOLDS)
        hidden_sets.add(tuple(hidden))
    assert len(hidden_sets) > 6


@pytest.mark.parametrize("reuse", [0, 1])
def test_validation_and_prediction_hide_alike(reuse: int) -> None:
    scored: list[np.ndarray] = []
    valid = np.array([1, 2, 3, 10, 13])
    learner = learner_of(NETWORKS[0], valid=valid, score=lambda z: scored.append(z) or 0.5, label_input=True)  # type: ignore[func-returns-value]
    task, _ = replace(learner, label_reuse=LabelReuse(reuse) if reuse else None).fit(step_targets(), FEATURES, "test")
    np.testing.assert_allclose(scored[-1], predictions(task)[valid], rtol=1e-3, atol=1e-5)  # kept in half precision


@pytest.mark.parametrize(("targets", "passes"), [(gold_alone(), 1), (step_targets(), 2)])
def test_a_validation_takes_one_pass_where_no_validated_node_has_a_label(targets: StepTargets, passes: int) -> None:
    model = learner_of(epochs=3, label_input=True).fit(targets, FEATURES, "test").task.model
    assert len(model.inputs(False)) == 3 * passes


@pytest.mark.parametrize(
    ("targets", "label_input", "once"),
    [
        *((gold_alone(), False, True), (gold_alone(), True, False)),
        *((step_targets(redraw=False), False, True), (step_targets(), False, False)),
    ],
)
def test_targets_of_every_epoch_are_made_once(targets: StepTargets, label_input: bool, once: bool) -> None:
    task = learner_of(label_input=label_input).start(targets, FEATURES)
    first, second = (task.batches(epoch).prepare(epoch) for epoch in (0, 1))
    assert (first[1] is second[1]) == once
    for found, expected in zip(second, task.epoch_targets(1), strict=True):
        assert torch.equal(found, expected)


# ---- the learner --------------------------------------------------------------------------------------------------


def test_one_epoch_is_one_step_down_the_objective_over_all_targets() -> None:
    targets = step_targets()
    torch.manual_seed(3)
    task, _ = learner_of().fit(targets, FEATURES, "test")
    torch.manual_seed(3)
    linear = Watched(D, C).linear
    nodes, target, is_gold = targets.batch(0)
    glem_loss(linear(torch.from_numpy(FEATURES))[nodes], target, is_gold, 0.5).backward()
    assert linear.weight.grad is not None
    torch.testing.assert_close(weights_of(task)["linear.weight"], linear.weight.detach() - 0.1 * linear.weight.grad)


def test_dropout_acts_in_training_and_not_in_prediction() -> None:
    learner = learner_of(lambda dim_in, dim_out: GCN(dim_in, 8, dim_out, 2, dropout=0.5))
    losses = set()
    for seed in (0, 1):
        task = learner.start(step_targets(), FEATURES)
        torch.manual_seed(seed)
        losses.add(task.train()(task.batches(0).prepare(0)).item())
        np.testing.assert_array_equal(predictions(task), predictions(task))
    assert len(losses) == 2


def test_the_schedule_counts_epochs() -> None:
    _, log = learner_of(epochs=4).fit(step_targets(), FEATURES, "test")
    assert [row["lr"] for row in log.history] == pytest.approx([0.1, 0.05, 0.025, 0.0125])


def test_patience_and_interval_of_validation_reach_the_trainer() -> None:
    _, log = learner_of(epochs=40, eval_every=3, patience=2).fit(step_targets(), FEATURES, "test")
    assert [row["epoch"] for row in log.history] == [3, 6, 9]


@pytest.mark.parametrize("network", NETWORKS)
def test_what_has_not_been_trained_here_rounds_as_what_has(network: Callable[[int, int], nn.Module]) -> None:
    """A resumed stage predicts from weights that another process trained; each fit starts from new ones."""
    learner = learner_of(network, epochs=5, label_input=True)
    trained, again = (learner.fit(step_targets(), FEATURES, "test").task for _ in range(2))
    loaded = learner.start(step_targets(), FEATURES, weights_of(trained))
    with torch.inference_mode():
        first, second, third = (
            torch.cat([logits for _, logits in task.eval().exact_logits(np.arange(N))])
            for task in (trained, loaded, again)
        )
    assert torch.equal(first, second) and not torch.equal(first, third)


# ---- nodes that training must not see (inductive settings): every sixth, none of them gold -------------------------

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


def inductive_views(structure_free: bool) -> GraphViews:
    predict = part_of_graph(SEEN, renumbered=False) if structure_free else graph()
    return GraphViews(part_of_graph(SEEN, renumbered=True), predict, SEEN)


def test_in_the_transductive_setting_all_is_seen_by_all() -> None:
    train = graph()
    task, _ = learner_of(graphs=GraphViews(train, train)).fit(step_targets(), FEATURES, "test")
    predictions(task)
    # A step, a validation, a prediction.
    calls = [(mode, seen is train, len(x)) for mode, x, seen in task.model.calls]
    assert calls == [(True, True, N), (False, True, N), (False, True, N)]


@pytest.mark.parametrize("label_input", [False, True])
@pytest.mark.parametrize("structure_free", [False, True])
def test_unseen_nodes_have_no_part_in_training_nor_in_the_predictions_of_others(
    structure_free: bool, label_input: bool
) -> None:
    targets, runs = step_targets(candidates=np.setdiff1d(REST, UNSEEN)), []
    options: dict[str, Any] = {"valid": SEEN[1::4], "score": lambda z: float(z[0, 0]), "label_input": label_input}
    learner = learner_of(NETWORKS[0], inductive_views(structure_free), epochs=5, **options)
    for changed in (False, True):
        features = FEATURES.copy()
        features[UNSEEN] += 3.0 * changed
        torch.manual_seed(0)
        task, log = learner.fit(targets, features, "test")
        runs.append((predictions(task), weights_of(task), log.history[-1]["loss"]))
    (out, weights, loss), (other_out, other_weights, other_loss) = runs
    assert loss == other_loss
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    np.testing.assert_array_equal(out[SEEN], other_out[SEEN])
    assert (out[UNSEEN] != other_out[UNSEEN]).any(axis=1).all()


@pytest.mark.parametrize("structure_free", [False, True])
def test_unseen_nodes_are_predicted_with_their_edges_unless_structure_free(structure_free: bool) -> None:
    learner, found = learner_of(NETWORKS[0], inductive_views(structure_free)), []
    for change in (0.0, 3.0):
        features = FEATURES.copy()
        features[UNSEEN[0] - 1] += change
        torch.manual_seed(0)
        found.append(predictions(learner.start(step_targets(), features)))
    before, after = found
    assert np.array_equal(after[UNSEEN[0]], before[UNSEEN[0]]) == structure_free
    assert not np.array_equal(after[UNSEEN[0] - 1], before[UNSEEN[0] - 1])


# ---- label reuse --------------------------------------------------------------------------------------------------


def test_label_reuse_gives_predictions_for_labels_that_are_not_given() -> None:
    torch.manual_seed(0)
    task, _ = learner_of(reuse=2, label_input=True).fit(gold_alone(), FEATURES, "test")
    first, second, third = task.model.inputs(training=True)
    given = first[:, D:].any(dim=1)
    assert 0 < given.sum() < len(GOLD) and set(given.nonzero().flatten().tolist()) < set(GOLD)
    torch.manual_seed(0)
    untrained = Watched(D + C, C).linear
    for before, after in ((first, second), (second, third)):
        assert torch.equal(after[:, :D], before[:, :D])
        assert torch.equal(after[given], first[given])
        torch.testing.assert_close(after[~given, D:], untrained(before).softmax(-1)[~given])


def test_label_reuse_lets_gradients_through_the_last_pass_alone() -> None:
    task: Any = learner_of(reuse=1, label_input=True).start(gold_alone(), FEATURES)
    passes: list[Tensor] = []

    def logits_of_input(x: Tensor) -> Tensor:
        passes.append(task.model(x, None))
        return passes[-1]

    task._reusing_labels(task.inputs.hiding(GOLD), logits_of_input)
    assert [found.requires_grad for found in passes] == [False, True]


def test_label_reuse_in_half_precision_trains_the_weights() -> None:
    """Autocast keeps casts for later passes: those of a pass without gradients must not hide the weights."""
    hardware = Hardware(precision="bf16-mixed")
    task: Any = replace(learner_of(reuse=1, label_input=True), hardware=hardware).start(gold_alone(), FEATURES)
    batches = task.batches(0)
    with hardware.autocast():
        loss = task(batches.prepare(batches.items[0]))
    loss.backward()
    assert task.model.linear.weight.grad.abs().sum() > 0


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


def distilled(rising: bool, share: float, epochs: int) -> tuple[list[Watched], Any]:
    """Teacher and student, and what is fitted, by scores that rise or fall with every evaluation."""
    models: list[Watched] = []
    scores = iter(range(1000) if rising else range(1000, 0, -1))

    def build(dim_in: int, classes: int) -> nn.Module:
        models.append(Watched(dim_in, classes))
        return models[-1]

    learner = learner_of(build, score=lambda logits: float(next(scores)), make_optimizer=adam, epochs=epochs)
    learner = replace(learner, further_rounds=SelfDistillation(share))
    return models, learner.fit(gold_alone(), FEATURES, "test")


def test_a_student_that_sees_its_teacher_alone_becomes_it() -> None:
    (teacher, student), (task, log) = distilled(rising=True, share=1.0, epochs=150)
    assert task.model is student and log.epochs == 300 and log.best_epoch == 300
    assert [row["epoch"] for row in log.history] == list(range(1, 301))
    p, q = (model.linear(torch.from_numpy(FEATURES)).softmax(-1) for model in (teacher, student))
    assert (p - q).abs().max() < 0.05
    assert not torch.equal(teacher.linear.weight, student.linear.weight)


def test_validation_chooses_between_teacher_and_student() -> None:
    (teacher, _), (task, log) = distilled(rising=False, share=0.5, epochs=3)
    assert task.model is teacher and (log.best_epoch, log.epochs) == (1, 6)


def test_a_step_with_pseudo_labels_has_no_teacher_of_its_own_kind() -> None:
    learner = replace(learner_of(epochs=3), further_rounds=SelfDistillation(0.5))
    _, log = learner.fit(step_targets(), FEATURES, "test")
    assert log.epochs == 3
