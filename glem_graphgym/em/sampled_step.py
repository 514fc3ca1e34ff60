"""The M-step on sampled neighbourhoods: batches of targets rather than the whole graph a step; prediction is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from glem_graphgym.data.sampling import Block, NeighbourSampler
from glem_graphgym.em.m_step import GNNInputs, GNNLearner, GNNSettings, GNNTask, Structures
from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.pseudo_labels import StepTargets
from glem_graphgym.em.stage import Hardware, Task, Validation


class Neighbourhood(NamedTuple):
    """A sampled neighbourhood of ``num_seeds`` nodes.

    Attributes:
        nodes: int64 (n,), nodes of the graph, the seeds first and in their order.
        structure: what the GNN takes beside their features; its logits' first rows are the seeds'.
    """

    nodes: np.ndarray
    structure: Any
    num_seeds: int


class Neighbourhoods:
    """Draws neighbourhoods.

    Args:
        structures: as of a `GNNLearner`; neighbours are drawn from what training sees.
        csr: structure -> row pointers (n+1,) and neighbours (E,) of its nodes.
        of_block: a sampled neighbourhood -> structure.
        fan_outs: neighbours drawn a node, hop after hop; -1 = all.
    """

    def __init__(
        self,
        structures: Structures,
        csr: Callable[[Any], tuple[np.ndarray, np.ndarray]],
        of_block: Callable[[Block], Any],
        fan_outs: Sequence[int],
    ) -> None:
        self.seen, self.of_block = structures.seen, of_block
        self.sampler = NeighbourSampler(*csr(structures.train), fan_outs)

    def around(self, seeds: np.ndarray, rng: np.random.Generator) -> Neighbourhood:
        """A neighbourhood of ``seeds``, int64 (b,), which training sees."""
        places = seeds if self.seen is None else np.searchsorted(self.seen, seeds)
        block = self.sampler.sample(places, rng)
        nodes = block.nodes if self.seen is None else self.seen[block.nodes]
        return Neighbourhood(nodes, self.of_block(block), len(seeds))


def input_rows(inputs: GNNInputs, nodes: np.ndarray, hidden: Tensor | slice) -> Tensor:
    """(n, D [+ C]): the GNN's input of ``nodes``, int64 (n,), without the labels of its ``hidden`` rows."""
    places = torch.from_numpy(nodes)
    x = inputs.x[places]
    if inputs.labels is None:
        return x
    shown = inputs.labels[places]
    shown[hidden] = 0
    return torch.cat([x, shown], dim=1)


class SampledLearner(GNNLearner):
    """A `GNNLearner` that trains on sampled neighbourhoods, a batch of targets a step.

    Validation and prediction are its own, on the whole graph and all neighbours: without gradients that takes little
    more memory than the features do. With label input an epoch's targets see no label of each other, as in full batch.

    Args:
        neighbourhoods: draws them from ``structures``, one hop a layer of the network.
        batch_size: targets an optimizer step; 0 = all of an epoch's.

        The others as `GNNLearner`.
    """

    new_batches = True

    def __init__(
        self,
        build: Callable[[int, int], nn.Module],
        structures: Structures,
        make_optimizer: Callable[[Iterator[nn.Parameter]], tuple[Any, Any]],
        settings: GNNSettings,
        validation: Validation,
        hardware: Hardware,
        *,
        neighbourhoods: Neighbourhoods,
        batch_size: int = 0,
        predicted: np.ndarray | None = None,
    ) -> None:
        super().__init__(build, structures, make_optimizer, settings, validation, hardware, predicted=predicted)
        self.neighbourhoods, self.batch_size = neighbourhoods, batch_size

    def task(self, targets: StepTargets) -> Task:
        return _SampledTask(targets, self)


class _SampledTask(GNNTask):
    """Random batches of an epoch's targets, with freshly sampled neighbourhoods; validated as in full batch."""

    learner: SampledLearner
    num_batches = 0  # of every epoch: as many as the first one needed, since with label input targets vary in number

    def train_dataloader(self) -> DataLoader:
        nodes, target, is_gold = self.epoch_targets()
        rng = np.random.default_rng([self.targets.seed, self.current_epoch, 3])
        hidden = torch.zeros(len(self.inputs.x), dtype=torch.bool)
        hidden[torch.from_numpy(nodes)] = True

        def collate(batch: np.ndarray) -> tuple[Any, ...]:
            hood = self.learner.neighbourhoods.around(nodes[batch], rng)
            x = input_rows(self.inputs, hood.nodes, hidden[torch.from_numpy(hood.nodes)])
            return x, hood.structure, target[batch], is_gold[batch]

        self.num_batches = self.num_batches or len(even_batches(nodes, self.learner.batch_size))
        batches = [batch for batch in np.array_split(rng.permutation(len(nodes)), self.num_batches) if len(batch)]
        return DataLoader(batches, batch_size=None, collate_fn=collate)  # type: ignore[arg-type]

    def training_step(self, batch: tuple[Any, ...], batch_idx: int) -> Tensor:
        x, structure, target, is_gold = batch
        return glem_loss(self.model(x, structure)[: len(target)], target, is_gold, self.targets.weight)


def even_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """``order`` cut into equally large batches of at most ``batch_size``; 0 = one batch.

    A last batch of a few nodes would be noise to batch norm and to the step.
    """
    return np.array_split(order, max(1, -(-len(order) // (batch_size or max(1, len(order))))))
