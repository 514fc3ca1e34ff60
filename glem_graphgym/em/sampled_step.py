"""The M-step on sampled neighbourhoods: batches of targets rather than the whole graph a step; prediction is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from glem_graphgym.data.sampling import Block, NeighbourSampler
from glem_graphgym.em.feature_rows import FeatureRows
from glem_graphgym.em.layerwise import LayerwiseInference, StoredInputs
from glem_graphgym.em.m_step import GNNLearner, GNNSettings, GNNTask, Structures
from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.pseudo_labels import StepTargets
from glem_graphgym.em.stage import Hardware, Task, Validation, Weights, half


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


class SampledInputs(Protocol):
    """The GNN's input, read by rows: `GNNInputs`, or `StoredInputs`."""

    @property
    def num_nodes(self) -> int: ...

    def rows(self, nodes: np.ndarray, hidden: Tensor | slice) -> Tensor: ...


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

    @property
    def sampled_inputs(self) -> SampledInputs:
        """What training reads rows of."""
        assert self.inputs is not None, "fit or load a model first"
        return self.inputs

    def task(self, targets: StepTargets) -> Task:
        return _SampledTask(targets, self)


class StoredSampledLearner(SampledLearner):
    """A `SampledLearner` for a graph and features that may be memory-mapped: nothing of all nodes is in memory.

    Its network is `layerwise.Layered`, and training sees the whole graph (transductive).

    Args:
        layerwise: validates and predicts.

        The others as `SampledLearner`.
    """

    def __init__(self, *args: Any, layerwise: LayerwiseInference, **more: Any) -> None:
        super().__init__(*args, **more)
        self.layerwise = layerwise
        self.stored: StoredInputs | None = None

    @property
    def sampled_inputs(self) -> StoredInputs:
        assert self.stored is not None, "fit or load a model first"
        return self.stored

    def load(self, targets: StepTargets, features: Any, weights: Weights | None) -> None:
        """Take a new GNN for float (N, D) ``features``, an array or `FeatureRows`, as a `GNNLearner`."""
        labels = targets if self.settings.label_input else None
        self.stored = StoredInputs(FeatureRows.of(features), labels, self.hardware.dtype)
        self.take_model(self.stored.dim, targets.gold.num_classes, weights)

    def predictions(self, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        assert self.model is not None, "fit or load a model first"
        self.model.to(self.hardware.device).eval()
        with torch.inference_mode(), self.hardware.autocast():
            for part, logits in self.exact_logits(nodes):
                yield part, half(logits)

    def exact_logits(self, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Parts of ``nodes`` that together are all of them, each with its logits."""
        model, inputs = self.model, self.sampled_inputs
        for group, rows in inputs.for_prediction(nodes):
            yield from self.layerwise.logits(model, inputs.dim, rows, group)  # type: ignore[arg-type]

    def task(self, targets: StepTargets) -> Task:
        return _StoredSampledTask(targets, self)


class _SampledTask(GNNTask):
    """Random batches of an epoch's targets, with freshly sampled neighbourhoods; validated as in full batch."""

    learner: SampledLearner
    num_batches = 0  # of every epoch: as many as the first one needed, since with label input targets vary in number

    def train_dataloader(self) -> DataLoader:
        nodes, target, is_gold = self.epoch_targets()
        rng = np.random.default_rng([self.targets.seed, self.current_epoch, 3])
        inputs = self.learner.sampled_inputs
        hidden = torch.zeros(inputs.num_nodes, dtype=torch.bool)
        hidden[torch.from_numpy(nodes)] = True

        def collate(batch: np.ndarray) -> tuple[Any, ...]:
            hood = self.learner.neighbourhoods.around(nodes[batch], rng)
            x = inputs.rows(hood.nodes, hidden[torch.from_numpy(hood.nodes)])
            return x, hood.structure, target[batch], is_gold[batch]

        self.num_batches = self.num_batches or num_batches(len(nodes), self.learner.batch_size)
        batches = [batch for batch in np.array_split(rng.permutation(len(nodes)), self.num_batches) if len(batch)]
        return DataLoader(batches, batch_size=None, collate_fn=collate)  # type: ignore[arg-type]

    def training_step(self, batch: tuple[Any, ...], batch_idx: int) -> Tensor:
        x, structure, target, is_gold = batch
        return glem_loss(self.model(x, structure)[: len(target)], target, is_gold, self.targets.weight)


class _StoredSampledTask(_SampledTask):
    learner: StoredSampledLearner

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        for nodes, logits in self.learner.exact_logits(self.validation.nodes):
            self.see(nodes, logits)


def even_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """``order`` cut into equally large batches of at most ``batch_size``; 0 = one batch.

    A last batch of a few nodes would be noise to batch norm and to the step.
    """
    return np.array_split(order, num_batches(len(order), batch_size))


def num_batches(num_nodes: int, batch_size: int) -> int:
    """How many `even_batches` there are of so many nodes."""
    return -(-num_nodes // batch_size) if num_nodes and batch_size else 1
