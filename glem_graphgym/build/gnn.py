"""Builds the GNN that ``model.type`` and ``gnn.*`` describe: one of ours, or any network registered in GraphGym."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.graphgym.optim import create_optimizer, create_scheduler
from torch_geometric.graphgym.register import network_dict
from yacs.config import CfgNode

from glem_graphgym.models.block import BlockAdjacency, seed_logits
from glem_graphgym.models.gamlp import GAMLP
from glem_graphgym.models.gat import GAT
from glem_graphgym.models.gcn import GCN
from glem_graphgym.models.hop_network import HopNetwork
from glem_graphgym.models.hops import propagate
from glem_graphgym.models.mlp import MLP, LayerStack
from glem_graphgym.models.propagation import Adjacency, SparseOperator
from glem_graphgym.models.revgat import RevGAT
from glem_graphgym.models.sage import SAGE
from glem_graphgym.models.sagn import SAGN
from glem_graphgym.models.sgc import SGC
from glem_graphgym.models.sign import SIGN

# ---- our networks, from the configuration -------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """An entry of `NETWORKS`: how to make the network of a ``model.type``, and its kind.

    Attributes:
        make: called with ``dim_in`` (F), ``dim_out`` (C) and the arguments of ``keys``.
        keys: argument of ``make`` -> key of ``gnn.*`` that it is taken from.
        takes_labels: ``make`` has an argument ``label_hops``: 1 adds a network on the last label hop, 0 none.
        least_layers: lower bound of ``gnn.layers_mp``.
    """

    make: type[nn.Module]
    keys: Mapping[str, str]
    takes_labels: bool = False
    least_layers: int = 1

    def build(self, cfg: CfgNode, dim_in: int, dim_out: int) -> nn.Module:
        """The plain module; ValueError if ``gnn.*`` rules it out."""
        g, name = cfg.gnn, cfg.model.type
        if g.layers_mp < self.least_layers:
            raise ValueError(f"gnn.layers_mp is {g.layers_mp}, model.type {name} needs at least {self.least_layers}")
        if "rev_groups" in self.keys.values() and g.dim_inner % g.rev_groups:
            raise ValueError(
                f"gnn.dim_inner is {g.dim_inner}, expected a multiple of gnn.rev_groups, {g.rev_groups} ({name})"
            )
        arguments = {argument: g[key] for argument, key in self.keys.items()}
        if "input_norm" in arguments:
            arguments["input_norm"] = g.input_norm == "batch"
        if self.takes_labels:
            arguments["label_hops"] = int(cfg.glem.label_input and cfg.train.mode != "standard")
        return self.make(dim_in=dim_in, dim_out=dim_out, **arguments)


def _keys(same_named: str, **renamed: str) -> dict[str, str]:
    """Argument -> key of ``gnn.*``; the arguments of ``same_named``, a list with blanks, are called as their keys."""
    return {"dim_hidden": "dim_inner", **{name: name for name in same_named.split()}, **renamed}


def _layer_stack(make: type[LayerStack], same_named: str = "", **renamed: str) -> Network:
    common = f"dropout norm input_dropout residual linear_skip readout {same_named}"
    return Network(make, _keys(common, num_layers="layers_mp", pre_layers="layers_pre_mp", **renamed))


_ON_HOPS = "hops dropout input_dropout"
_ATTENDING = f"{_ON_HOPS} attention_dropout label_dropout"
# model.type -> network. A new network of ours is a module in `models/` and one entry here.
NETWORKS: dict[str, Network] = {
    "glem_mlp": _layer_stack(MLP),
    "glem_sage": _layer_stack(SAGE, "self_loops"),
    "glem_gcn": _layer_stack(GCN, "hidden_bias"),
    "glem_gat": _layer_stack(GAT, "attention_dropout", heads="att_heads"),
    "glem_revgat": Network(
        RevGAT,
        _keys(
            "dropout norm input_dropout edge_drop attention_dropout symmetric_norm input_norm",
            num_layers="layers_mp",
            heads="att_heads",
            group="rev_groups",
        ),
        least_layers=2,
    ),
    "glem_sgc": Network(SGC, {}, least_layers=0),
    "glem_sign": Network(SIGN, _keys(_ON_HOPS, num_layers="layers_mp")),
    "glem_sagn": Network(SAGN, _keys(_ATTENDING, num_layers="layers_mp", heads="att_heads"), takes_labels=True),
    "glem_gamlp": Network(
        GAMLP,
        _keys(f"{_ATTENDING} residual input_norm", output_layers="layers_mp", activation="hop_activation"),
        takes_labels=True,
    ),
}


def has_layers(cfg: CfgNode) -> bool:
    """Whether ``model.type`` names one of our layer stacks, which `build_gnn` wraps in a `LayeredGNN`."""
    return cfg.model.type in NETWORKS and issubclass(NETWORKS[cfg.model.type].make, LayerStack)


def sees_hops(cfg: CfgNode) -> bool:
    """Whether ``model.type`` names a network on hop features (K + 1, N, F), not on features (N, F) and the graph."""
    return cfg.model.type in NETWORKS and issubclass(NETWORKS[cfg.model.type].make, HopNetwork)


# ---- as GraphGym calls them ---------------------------------------------------------------------------------------


class GraphNetwork(nn.Module):
    """One of our GNNs, ``net``, as a GraphGym network: called with a batch, returns (pred, true).

    A network on hop features gets those of the batch, propagated ``hops`` times in every step, because GraphGym's own
    training copies the graph for every step. Our train modes propagate once (`em.hop_step`).
    """

    def __init__(self, net: nn.Module, hops: int) -> None:
        super().__init__()
        self.net, self.hops = net, hops

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        return read_out(self.logits(batch.x, Adjacency.from_edge_index(batch.edge_index, batch.num_nodes)), batch)

    def logits(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        """Logits (N, C); on a sampled neighbourhood a layer stack returns those of the seeds only."""
        if isinstance(self.net, HopNetwork):
            return self.net(propagate(adjacency.gcn(), x, self.hops))
        if isinstance(adjacency, BlockAdjacency) and isinstance(self.net, LayerStack):
            return seed_logits(self.net, x, adjacency)
        return self.net(x, adjacency)


def graphgym_network(cfg: CfgNode, name: str, dim_in: int, dim_out: int) -> GraphNetwork:
    """The network ``name`` of `NETWORKS` as a GraphGym network."""
    return GraphNetwork(NETWORKS[name].build(cfg, dim_in, dim_out), cfg.gnn.hops)


def read_out(logits: Tensor, batch: Any) -> tuple[Tensor, Tensor | None]:
    """(pred, true) as GraphGym's node head returns them: for the nodes of ``batch.split``, or all nodes without one."""
    labels = batch.y if "y" in batch else None
    if "split" not in batch:
        return logits, labels
    mask = batch[f"{batch.split}_mask"]
    return logits[mask], None if labels is None else labels[mask]


