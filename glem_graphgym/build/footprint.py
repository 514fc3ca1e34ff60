"""Memory of a GNN: counted in real steps on small inputs of the same degree and widths, then extrapolated.

This works for any registered network. The size of hop features themselves is computed in `out_of_core.hop_storage`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from yacs.config import CfgNode

from glem_graphgym.build.gnn import LayeredGNN, build_gnn, gnn_optimizer
from glem_graphgym.build.language_model import gnn_hardware, hardware_for, random_state_kept
from glem_graphgym.build.learners import gnn_learner
from glem_graphgym.build.sizes import is_joint
from glem_graphgym.data.sampling import Block, NeighbourSampler
from glem_graphgym.data.text_graph import SPLITS, TextGraph, Texts
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.joint_step import VALIDATED_AT_ONCE
from glem_graphgym.em.pseudo_labels import Gold, StepTargets
from glem_graphgym.hardware import Hardware
from glem_graphgym.live_bytes import LiveBytes, counted, foreseen
from glem_graphgym.models.block import BlockAdjacency

STEP = "a step's neighbourhood"
FEWEST_NODES = 96  # at least, in the smaller of the two measured graphs
BLOCK_NODES = 1500  # in the larger of the two measured neighbourhoods
HOP_NODES = 128  # in the larger of the two measured batches of a network on hop features


def whole_graph_bytes(cfg: CfgNode, graph: TextGraph, width: int, trains: bool = True) -> dict[str, int]:
    """Bytes of a GNN on the whole graph, by part: features, edges, and a training step or a prediction.

    Args:
        width: of the node features.
        trains: whether the GNN also trains on the whole graph, or only predicts on it.
    """
    run_hardware, hardware = _run_and_counting_hardware(cfg)
    cfg = cfg.clone()
    cfg.gnn.fan_out, cfg.glem.memory_budget_gb = [], 0.0
    cfg.accelerator, cfg.gnn.precision = "cpu", "32" if hardware.dtype == torch.float32 else "bf16"
    degree = len(graph.col) / graph.num_nodes
    small_nodes = max(FEWEST_NODES, 2 * int(degree) + 4)

    def measure(nodes: float) -> LiveBytes:
        ring = ring_like(graph, round(nodes))
        validation = Validation(ring.split["valid"], lambda logits: 0.0)
        gold = Gold(ring.split["train"], ring.label[ring.split["train"]], ring.num_classes)
        with counted() as live:
            learner = gnn_learner(cfg, ring, validation)
            live.mark("edges")
            features = torch.zeros(ring.num_nodes, width)
            live.mark("features")
            task = learner.start(StepTargets(gold), features.numpy())
            optimizer = task.optimizer(2)[0] if trains else None
            for epoch in range(2 if optimizer else 0):  # the second one includes the optimizer's state
                assert optimizer is not None
                batches = task.batches(epoch)
                with hardware.autocast():
                    loss = task(batches.prepare(batches.items[0]))
                loss.backward()
                del loss
                optimizer.step()
                optimizer.zero_grad()
            task.predict(np.zeros((ring.num_nodes, ring.num_classes), dtype=np.float16))
        return live

    with random_state_kept(hardware):
        peak, marks = foreseen(measure, small_nodes, 2 * small_nodes, graph.num_nodes)
    edges, features = marks["edges"], marks["features"] - marks["edges"]
    computation = "a training step" if trains else "a prediction of all nodes"
    if run_hardware.accelerator == "cuda" and run_hardware.dtype != torch.float32:
        features = 0  # a GPU holds them in its own dtype only
    return {"features": features, "edges": edges, computation: peak - marks["features"]}


def neighbourhood_bytes(cfg: CfgNode, graph: TextGraph, width: int) -> dict[str, int]:
    """Bytes of a training step on a sampled neighbourhood and, in joint training, of a validation batch on one.

    In joint training this is the GNN's part alone, without the encoding of texts.
    """
    train, valid, joint = graph.split["train"], graph.split["valid"], is_joint(cfg)
    if not joint:
        return {STEP: _sampled_bytes(cfg, graph, width, train[: cfg.gnn.batch_size or None], True)}
    return {
        STEP: _sampled_bytes(cfg, graph, width, train[: cfg.lm.batch_size // cfg.lm.grad_accumulation], True),
        "a validation's neighbourhood": _sampled_bytes(cfg, graph, width, valid[:VALIDATED_AT_ONCE], False),
    }


def _sampled_bytes(cfg: CfgNode, graph: TextGraph, width: int, seeds: np.ndarray, trains: bool) -> int:
    """Bytes of a forward pass and, with ``trains``, a training step on a neighbourhood sampled around ``seeds``."""
    joint, classes = is_joint(cfg), graph.num_classes
    _, hardware = _run_and_counting_hardware(cfg)
    dim, dtype = width + (classes if cfg.glem.label_input else 0), torch.float32 if joint else hardware.dtype
    if cfg.glem.setting != "transductive":  # training sees fewer edges: a lower bound, without neighbours
        sampled = _block_without_neighbours(len(seeds), len(cfg.gnn.fan_out))
    else:
        sampled = NeighbourSampler(graph.rowptr, graph.col, cfg.gnn.fan_out).sample(seeds, np.random.default_rng(0))

    def measure(share: float) -> LiveBytes:
        block = scaled(sampled, share)
        with counted() as live:
            network = build_gnn(cfg, dim, classes).train(trains)
            x = torch.zeros(len(block.nodes), dim, dtype=dtype, requires_grad=joint and trains)
            adjacency = BlockAdjacency.of(block)
            if not trains:
                with torch.inference_mode(), hardware.autocast():
                    network(x, adjacency)
                return live
            _train(cfg, network, (x, adjacency), block.num_seeds, hardware)
        return live

    large = min(1.0, BLOCK_NODES / len(sampled.nodes))
    with random_state_kept(hardware):
        return foreseen(measure, large / 2, large, 1.0)[0]


def hop_step_bytes(cfg: CfgNode, num_classes: int, width: int, nodes: int) -> int:
    """Bytes of a training step of a network on hop features: weights, optimizer state, batch and activations.

    Args:
        width: of the node features.
        nodes: per batch.
    """
    _, hardware = _run_and_counting_hardware(cfg)

    def measure(count: float) -> LiveBytes:
        size = round(count)
        with counted() as live:
            network = build_gnn(cfg, width, num_classes).train()
            hops = torch.zeros(cfg.gnn.hops + 1, size, width, dtype=hardware.dtype)
            labels = torch.zeros(1, size, num_classes, dtype=hardware.dtype) if cfg.glem.label_input else None
            _train(cfg, network, (hops, labels), size, hardware)
        return live

    with random_state_kept(hardware):
        return foreseen(measure, HOP_NODES / 2, HOP_NODES, nodes)[0]


def _train(cfg: CfgNode, network: nn.Module, inputs: tuple[Any, ...], rows: int, hardware: Hardware) -> None:
    """Two training steps on the first ``rows`` logits of a batch; the second one includes the optimizer's state."""
    optimizer = gnn_optimizer(cfg)(network.parameters())[0]
    for _ in range(2):
        with hardware.autocast():
            logits = network(*inputs)[:rows]
        F.cross_entropy(logits.float(), torch.zeros(rows, dtype=torch.long)).backward()
        del logits
        inputs[0].grad = None
        optimizer.step()
        optimizer.zero_grad()


