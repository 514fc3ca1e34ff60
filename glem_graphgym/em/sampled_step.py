"""The M-step on sampled neighbourhoods: one step per batch of targets, not on the whole graph; prediction is exact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from glem_graphgym.data.sampling import NeighbourSampler
from glem_graphgym.em.fit import Batches
from glem_graphgym.em.inputs import StoredInputs
from glem_graphgym.em.m_step import FullBatchTask, GNNLearner, GNNTask, GraphViews
from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.pseudo_labels import StepTargets
from glem_graphgym.models.block import BlockAdjacency
from glem_graphgym.out_of_core.feature_rows import FeatureRows
from glem_graphgym.out_of_core.layerwise import LayerwiseInference


class Neighbourhood(NamedTuple):
    """A sampled neighbourhood of ``num_seeds`` nodes.

    Attributes:
        nodes: int64 (n,), nodes of the graph, the seeds first and in their order.
        adjacency: the drawn edges; the first rows of the GNN's logits are the seeds'.
    """

    nodes: np.ndarray
    adjacency: BlockAdjacency
    num_seeds: int


class Neighbourhoods:
    """Samples neighbourhoods from the training graph.

    Args:
        graphs: see `GNNLearner`.
        fan_outs: neighbours drawn per node, one number per hop; -1 = all.
    """

    def __init__(self, graphs: GraphViews, fan_outs: Sequence[int]) -> None:
        assert getattr(graphs.train, "keep", None) is None, "neighbours are not sampled from a part of a stored graph"
        self.observed_nodes = graphs.observed_nodes
        self.sampler = NeighbourSampler(np.asarray(graphs.train.rowptr), np.asarray(graphs.train.col), fan_outs)

    def around(self, seeds: np.ndarray, rng: np.random.Generator) -> Neighbourhood:
        """Sample a neighbourhood of ``seeds``, int64 (b,), nodes that training sees."""
        positions = seeds if self.observed_nodes is None else np.searchsorted(self.observed_nodes, seeds)
        block = self.sampler.sample(positions, rng)
        nodes = block.nodes if self.observed_nodes is None else self.observed_nodes[block.nodes]
        return Neighbourhood(nodes, BlockAdjacency.of(block), len(seeds))


class SampledTask(FullBatchTask):
    """Trains on random batches of an epoch's targets, with new neighbourhoods for each; validates in full batch."""

    num_batches = 0  # per epoch, set by the first: with label input, the number of targets varies between epochs

    def batches(self, epoch: int) -> Batches:
        nodes, target, is_gold = self.epoch_targets(epoch)
        seeds = [self.targets.seed, epoch, 3]
        order = np.random.default_rng(seeds).permutation(len(nodes))
        hidden = torch.zeros(self.inputs.num_nodes, dtype=torch.bool).index_fill_(0, nodes, True)

        def prepare(item: tuple[int, np.ndarray]) -> tuple[Any, ...]:
            number, batch = item
            hood = self.learner.neighbourhoods.around(nodes[batch].numpy(), np.random.default_rng([*seeds, number]))
            hood_nodes = torch.from_numpy(hood.nodes)
            return self.fetch(hood_nodes, hidden[hood_nodes]), hood.adjacency, target[batch], is_gold[batch]

        self.num_batches = self.num_batches or num_batches(len(nodes), self.learner.batch_size)
        batches = [batch for batch in np.array_split(order, self.num_batches) if len(batch)]
        return Batches(list(enumerate(batches)), prepare)

    def fetch(self, nodes: Tensor, hidden: Tensor) -> Any:
        """What a batch contains for ``nodes``, int64 (n,): indices, whose rows the step reads, maybe on a GPU."""
        return nodes, hidden

    def forward(self, batch: tuple[Any, ...]) -> Tensor:
        x, adjacency, target, is_gold = batch
        x = self.inputs.rows(*x) if isinstance(x, tuple) else x
        logits = self.model(x, adjacency)[: len(target)]
        return glem_loss(logits, target, is_gold, self.targets.weight, class_weights=self.class_weights)


class StoredSampledTask(SampledTask):
    """A `SampledTask` that validates and predicts layer by layer, over blocks of nodes."""

    inputs: StoredInputs  # type: ignore[assignment]

    def fetch(self, nodes: Tensor, hidden: Tensor) -> Tensor:
        return self.inputs.rows(nodes.numpy(), hidden)

    def validated(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        return self.exact_logits(self.validation.nodes)

    def exact_logits(self, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        model: Any = self.model
        for group, rows in self.inputs.for_prediction(nodes):
            yield from self.learner.layerwise.logits(model, self.inputs.dim, rows, group)


@dataclass(frozen=True, kw_only=True)
class SampledLearner(GNNLearner):
    """A `GNNLearner` that trains on sampled neighbourhoods, a batch of targets per step.

    Validation and prediction run on the whole graph: without gradients that needs little more memory than the features.
    With label input the labels of all targets of an epoch are hidden, as in full batch.

    Attributes:
        neighbourhoods: samples from ``graphs``, one hop per layer of the network.
        batch_size: targets per optimizer step; 0 = all of an epoch.
    """

    neighbourhoods: Neighbourhoods
    batch_size: int = 0

    task: ClassVar[type[GNNTask]] = SampledTask
    in_batches: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class StoredSampledLearner(SampledLearner):
    """A `SampledLearner` for graph and features that may be memory-mapped: features are never in memory as a whole.

    The network is a `LayeredGNN`; training sees the whole graph (transductive); ``layerwise`` validates and predicts.
    """

    layerwise: LayerwiseInference

    task: ClassVar[type[GNNTask]] = StoredSampledTask

    def _inputs(self, features: Any, targets: StepTargets) -> StoredInputs:
        labels = targets if self.settings.label_input else None
        return StoredInputs(FeatureRows.wrap(features), labels, self.hardware.dtype)


def even_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut ``order`` into batches of equal size, at most ``batch_size``; 0 = one batch.

    A small last batch would give noisy statistics to batch norm, and a noisy step.
    """
    return np.array_split(order, num_batches(len(order), batch_size))


def num_batches(num_nodes: int, batch_size: int) -> int:
    """Number of `even_batches` of ``num_nodes`` nodes."""
    return -(-num_nodes // batch_size) if num_nodes and batch_size else 1
