"""The GNN: M-step epochs, products with the graph, hop propagation, sampled neighbourhoods."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch_geometric.nn import SAGEConv
from torch_geometric.nn.models import CorrectAndSmooth
from torch_geometric.utils import scatter, trim_to_layer

from benchmarks.measure import Row, bandwidth, flops, in_ms, now, row_of, seconds_of
from glem_graphgym.data.csr import csr_from_edges
from glem_graphgym.data.sampling import Block, NeighbourSampler
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.m_step import GNNLearner, GNNSettings, GraphViews
from glem_graphgym.em.pseudo_labels import Gold, StepTargets
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.block import BlockAdjacency, seed_logits
from glem_graphgym.models.correct_and_smooth import LAYERS as PROPAGATIONS
from glem_graphgym.models.correct_and_smooth import correct_and_smooth
from glem_graphgym.models.gcn import GCN
from glem_graphgym.models.mlp import MLP
from glem_graphgym.models.propagation import Adjacency, SparseOperator
from glem_graphgym.models.sage import SAGE

CLASSES = 58
NODES, EDGES, FEATURES, WIDTH, LAYERS = 63_436, 295_300, 384, 256, 3  # the Debian graph; the GNN of OGB's baselines
LARGE_NODES, LARGE_EDGES, SEEDS, FAN_OUT = 1_000_000, 12_000_000, 4_096, [15, 10]
GOLD, VALID = 5_243, 5_227
MODELS: dict[str, Callable[..., nn.Module]] = {"SAGE": SAGE, "GCN": GCN, "MLP": MLP}
SINGLE, HALF = "32-true", "bf16-mixed"


@cache
def graph() -> tuple[Adjacency, Tensor]:
    """A random graph of the Debian graph's size: our adjacency, and PyG's ``edge_index``."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(NODES, (2, EDGES), generator=generator)
    edge_index = torch.cat([ends, ends.flip(0)], dim=1)
    return Adjacency.from_edge_index(edge_index, NODES), edge_index


@cache
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(NODES, FEATURES)).astype(np.float32)


class PyGSAGE(nn.Module):
    """The same GraphSAGE out of PyG's `SAGEConv` on ``edge_index``, as PyG's own examples write it.

    Args:
        sizes: lists of the nodes and of the edges that each hop of a sampled neighbourhood adds; each layer then skips
            those that later layers do not need. None = no layer skips any.
    """

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int, num_layers: int, sizes: Any = None) -> None:
        super().__init__()
        self.sizes = sizes
        dims = [dim_in, *[dim_hidden] * (num_layers - 1), dim_out]
        self.convs = nn.ModuleList(SAGEConv(a, b) for a, b in pairwise(dims))
        self.norms = nn.ModuleList(nn.BatchNorm1d(dim_hidden) for _ in range(num_layers - 1))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for layer, conv in enumerate(self.convs):
            if self.sizes is not None:
                x, edge_index, _ = trim_to_layer(layer, *self.sizes, x, edge_index)
            x = conv(x, edge_index)
            if layer < len(self.norms):
                x = F.dropout(F.relu(self.norms[layer](x)), 0.5, self.training)
        return x


def learner_of(model: Callable[..., nn.Module], structure: Any, hardware: Hardware, epochs: int) -> GNNLearner:
    def build(dim_in: int, num_classes: int) -> nn.Module:
        return model(dim_in, WIDTH, num_classes, LAYERS)

    def optimizer(params: Iterator[nn.Parameter]) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW(params, 1e-3, weight_decay=0.0, fused=True)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)

    valid = Validation(np.arange(GOLD, GOLD + VALID), lambda logits: float(logits.argmax(-1).mean()))
    graphs = GraphViews(structure, structure)
    return GNNLearner(build, graphs, optimizer, GNNSettings(epochs=epochs), valid, hardware)


def targets() -> StepTargets:
    return StepTargets(Gold(np.arange(GOLD), np.arange(GOLD) % CLASSES, CLASSES))


def seconds_of_an_epoch(learner: GNNLearner, epochs: int = 4) -> float:
    """Seconds per epoch (train and evaluate) of `GNNLearner.fit`; set-up cancels out in a difference of two fits."""

    def fit(count: int) -> float:
        timed_learner = replace(learner, settings=replace(learner.settings, epochs=count))
        start = now()
        timed_learner.fit(targets(), features(), "m_step")
        return now() - start

    return (fit(1 + epochs) - fit(1)) / epochs


