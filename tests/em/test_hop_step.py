from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glem_graphgym.data.text_graph import csr_from_edges
from glem_graphgym.em import hop_step
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.hop_step import Consistency, HopLearner
from glem_graphgym.em.m_step import GNNLearner, GNNSettings, GNNTask, GraphViews
from glem_graphgym.em.on_gold import SelfTraining
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.gamlp import GAMLP
from glem_graphgym.models.hops import propagate
from glem_graphgym.models.mean_teacher import MeanTeacher
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
    graphs: GraphViews | None = None,
    lr: float = 0.05,
    score: Callable[[np.ndarray], float] = lambda logits: 0.5,
    hardware: Hardware | None = None,
    batch_size: int = 0,
    hop_options: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    def optimizer(params: Iterator[nn.Parameter]) -> tuple[Any, Any]:
        made = torch.optim.SGD(params, lr=lr)
        return made, torch.optim.lr_scheduler.ConstantLR(made, 1.0)

    settings = GNNSettings(**{"epochs": 3, **options})
    self_training = (hop_options or {}).get("self_training")
    return HopLearner(
        build,
        graphs or GraphViews(ADJACENCY, ADJACENCY),
        optimizer,
        settings,
        Validation(VALID, score),
        hardware or Hardware(),
        hops=HOPS,
        label_hops=2,
        batch_size=batch_size,
        consistency=(hop_options or {}).get("consistency"),
        further_rounds=SelfTraining(**self_training) if self_training else None,
    )


def gamlp(dim_in: int, classes: int) -> nn.Module:
    torch.manual_seed(0)
    return GAMLP(dim_in, 8, classes, HOPS, dropout=0.0, label_hops=1, label_dropout=0.0)


def sagn(dim_in: int, classes: int) -> nn.Module:
    torch.manual_seed(0)
    return SAGN(dim_in, 8, classes, HOPS, dropout=0.0, label_hops=1, label_dropout=0.0)


def predictions(task: GNNTask) -> np.ndarray:
    out = np.zeros((N, C), dtype=np.float32)
    task.predict(out)
    return out


def fitted(learner: Any, made: StepTargets | None = None, features: np.ndarray = FEATURES) -> Any:
    """A task that the learner has trained."""
    torch.manual_seed(0)
    return learner.fit(made or targets(), features, "test").task


def test_predictions_are_the_networks_on_propagated_features() -> None:
    task = fitted(learner_of())
    with torch.no_grad():
        wanted = task.model(propagate(ADJACENCY.gcn(), torch.from_numpy(FEATURES), HOPS))
    np.testing.assert_allclose(predictions(task), wanted, rtol=1e-3, atol=1e-3)


def test_one_full_batch_step_is_that_of_the_objective_by_hand() -> None:
    task = fitted(learner_of(epochs=1))
    torch.manual_seed(0)
    twin = SGC(D, C)
    nodes, target, is_gold = targets().batch(0)
    logits = twin(propagate(ADJACENCY.gcn(), torch.from_numpy(FEATURES), HOPS)[:, torch.from_numpy(nodes)])
    entropy = -(target * torch.log_softmax(logits, -1)).sum(-1)
    (0.3 * entropy[~is_gold].mean() + 0.7 * entropy[is_gold].mean()).backward()
    for ours, theirs in zip(task.model.parameters(), twin.parameters(), strict=True):
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

    fitted(learner_of(lambda dim_in, classes: Watched(dim_in, classes), batch_size=size, epochs=2))
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
    before = learner.start(targets(), FEATURES).inputs.labels
    for node in GOLD:
        changed = LABELS.copy()
        changed[node] = (changed[node] + 1) % C
        labels = learner.start(targets(labels=changed), FEATURES).inputs.labels
        assert torch.equal(labels[:, node], before[:, node])
        assert not torch.equal(labels, before)
    assert before.shape == (1, N, C)


def test_unseen_nodes_are_out_of_training_and_predicted_on_the_whole_graph() -> None:
    unseen = np.arange(32, N)
    is_seen = np.ones(N, dtype=bool)
    is_seen[unseen] = False
    seen = np.flatnonzero(is_seen)
    row = np.repeat(np.arange(N), np.diff(ROWPTR))
    kept = is_seen[row] & is_seen[COL]
    inner = torch.from_numpy(np.stack([row[kept], COL[kept]]).astype(np.int64))
    train = Adjacency.from_edge_index(inner, len(seen))
    learner, x = learner_of(graphs=GraphViews(train, ADJACENCY, seen)), torch.from_numpy(FEATURES)
    task = fitted(learner, targets(pseudo=False))
    torch.testing.assert_close(task.inputs.hops[:, seen], propagate(train.gcn(), x[: len(seen)], HOPS))
    torch.testing.assert_close(task.inputs.hops[:, unseen], propagate(ADJACENCY.gcn(), x, HOPS)[:, unseen])
    changed = FEATURES.copy()
    changed[unseen] += 1
    before, after = predictions(task), predictions(fitted(learner, targets(pseudo=False), changed))
    assert np.array_equal(before[seen], after[seen])
    assert not np.array_equal(before[unseen], after[unseen])