def layer_outputs(cfg: CfgNode, num_classes: int, width: int) -> list[int]:
    """Bytes per node of each layer's output, as layer-wise prediction stores it."""
    _, hardware = _run_and_counting_hardware(cfg)
    dim = width + (num_classes if cfg.glem.label_input else 0)
    bytes_per_node = []
    with random_state_kept(hardware), torch.inference_mode(), hardware.autocast():
        network = build_gnn(cfg, dim, num_classes).eval()
        assert isinstance(network, LayeredGNN)
        x, block = torch.zeros(2, dim, dtype=hardware.dtype), BlockAdjacency.of(_block_without_neighbours(2, 1))
        for index in range(network.num_layers):
            x = network.layer(index, x, block)
            bytes_per_node.append(x.shape[1] * x.element_size())
    return bytes_per_node


def _run_and_counting_hardware(cfg: CfgNode) -> tuple[Hardware, Hardware]:
    """The run's hardware, and the hardware on which steps are counted: a CPU with as many bytes per number."""
    run_hardware = hardware_for(cfg, cfg.lm.precision) if is_joint(cfg) else gnn_hardware(cfg)
    return run_hardware, Hardware("cpu", "32-true" if run_hardware.dtype == torch.float32 else "bf16-mixed")


# ---- small inputs that resemble large ones ---------------------------------------------------------------------------