# ---- as the M-step calls them -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MmapGraph:
    """The graph as CSR arrays that may be memory-mapped, for work that reads it from disk, or as an `Adjacency`.

    Attributes:
        rowptr: int64 (N+1,), of all N nodes.
        col: (E,), their neighbours.
        keep: bool (N,), mask: only edges between its nodes belong to the graph; None = all.
        renumbered: whether the `Adjacency` has the kept nodes only, as the training view.
        directed: whether the edges are.
    """

    rowptr: np.ndarray
    col: np.ndarray
    keep: np.ndarray | None = None
    renumbered: bool = False
    directed: bool = False

    @cached_property
    def adjacency(self) -> Adjacency:
        """The graph in memory, with the order of edges of `TextGraph.edge_index`, which decides how gradients round."""
        if self.keep is None:  # copied, because the arrays may be memory-mapped
            adjacency = Adjacency(torch.from_numpy(np.array(self.rowptr)), torch.from_numpy(np.array(self.col)))
        else:
            target = np.repeat(np.arange(len(self.keep)), np.diff(self.rowptr))
            kept = self.keep[target] & self.keep[self.col]
            edges, num_nodes = np.stack([self.col[kept], target[kept]]).astype(np.int64), len(self.keep)
            if self.renumbered:
                edges, num_nodes = (np.cumsum(self.keep) - 1)[edges], int(self.keep.sum())
            adjacency = Adjacency.from_edge_index(torch.from_numpy(edges), num_nodes)
        adjacency.by_source = not self.directed
        return adjacency

    def gcn(self) -> SparseOperator:
        return self.adjacency.gcn()

    def to(self, device: torch.device) -> Adjacency:
        return self.adjacency.to(device)