@contextmanager
def traffic() -> Iterator[list[int]]:
    """Collects the bytes that each sparse product reads and writes: one neighbour's row per edge, without a cache."""
    multiply, product_bytes = SparseOperator._multiply, []

    def counted(operator: SparseOperator, x: Tensor) -> Tensor:
        product = multiply(operator, x)
        product_bytes.append(len(graph()[0].col) * (x.shape[1] * x.element_size() + 4) + product.nbytes)
        return product

    with mock.patch.object(SparseOperator, "_multiply", counted):
        yield product_bytes


def bound_of_an_epoch(model: Callable[..., nn.Module], hardware: Hardware) -> float:
    """Seconds per epoch if only matrix products and the bytes of sparse products took time."""
    with traffic() as product_bytes, FlopCounterMode(display=False) as counter:
        learner_of(model, graph()[0], hardware, 1).fit(targets(), features(), "counting")
    product_seconds = counter.get_total_flops() / flops(hardware.dtype, hardware.accelerator)
    return product_seconds + sum(product_bytes) / bandwidth(hardware.accelerator)


def m_step(repeats: int, device: str) -> Iterator[Row]:
    """An epoch of full-batch training with validation: 3 layers of 256 on 384 features."""
    for name, precision in [(name, SINGLE) for name in MODELS] + [("SAGE", HALF)]:
        hardware = Hardware(device, precision)
        bound = bound_of_an_epoch(MODELS[name], hardware)
        ours, rival = [], []
        for _ in range(min(repeats, 3)):
            ours.append(1e3 * seconds_of_an_epoch(learner_of(MODELS[name], graph()[0], hardware, 1)))
            if name == "SAGE":
                rival.append(1e3 * seconds_of_an_epoch(learner_of(PyGSAGE, graph()[1], hardware, 1), epochs=1))
        quantity = f"{name} {LAYERS}x{WIDTH}, {hardware.precision}, epoch"
        yield row_of(quantity, ours, "ms", bound=1e3 * bound, rival=rival, rival_name="PyG's SAGEConv")