def ring_like(graph: TextGraph, num_nodes: int) -> TextGraph:
    """A ring of ``num_nodes`` nodes with the mean degree, classes and split shares of ``graph``; edges join nodes near
    each other on the ring. ``num_nodes`` must exceed twice the degree."""
    per_node = len(graph.col) / graph.num_nodes / 2
    reach = int(per_node)
    extra_sources = np.arange(round((per_node - reach) * num_nodes))  # nodes with one more edge, one step further
    source = np.concatenate([np.tile(np.arange(num_nodes), reach), extra_sources])
    step = np.concatenate([np.repeat(np.arange(1, reach + 1), num_nodes), np.full(len(extra_sources), reach + 1)])
    target = (source + step) % num_nodes
    key = np.sort(np.concatenate([source * num_nodes + target, target * num_nodes + source]))
    rowptr = np.searchsorted(key, np.arange(num_nodes + 1) * num_nodes)
    order, split, start = np.random.default_rng(0).permutation(num_nodes), {}, 0
    for split_name in SPLITS:
        size = max(2, int(len(graph.split[split_name]) * num_nodes / graph.num_nodes))
        split[split_name] = np.sort(order[start : start + size])
        start += size
    labels = np.arange(num_nodes) % graph.num_classes
    texts = Texts.of([""] * num_nodes)
    return TextGraph(graph.name, texts, rowptr, key % num_nodes, labels, split, graph.class_names, edges_checked=True)


def scaled(block: Block, share: float) -> Block:
    """A neighbourhood with a ``share`` (0-1) of the nodes and edges of each hop of ``block``."""
    starts = [0, *block.ends[:-1].tolist()]
    sizes = np.diff(block.ends, prepend=0).tolist()
    groups = [max(2, round(share * size)) if size else 0 for size in sizes]
    ends = np.cumsum(groups)
    counts, columns = [np.zeros(groups[-1], dtype=np.int64)], []
    hops = zip(groups[:-1], starts[:-1], block.ends[:-1], ends[1:], strict=True)
    for hop, (nodes, start, end, num_reachable) in enumerate(hops):
        edges = round(share * int(block.rowptr[end] - block.rowptr[start]))
        count = np.full(nodes, edges // max(1, nodes)) + (np.arange(nodes) < edges % max(1, nodes))
        count = np.minimum(count, num_reachable)
        counts.insert(hop, count)
        stride = max(1, int(num_reachable // max(1, count.max(initial=1))))
        columns += [np.arange(degree) * stride + row % stride for row, degree in enumerate(count.tolist())]
    rowptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    col = np.concatenate(columns) if columns else np.empty(0, dtype=np.int64)
    return Block(np.arange(ends[-1]), ends, rowptr, col, np.full(ends[-1], 10))


def _block_without_neighbours(seeds: int, hops: int) -> Block:
    ends, zeros = np.full(hops + 1, seeds), np.zeros(seeds + 1, dtype=np.int64)
    return Block(np.arange(seeds), ends, zeros, zeros[:0], zeros[:-1])