def test_bfloat16_keeps_hops_in_half_the_bytes_and_agrees_up_to_rounding() -> None:
    options: dict[str, Any] = {"epochs": 5, "label_input": True}
    single, half = (
        fitted(learner_of(gamlp, hardware=Hardware("cpu", precision), **options))
        for precision in ("32-true", "bf16-mixed")
    )
    assert half.inputs.hops.dtype == torch.bfloat16
    np.testing.assert_allclose(predictions(half), predictions(single), atol=0.15)


# ---- self-training (RLU) ------------------------------------------------------------------------------------------

UNLABELLED = np.setdiff1d(REST, VALID)


def class_features(noise: float, seed: int = 0) -> np.ndarray:
    """Features that tell of the class, with noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, D)) * noise
    x[:, :C] += np.eye(C)[LABELS]
    return x.astype(np.float32)


def class_graph() -> GraphViews:
    """Edges between nodes of one class alone."""
    pairs = RNG_OF_EDGES.integers(0, N, (2, 400))
    pairs = pairs[:, LABELS[pairs[0]] == LABELS[pairs[1]]]
    adjacency = Adjacency(*(torch.from_numpy(part) for part in csr_from_edges(*pairs, N)))
    return GraphViews(adjacency, adjacency)


RNG_OF_EDGES = np.random.default_rng(7)
CLASS_GRAPH = class_graph()


def valid_accuracy(logits: np.ndarray) -> float:
    return float((logits.argmax(-1) == LABELS[VALID]).mean())


class Watch:
    """Notes what every round of a learner is trained on, and the weights that it ends with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.targets: list[StepTargets] = []
        self.weights: list[dict[str, Tensor]] = []
        fit_task = GNNLearner.fit_task

        def watched(learner: GNNLearner, task: GNNTask, *more: Any) -> Any:
            self.targets.append(task.targets)
            fitted = fit_task(learner, task, *more)
            self.weights.append({name: value.clone() for name, value in task.model.state_dict().items()})
            return fitted

        monkeypatch.setattr(GNNLearner, "fit_task", watched)


def self_training(rounds: int = 3, threshold: float = 0.5, **options: Any) -> Any:
    rlu = {"rounds": rounds, "unlabelled": UNLABELLED, "threshold": threshold, "weight": 0.4}
    hop_options = {"self_training": rlu}
    settings = {"epochs": 20, "lr": 1.0, "graphs": CLASS_GRAPH, "score": valid_accuracy, **options}
    return learner_of(hop_options=hop_options, **settings)


def test_later_rounds_learn_what_the_round_before_was_sure_of(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, watch = self_training(), Watch(monkeypatch)
    learner.fit(targets(pseudo=False), class_features(0.3), "test")
    first, second, third = watch.targets
    assert first.pseudo is None
    for made in (second, third):
        assert made.pseudo is not None
        assert set(made.pseudo.nodes) <= set(UNLABELLED) and len(made.pseudo.nodes) > 5
        nodes, soft, is_gold = made.batch(0)
        assert nodes[is_gold.numpy()].tolist() == GOLD.tolist()
        assert nodes[~is_gold.numpy()].tolist() == made.pseudo.nodes.tolist()  # all of them, in every epoch
        assert (soft[~is_gold].amax(-1) > 0.5).all() and made.weight == 0.4


def test_a_round_is_sure_of_what_its_network_gives_more_than_the_threshold() -> None:
    learner = self_training(threshold=0.6, rounds=1)
    task = fitted(learner, targets(pseudo=False), class_features(0.3))
    own = learner.further_rounds._confident(task)
    probability = torch.from_numpy(predictions(task)).softmax(-1)
    sure = UNLABELLED[(probability[UNLABELLED].amax(-1) > 0.6).numpy()]
    assert own.nodes.tolist() == sure.tolist() and 0 < len(sure) < len(UNLABELLED)
    torch.testing.assert_close(own.targets(sure), probability[sure], atol=1e-3, rtol=1e-3)


def test_validation_picks_the_round_and_the_log_holds_all(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.2, 0.3, 0.9, 0.1, 0.5, 0.6])  # two epochs a round: the second round's first is the best
    learner, watch = self_training(score=lambda logits: next(scores), epochs=2), Watch(monkeypatch)
    task, log = learner.fit(targets(pseudo=False), class_features(0.3), "test")
    assert (log.best_score, log.best_epoch, log.epochs) == (0.9, 3, 6)
    assert [row["epoch"] for row in log.history] == [1, 2, 3, 4, 5, 6]
    after_second = watch.weights[1]
    assert all(torch.equal(value, after_second[name]) for name, value in task.model.state_dict().items())