def propagation(repeats: int, device: str) -> Iterator[Row]:
    """Mean aggregation with its gradient against torch's CSR and PyG's scatter; hops without gradient."""
    adjacency, edge_index = graph()
    adjacency, edge_index = adjacency.to(device), edge_index.to(device)
    mean = adjacency.mean()
    x = torch.randn(NODES, WIDTH, device=device, requires_grad=True)
    degree = torch.bincount(edge_index[1], minlength=NODES).clamp(min=1)
    values = (1 / degree)[edge_index[1]]
    csr = torch.sparse_coo_tensor(edge_index.flip(0), values, (NODES, NODES)).coalesce().to_sparse_csr()

    def backward(product: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: product().sum().backward()

    products = {
        "ours": lambda: mean @ x,
        "torch's CSR": lambda: csr @ x,
        "PyG's gather-scatter": lambda: scatter(x[edge_index[0]], edge_index[1], 0, NODES, "mean"),
    }
    times = in_ms(seconds_of({name: backward(product) for name, product in products.items()}, repeats))
    with traffic() as product_bytes:
        backward(products["ours"])()
    bound = 1e3 * sum(product_bytes) / bandwidth(device)
    quantity = f"mean aggregation and its gradient, {len(adjacency.col):,} entries, width {WIDTH}"
    for rival in list(products)[1:]:
        yield row_of(quantity, times["ours"], "ms", bound=bound, rival=times[rival], rival_name=rival)

    gcn, hops = adjacency.gcn(), 3
    start = torch.from_numpy(features()).to(device)

    def propagate() -> list[Tensor]:
        hop_features = [start]
        for _ in range(hops):
            hop_features.append(gcn @ hop_features[-1])
        return hop_features[1:]

    with traffic() as product_bytes:
        hop_features = propagate()
    bound = 1e3 * sum(product_bytes) / bandwidth(device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "hops.npy"
        np.save(file, torch.stack(hop_features).cpu().numpy())
        rival = "reading them from a file"
        candidates = {"ours": propagate, rival: lambda: torch.from_numpy(np.load(file)).to(device)}
        times = in_ms(seconds_of(candidates, repeats))
    quantity = f"{hops} hops of {FEATURES} features"
    yield row_of(quantity, times["ours"], "ms", bound=bound, rival=times[rival], rival_name=rival)


def smoothing(repeats: int, device: str) -> Iterator[Row]:
    """Correct & Smooth on a random graph, its operator made each time, compared with PyG's."""
    nodes, entries, classes = 200_000, 4_000_000, 40
    ends = torch.randint(nodes, (2, entries // 2), generator=torch.Generator().manual_seed(0))
    edge_index, rng = torch.cat([ends, ends.flip(0)], dim=1), np.random.default_rng(0)
    gold, labels = np.arange(0, nodes, 2), rng.integers(0, classes, nodes // 2)
    logits = rng.normal(size=(nodes, classes)).astype(np.float32)
    soft, labels_on_device, gold_on_device = (torch.from_numpy(array).to(device) for array in (logits, labels, gold))
    soft = soft.softmax(-1)
    on_device = edge_index.to(device)
    peer = CorrectAndSmooth(PROPAGATIONS, 1.0, PROPAGATIONS, 0.8)
    candidates: dict[str, Callable[[], Any]] = {
        "ours": lambda: correct_and_smooth(
            logits, gold, labels, Adjacency.from_edge_index(edge_index, nodes).to(device)
        ),
        "PyG's": lambda: peer.smooth(
            peer.correct(soft, labels_on_device, gold_on_device, on_device), labels_on_device, gold_on_device, on_device
        ),
    }
    seconds = seconds_of(candidates, min(repeats, 3))
    quantity = (
        f"Correct & Smooth, {2 * PROPAGATIONS} propagations, {nodes:,} nodes, {entries:,} entries, {classes} classes"
    )
    yield row_of(quantity, seconds["ours"], "s", rival=seconds["PyG's"], rival_name="PyG's CorrectAndSmooth")


def sampled(repeats: int, device: str) -> Iterator[Row]:
    """A sampled neighbourhood of a larger graph: drawing it, and a training step on it, compared with PyG's layers."""
    rng = np.random.default_rng(0)
    ends = rng.integers(0, LARGE_NODES, (2, LARGE_EDGES))
    sampler = NeighbourSampler(*csr_from_edges(ends[0], ends[1], LARGE_NODES), FAN_OUT)
    seeds = rng.choice(LARGE_NODES, SEEDS, replace=False)

    def draw() -> Block:
        return sampler.sample(seeds, np.random.default_rng(0))

    block = draw()
    size_text = f"{SEEDS:,} nodes, fan-out {FAN_OUT}: {len(block.nodes):,} nodes and {len(block.col):,} edges"
    yield row_of(f"drawing, {size_text}", in_ms(seconds_of({"": draw}, repeats))[""], "ms")

    x = torch.randn(len(block.nodes), FEATURES, device=device)
    arrays = (block.edge_index(), block.rowptr, block.col, block.degree)
    edge_index, rows, columns, degree = (torch.from_numpy(array).to(device) for array in arrays)
    sizes = np.diff(block.ends, prepend=0).tolist(), np.diff(block.rowptr[block.ends[:-1]], prepend=0).tolist()
    model = SAGE(FEATURES, WIDTH, CLASSES, len(FAN_OUT)).to(device)
    rivals = {
        "PyG's SAGEConv": PyGSAGE(FEATURES, WIDTH, CLASSES, len(FAN_OUT)).to(device),
        "the same with trim_to_layer": PyGSAGE(FEATURES, WIDTH, CLASSES, len(FAN_OUT), sizes).to(device),
    }
    logits: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: seed_logits(model, x, BlockAdjacency(rows, columns, degree, block.ends.tolist())),
        **{name: partial(rival, x, edge_index) for name, rival in rivals.items()},
    }

    def step(name: str) -> None:
        logits[name]()[:SEEDS].logsumexp(-1).mean().backward()

    times = in_ms(seconds_of({name: partial(step, name) for name in logits}, min(repeats, 3)))
    quantity = f"SAGE {len(FAN_OUT)}x{WIDTH}, training step on it"
    for name in rivals:
        yield row_of(quantity, times["ours"], "ms", rival=times[name], rival_name=name)