class GNN(nn.Module):
    """Any GraphGym network as the M-step calls it: (features, graph) -> logits.

    Args:
        network: called with a batch, returns (logits, labels).
        cfg: settings that a foreign network reads from GraphGym's global configuration.
    """

    def __init__(self, network: nn.Module, cfg: CfgNode) -> None:
        super().__init__()
        self.network, self.cfg = network, cfg

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:  # (N, D) -> (N, C)
        if isinstance(self.network, GraphNetwork):
            return self.network.logits(x, adjacency)
        # A new batch for every call: GraphGym's layers overwrite batch.x.
        with as_global(self.cfg):
            logits, _ = self.network(Data(x=x, edge_index=adjacency.edge_index(), num_nodes=adjacency.num_nodes))
        return logits


class LayeredGNN(GNN):
    """A `GNN` of one of our layer stacks, whose layers can be called one by one."""

    @property
    def _stack(self) -> LayerStack:
        stack = self.network.net
        assert isinstance(stack, LayerStack)
        return stack

    @property
    def num_layers(self) -> int:
        return len(self._stack.layers)

    def layer(self, index: int, x: Tensor, block: BlockAdjacency) -> Tensor:
        """Output (b, D') of layer ``index`` for the b seeds of a one-hop neighbourhood with inputs ``x`` (n, D)."""
        (one_hop,) = block.layers()
        return self._stack.layer(index, x, one_hop)


@contextmanager
def as_global(cfg: CfgNode) -> Iterator[None]:
    """Context in which GraphGym's global configuration holds the settings of ``cfg``.

    Networks of GraphGym and of its other plugins read them there, when built and when called.
    """
    from torch_geometric.graphgym.config import cfg as live

    if live is cfg:
        yield
        return
    saved = dict(live)
    live.clear()
    live.update(cfg)
    try:
        yield
    finally:
        live.clear()
        live.update(saved)


def build_gnn(cfg: CfgNode, dim_in: int, num_classes: int) -> nn.Module:
    """The network that ``model.type`` names, with one logit per class (two for C = 2).

    Its ``forward`` takes features and an `Adjacency`, or hop features if it `sees_hops`.

    Raises:
        ValueError: ``model.type``, or a layer that it asks for, is not registered.
    """
    name = cfg.model.type
    if name in NETWORKS:
        network = graphgym_network(cfg, name, dim_in, num_classes)
        if sees_hops(cfg):
            return network.net
        return (LayeredGNN if has_layers(cfg) else GNN)(network, cfg)
    try:
        with as_global(cfg):
            return GNN(network_dict[name](dim_in, num_classes), cfg)
    except KeyError as error:
        raise ValueError(f"model.type {name}: gnn.* or model.* asks for {error}, which is not registered") from error


def gnn_optimizer(cfg: CfgNode) -> Callable[[Iterable[nn.Parameter]], tuple[Any, Any]]:
    """A function: parameters -> (optimizer, learning-rate schedule counted in epochs), by ``optim.*``."""

    def make(params: Iterable[nn.Parameter]) -> tuple[Any, Any]:
        optimizer = create_optimizer(list(params), cfg.optim)
        return optimizer, create_scheduler(optimizer, cfg.optim)

    return make
