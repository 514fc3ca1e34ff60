"""The M-step on sampled neighbourhoods, with the networks as a configuration builds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.gnn import build_gnn
from glem_graphgym.data.sampling import ALL
from glem_graphgym.data.text_graph import csr_from_edges
from glem_graphgym.em.fit import Validation, prefetched
from glem_graphgym.em.m_step import GNNLearner, GNNSettings, GraphViews
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.em.sampled_step import Neighbourhoods, SampledLearner, even_batches
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.block import BlockAdjacency
from glem_graphgym.models.propagation import Adjacency

N, C, D = 40, 3, 5
RNG = np.random.default_rng(0)
ROWPTR, COL = csr_from_edges(RNG.integers(0, N, 90), RNG.integers(0, N, 90), N)
GOLD, VALID, TEST = np.arange(0, 24, 2), np.arange(24, 32), np.arange(32, N)
REST = np.setdiff1d(np.arange(N), GOLD)
FEATURES = RNG.normal(size=(N, D)).astype(np.float32)
LABELS = RNG.integers(0, C, N)
NETWORKS = ["glem_sage", "glem_gcn", "glem_gat", "glem_mlp", "glem_revgat", "gnn"]


@pytest.fixture(autouse=True)
def network_settings(fresh_config: None) -> None:
    """Two layers, without what differs from draw to draw or from batch to batch."""
    g = cfg.gnn
    g.layers_mp, g.layers_post_mp, g.dim_inner, g.dropout, g.norm, g.batchnorm = 2, 1, 8, 0.0, "layer", False
    g.layer_type, g.head = "sageconv", "node"
    cfg.dataset.node_encoder = False


def whole() -> GraphViews:
    adjacency = Adjacency(torch.from_numpy(ROWPTR), torch.from_numpy(COL))
    return GraphViews(adjacency, adjacency)


def without_test_nodes() -> GraphViews:
    """Training sees all nodes but ``TEST``, prediction the whole graph."""
    seen = np.setdiff1d(np.arange(N), TEST)
    row = np.repeat(np.arange(N), np.diff(ROWPTR))
    kept = np.isin(row, seen) & np.isin(COL, seen)
    edges = np.searchsorted(seen, np.stack([row[kept], COL[kept]]))
    return GraphViews(Adjacency.from_edge_index(torch.from_numpy(edges), len(seen)), whole().predict, seen)


def targets(pseudo_nodes: np.ndarray | None = REST, labels: np.ndarray = LABELS, **options: Any) -> StepTargets:
    gold = Gold(GOLD, labels[GOLD], C)
    logits = np.random.default_rng(1).normal(size=(N, C))
    pseudo = None if pseudo_nodes is None else PseudoLabels(logits, pseudo_nodes, gold)
    return StepTargets(gold, pseudo, **{"weight": 0.3, "ratio": 1.5, "redraw": True, "seed": 5, **options})


def learner_of(
    fan_outs: list[int] | None,
    graphs: GraphViews | None = None,
    batch_size: int = 0,
    score: Callable[[np.ndarray], float] = lambda logits: 0.5,
    build: Callable[[int, int], nn.Module] = lambda dim_in, num_classes: build_gnn(cfg, dim_in, num_classes),
    lr: float = 0.1,
    **options: Any,
) -> Any:
    """A `SampledLearner`, or without fan-outs the full-batch one."""

    def optimizer(params: Iterator[nn.Parameter]) -> tuple[Any, Any]:
        made = torch.optim.SGD(params, lr=lr)
        return made, torch.optim.lr_scheduler.ConstantLR(made, 1.0)

    def seeded(dim_in: int, num_classes: int) -> nn.Module:
        torch.manual_seed(3)
        return build(dim_in, num_classes)

    graphs = graphs or whole()
    settings = GNNSettings(**{"epochs": 1, **options})
    common = (seeded, graphs, optimizer, settings, Validation(VALID, score), Hardware())
    if fan_outs is None:
        return GNNLearner(*common)
    hoods = Neighbourhoods(graphs, fan_outs)
    return SampledLearner(*common, neighbourhoods=hoods, batch_size=batch_size)


def predictions(task: Any) -> np.ndarray:
    out = np.zeros((N, C), dtype=np.float32)
    task.predict(out)
    return out


def trained(learner: Any, made: StepTargets | None = None, features: np.ndarray = FEATURES) -> Any:
    """A task that the learner has trained."""
    return learner.fit(made or targets(), features, "test").task


def steps(task: Any, label_input: bool = False) -> Iterator[Tensor]:
    """By how much each weight has changed since the start."""
    fresh = task.learner.build(D + C * label_input, C).parameters()
    for before, after in zip(fresh, task.model.parameters(), strict=True):
        yield (after - before).detach()


# ---- all neighbours and one batch are the full-batch step -----------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("label_input", [False, True])
def test_all_neighbours_in_one_batch_take_the_full_batch_step(network: str, label_input: bool) -> None:
    """Plain gradient descent: weights are equal after a step if and only if gradients were."""
    cfg.model.type = network
    full, sampled = (trained(learner_of(fan_outs, label_input=label_input)) for fan_outs in (None, [ALL, ALL]))
    for one, other in zip(steps(full, label_input), steps(sampled, label_input), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(predictions(sampled), predictions(full), atol=2e-3)


@pytest.mark.parametrize("network", ["glem_sage", "glem_gcn", "glem_gat"])
def test_the_same_where_training_does_not_see_test_nodes(network: str) -> None:
    cfg.model.type = network
    made, changed = targets(np.setdiff1d(REST, TEST)), FEATURES.copy()
    changed[TEST] += 1
    full, learner = learner_of(None, without_test_nodes()), learner_of([ALL, ALL], without_test_nodes())
    one, other, blind = trained(full, made), trained(learner, made), trained(learner, made, changed)
    for expected, *found in zip(steps(one), steps(other), steps(blind), strict=True):
        for step in found:
            torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(predictions(other), predictions(one), atol=2e-3)


@pytest.mark.parametrize("network", NETWORKS)
def test_predictions_are_the_full_batch_ones_with_the_same_weights(network: str) -> None:
    cfg.model.type = network
    sampled = trained(learner_of([2, 1], batch_size=5, epochs=3))
    full = learner_of(None).start(targets(), FEATURES, sampled.model.state_dict())
    assert np.array_equal(predictions(sampled), predictions(full))


# ---- batches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(20, 0, [20]), (20, 7, [7, 7, 6]), (20, 19, [10, 10]), (20, 20, [20]), (3, 1, [1, 1, 1])],
)
def test_batches_are_equally_large_and_not_larger_than_asked(count: int, size: int, sizes: list[int]) -> None:
    batches = even_batches(np.arange(count), size)
    assert [len(batch) for batch in batches] == sizes
    assert np.concatenate(batches).tolist() == list(range(count))


class Watch(nn.Module):
    """A network that takes note of the inputs and graphs that it is trained on."""

    def __init__(self, dim_in: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim_in, num_classes)
        self.seen: list[tuple[Tensor, BlockAdjacency]] = []

    def forward(self, x: Tensor, adjacency: BlockAdjacency) -> Tensor:
        if self.training:
            self.seen.append((x.clone(), adjacency))
        return self.linear(x)


@pytest.mark.parametrize("label_input", [False, True])
def test_an_epochs_targets_come_once_each_with_their_neighbours_inputs(label_input: bool) -> None:
    task = trained(learner_of([3, 2], batch_size=6, build=Watch, epochs=2, label_input=label_input))
    watch: Any = task.model
    per_epoch = len(watch.seen) // 2
    assert per_epoch > 1
    for epoch in range(2):
        batches = watch.seen[epoch * per_epoch : (epoch + 1) * per_epoch]
        rows = [node_of(x[: adjacency.num_seeds, :D]) for x, adjacency in batches]
        nodes, _, _ = targets().batch(epoch)
        if label_input:  # of which some are inputs instead
            assert set(np.concatenate(rows)) <= set(nodes)
        else:
            assert sorted(np.concatenate(rows)) == sorted(nodes)
        aims = np.concatenate(rows)
        for x, adjacency in batches:
            found = node_of(x[:, :D])
            degree = np.diff(ROWPTR)[found]
            assert adjacency.degree.tolist() == degree.tolist()
            if label_input:
                # No target of this epoch sees a label of one; all others show theirs.
                hidden = np.isin(found, aims)
                assert x[hidden, D:].abs().sum() == 0
                wanted = task.inputs.labels[torch.from_numpy(found)]
                torch.testing.assert_close(x[~hidden, D:], wanted[~hidden])
                assert (~hidden).any()


def node_of(rows: Tensor) -> np.ndarray:
    """The nodes whose features the rows are."""
    return np.abs(FEATURES[None] - rows.numpy()[:, None]).sum(-1).argmin(1)


def test_neighbourhoods_are_drawn_anew_and_the_same_in_every_run() -> None:
    def draws() -> list[list[int]]:
        task = trained(learner_of([2, 1], batch_size=50, build=Watch, epochs=3), targets(redraw=False))
        return [adjacency.edge_index().flatten().tolist() for _, adjacency in task.model.seen]

    one, other = draws(), draws()
    assert one == other
    assert one[0] != one[1] != one[2]


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_workers_that_draw_them(workers: int) -> None:
    task = learner_of([2, 1], batch_size=4, label_input=True).start(targets(), FEATURES)
    batches = task.batches(1)
    assert len(batches.items) > 3
    pairs = zip(batches.prepared(torch.device("cpu")), prefetched(batches.prepare, batches.items, workers), strict=True)
    for ((nodes, hidden), adjacency, *rest), ((others, also), other, *more) in pairs:
        for one, two in zip(
            (nodes, hidden, adjacency.edge_index(), *rest), (others, also, other.edge_index(), *more), strict=True
        ):
            assert torch.equal(one, two)


def test_the_best_weights_by_exact_validation_are_kept() -> None:
    """What is scored is the full-batch prediction of the validation nodes."""
    cfg.model.type = "glem_sage"
    scored: list[np.ndarray] = []

    def score(logits: np.ndarray) -> float:
        scored.append(logits)
        return [0.1, 0.9, 0.2][len(scored) - 1]

    learner = learner_of([1, 1], batch_size=7, score=score, epochs=3)
    task, log = learner.fit(targets(), FEATURES, "test")
    assert log.best_epoch == 2
    np.testing.assert_allclose(predictions(task)[VALID], scored[1], atol=2e-3)