@pytest.mark.parametrize(("threshold", "pseudo"), [(1.0, False), (0.5, True)])
def test_there_is_one_round_where_no_node_is_sure_or_the_other_model_gives_pseudo_labels(
    threshold: float, pseudo: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    fitted(self_training(threshold=threshold), targets(pseudo=pseudo), class_features(0.3))
    assert len(watch.targets) == 1


# ---- hops on a GPU ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graphs", [None, "inductive"])
@pytest.mark.parametrize(
    "options",
    [
        {"build": gamlp, "label_input": True},
        {"hop_options": {"consistency": Consistency(1.0, np.setdiff1d(REST, VALID), 0.0)}},
    ],
)
def test_where_hops_fit_a_gpu_a_step_reads_them_there_and_trains_the_same(
    graphs: str | None, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPU, which is told that it has the memory of a GPU."""
    views = None if graphs is None else GraphViews(ADJACENCY, ADJACENCY, np.arange(N))
    stored = 4 * N * ((HOPS + 1) * D + (C if "build" in options else 0)) * (1 if views is None else 2)
    trained = []
    for free, in_step in ((0, False), (2 * stored - 1, False), (2 * stored, True)):
        monkeypatch.setattr(hop_step, "free_on_gpu", lambda device, free=free: free)
        task = fitted(learner_of(batch_size=5, graphs=views, **options))
        read, *_ = next(task.batches(0).prepared(torch.device("cpu")))
        assert task.inputs.in_step == in_step != read.is_floating_point()
        trained.append((task.model.state_dict(), predictions(task)))
    for weights, logits in trained[1:]:
        assert all(torch.equal(value, trained[0][0][name]) for name, value in weights.items())
        assert np.array_equal(logits, trained[0][1])


def test_an_operator_moves_with_its_weights() -> None:
    operator = ADJACENCY.gcn()
    assert operator.to(torch.device("cpu")) is operator
    moved = operator.to(torch.device("meta"))
    assert {moved.col.device.type, moved._left.device.type, moved.device.type} == {"meta"}


# ---- consistency (SCR) --------------------------------------------------------------------------------------------


def consistent(weight: float = 1.0, **options: Any) -> Any:
    scr = Consistency(weight, UNLABELLED, options.pop("threshold", 0.0))
    return learner_of(hop_options={"consistency": scr}, **options)


@pytest.mark.parametrize("build", [lambda d, c: SGC(d, c), gamlp])
def test_a_step_is_that_of_both_losses_by_hand_and_its_gradient_the_students(
    build: Callable[[int, int], nn.Module],
) -> None:
    with_labels = build is gamlp
    torch.manual_seed(0)
    task = consistent(0.7, build=build, label_input=with_labels).start(targets(), FEATURES)
    hops, labels, target, is_gold, counts = next(task.batches(0).prepared(torch.device("cpu")))
    known = len(target)
    assert hops.shape[1] == 2 * known  # as many unlabelled nodes beside them
    with torch.no_grad():
        for parameter in task.teacher.average.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    before = {name: value.clone() for name, value in task.teacher.state_dict().items()}
    task.model.train()
    loss = task((hops, labels, target, is_gold, counts))
    loss.backward()
    logits = task.model(hops, labels)
    entropy = -(target * torch.log_softmax(logits[:known], -1)).sum(-1)
    supervised = 0.3 * entropy[~is_gold].mean() + 0.7 * entropy[is_gold].mean()
    teacher = task.teacher.average(hops[:, known:], None if labels is None else labels[:, known:]).softmax(-1)
    sharp = teacher**2 / (teacher**2).sum(-1, keepdim=True)
    apart = ((logits[known:].softmax(-1) - sharp) ** 2).sum(-1).mean()
    torch.testing.assert_close(loss, supervised + 0.7 * apart)
    assert apart > 1e-6
    assert all(parameter.grad is not None for parameter in task.model.parameters())
    assert all(parameter.grad is None for parameter in task.teacher.parameters())
    after = task.teacher.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_teacher_is_the_moving_average_of_the_weights_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[dict[str, Tensor]] = []
    teachers: list[Any] = []
    update = MeanTeacher.update

    def watched(self: MeanTeacher, student: nn.Module) -> None:
        steps.append({name: value.clone() for name, value in student.state_dict().items()})
        update(self, student)
        teachers.append(self)

    monkeypatch.setattr(MeanTeacher, "update", watched)
    torch.manual_seed(0)
    start = SGC(D, C).state_dict()
    fitted(consistent(batch_size=10, epochs=3))
    assert len(steps) == 3 * 2  # epochs, batches
    wanted = {name: value.clone() for name, value in start.items()}
    for step in steps:
        wanted = {name: 0.99 * value + 0.01 * step[name] for name, value in wanted.items()}
    found = teachers[-1].average.state_dict()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_other_unlabelled_nodes_every_epoch_and_never_labelled_or_validation_ones() -> None:
    scr = Consistency(1.0, UNLABELLED)
    drawn = scr.drawn(10, 5, epoch=0)
    assert len(set(drawn)) == 10 and set(drawn) <= set(UNLABELLED)
    assert drawn.tolist() == scr.drawn(10, 5, epoch=0).tolist()
    assert drawn.tolist() != scr.drawn(10, 5, epoch=1).tolist()


def test_a_teacher_that_is_sure_of_nothing_changes_no_weight() -> None:
    """Beside batch norm, which SGC has not, unlabelled nodes act through their loss alone."""
    found = [predictions(fitted(learner)) for learner in (consistent(5.0, threshold=0.999), learner_of())]
    np.testing.assert_allclose(*found, atol=1e-6)
