"""Networks that GraphGym finds by name, and any of them as the GNN of our train modes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import network_dict, register_network

from glem_graphgym.data.sampling import Block
from glem_graphgym.models.block import BlockAdjacency, seed_logits
from glem_graphgym.models.gamlp import GAMLP
from glem_graphgym.models.gat import GAT
from glem_graphgym.models.gcn import GCN
from glem_graphgym.models.hop_network import HopNetwork
from glem_graphgym.models.hops import propagate
from glem_graphgym.models.lm_head import LMHead
from glem_graphgym.models.mlp import MLP, LayerStack
from glem_graphgym.models.propagation import Adjacency, SparseOperator
from glem_graphgym.models.revgat import RevGAT
from glem_graphgym.models.sage import SAGE
from glem_graphgym.models.sagn import SAGN
from glem_graphgym.models.sgc import SGC
from glem_graphgym.models.sign import SIGN
from glem_graphgym.models.text_encoder import load_text_encoder
from glem_graphgym.registered.language_model import TextEmbeddings, encoder_config, hardware_for
from glem_graphgym.registered.loader import tokens_of_config

# ---- GNNs as GraphGym networks ------------------------------------------------------------------------------------


class GraphNetwork(nn.Module):
    """One of our GNNs as a GraphGym network: built from ``gnn.*``, called with a batch, returns (pred, true).

    Args:
        make: the plain module's class.
        dim_in: F; dim_out: C.
        more: arguments beside those that all of them take.
    """

    layered: ClassVar[bool] = True  # whether the plain module is a `LayerStack`
    least_layers: ClassVar[int] = 1

    def __init__(self, make: Callable[..., nn.Module], dim_in: int, dim_out: int, **more: Any) -> None:
        super().__init__()
        self.net = make(
            dim_in,
            cfg.gnn.dim_inner,
            dim_out,
            layers_mp(self.least_layers),
            dropout=cfg.gnn.dropout,
            norm=cfg.gnn.norm,
            input_dropout=cfg.gnn.input_dropout,
            **more,
        )

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        adjacency = batch.adjacency if "adjacency" in batch else None
        if adjacency is None:
            adjacency = Adjacency.from_edge_index(batch.edge_index, batch.num_nodes)
        if isinstance(adjacency, BlockAdjacency) and isinstance(self.net, LayerStack):
            return seed_logits(self.net, batch.x, adjacency), None
        return read_out(self.net(batch.x, adjacency), batch)


def layers_mp(least: int = 1) -> int:
    """``gnn.layers_mp``.

    Raises:
        ValueError: ``model.type`` needs more.
    """
    if cfg.gnn.layers_mp < least:
        raise ValueError(f"gnn.layers_mp is {cfg.gnn.layers_mp}, model.type {cfg.model.type} needs at least {least}")
    return int(cfg.gnn.layers_mp)


def read_out(logits: Tensor, batch: Any) -> tuple[Tensor, Tensor | None]:
    """(pred, true) as GraphGym's node head gives them: of the split's nodes, or of all outside of a split."""
    labels = batch.y if "y" in batch else None
    if "split" not in batch:
        return logits, labels
    mask = batch[f"{batch.split}_mask"]
    return logits[mask], None if labels is None else labels[mask]


@register_network("glem_gcn")
class GCNNetwork(GraphNetwork):
    """Full-batch GCN on sparse CSR (Kipf & Welling 2017)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(GCN, dim_in, dim_out, residual=cfg.gnn.residual, hidden_bias=cfg.gnn.hidden_bias)


@register_network("glem_sage")
class SAGENetwork(GraphNetwork):
    """Full-batch GraphSAGE with mean aggregation on sparse CSR (Hamilton et al. 2017)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(SAGE, dim_in, dim_out, residual=cfg.gnn.residual)


@register_network("glem_mlp")
class MLPNetwork(GraphNetwork):
    """MLP on node features; the graph is not looked at."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(MLP, dim_in, dim_out, residual=cfg.gnn.residual)


@register_network("glem_gat")
class GATNetwork(GraphNetwork):
    """Full-batch GAT on sparse CSR (Velickovic et al. 2018); ``gnn.dim_inner`` is the width of a head."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        g = cfg.gnn
        more = {"residual": g.residual, "heads": g.att_heads, "attention_dropout": g.attention_dropout}
        super().__init__(GAT, dim_in, dim_out, **more)


@register_network("glem_revgat")
class RevGATNetwork(GraphNetwork):
    """Grouped reversible GAT (Li et al. 2021); ``gnn.dim_inner`` is the width of a head."""

    layered, least_layers = False, 2

    def __init__(self, dim_in: int, dim_out: int) -> None:
        g = cfg.gnn
        if g.dim_inner % g.rev_groups:
            raise ValueError(
                f"gnn.dim_inner is {g.dim_inner}, expected a multiple of gnn.rev_groups, {g.rev_groups} "
                f"({cfg.model.type})"
            )
        super().__init__(
            RevGAT,
            dim_in,
            dim_out,
            heads=g.att_heads,
            group=g.rev_groups,
            edge_drop=g.edge_drop,
            attention_dropout=g.attention_dropout,
            symmetric_norm=g.symmetric_norm,
            input_norm=g.input_norm == "batch",
        )


class HopGraphNetwork(nn.Module):
    """One of our networks on hop features as a GraphGym network: propagates the batch's features, then reads hops.

    Our own train modes propagate once and train ``net`` on batches of nodes (`em.hop_step`). GraphGym's own training
    copies the graph for every step, so there it is propagated in every step too.

    Args:
        net: the plain module.
    """

    def __init__(self, net: HopNetwork) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        adjacency = Adjacency.from_edge_index(batch.edge_index, batch.num_nodes)
        return read_out(self.net(propagate(adjacency.gcn(), batch.x, cfg.gnn.hops)), batch)


def attention_over_hops() -> dict[str, Any]:
    """What SAGN and GAMLP have in common: dropouts, and the net on label hops.

    That net takes the last label hop, as published, in our train modes with label input, and is absent otherwise.
    """
    g = cfg.gnn
    return {
        "dropout": g.dropout,
        "input_dropout": g.input_dropout,
        "attention_dropout": g.attention_dropout,
        "label_hops": int(cfg.glem.label_input and cfg.train.mode != "standard"),
        "label_dropout": g.label_dropout,
    }


@register_network("glem_sgc")
class SGCNetwork(HopGraphNetwork):
    """Simplified graph convolution (Wu et al. 2019)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(SGC(dim_in, dim_out))


@register_network("glem_sign")
class SIGNNetwork(HopGraphNetwork):
    """SIGN (Frasca et al. 2020)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        g = cfg.gnn
        super().__init__(SIGN(dim_in, g.dim_inner, dim_out, g.hops, layers_mp(), g.dropout, g.input_dropout))


@register_network("glem_sagn")
class SAGNNetwork(HopGraphNetwork):
    """SAGN with SLE's label model (Sun et al. 2021)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        g = cfg.gnn
        super().__init__(
            SAGN(
                dim_in,
                g.dim_inner,
                dim_out,
                g.hops,
                layers_mp(),
                heads=g.att_heads,
                **attention_over_hops(),
            )
        )


@register_network("glem_gamlp")
class GAMLPNetwork(HopGraphNetwork):
    """GAMLP (Zhang et al. 2022), with recursive attention."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        g = cfg.gnn
        super().__init__(
            GAMLP(
                dim_in,
                g.dim_inner,
                dim_out,
                g.hops,
                residual=g.residual,
                output_layers=layers_mp(),
                activation=g.hop_activation,
                input_norm=g.input_norm == "batch",
                **attention_over_hops(),
            )
        )


class Structure:
    """The graph as every GNN finds what it needs: edge_index for GraphGym's layers, sparse CSR for ours.

    Args:
        edge_index: int64 (2, E), both directions.
        num_nodes: N.
        adjacency: the same edges where they are in that form already.
    """

    def __init__(self, edge_index: Tensor, num_nodes: int, adjacency: Adjacency | None = None) -> None:
        self.edge_index, self.num_nodes = edge_index, num_nodes
        self.adjacency = Adjacency.from_edge_index(edge_index, num_nodes) if adjacency is None else adjacency

    @classmethod
    def of_block(cls, block: Block) -> Structure:
        """A sampled neighbourhood, of which our networks give the seeds' logits alone, others those of all nodes."""
        rowptr, col, degree = (torch.from_numpy(part) for part in (block.rowptr, block.col, block.degree))
        adjacency = BlockAdjacency(rowptr, col, degree, block.ends.tolist())
        return cls(torch.from_numpy(block.edge_index()), len(block.nodes), adjacency)

    def csr(self) -> tuple[np.ndarray, np.ndarray]:
        """Row pointers (N+1,) and neighbours (E,), for a sampler."""
        return self.adjacency.rowptr.cpu().numpy(), self.adjacency.col.cpu().numpy()

    def to(self, device: torch.device) -> Structure:
        if self.edge_index.device.type != torch.device(device).type:
            self.edge_index, self.adjacency = self.edge_index.to(device), self.adjacency.to(device)
        return self


class MmapGraph:
    """The graph in arrays that may be memory-mapped, for networks on hop features that are propagated on disk.

    Whoever has the memory finds what a `Structure` has, made when it is first asked for.

    Args:
        rowptr: int64 (N+1,), col: (E,), of all N nodes.
        keep: bool (N,): only edges between nodes of the mask are there; None = all.
        make: the same as a `Structure`, of the kept nodes alone where it is what training sees.
    """

    def __init__(
        self, rowptr: np.ndarray, col: np.ndarray, keep: np.ndarray | None, make: Callable[[], Structure]
    ) -> None:
        self.rowptr, self.col, self.keep, self._make = rowptr, col, keep, make

    @cached_property
    def structure(self) -> Structure:
        return self._make()

    def csr(self) -> tuple[np.ndarray, np.ndarray]:
        """Row pointers (N+1,) and neighbours (E,), for a sampler, which knows of no mask."""
        assert self.keep is None, "neighbours are not sampled from a part of a stored graph"
        return self.rowptr, self.col

    @property
    def adjacency(self) -> Adjacency:
        return self.structure.adjacency

    @property
    def edge_index(self) -> Tensor:
        return self.structure.edge_index


def gcn_operator(structure: Structure | MmapGraph) -> SparseOperator:
    """D~^-1/2 (A+I) D~^-1/2, by which hop features are propagated (SIGN, GAMLP)."""
    return structure.adjacency.gcn()


class GNN(nn.Module):
    """Any GraphGym network (``model.type`` and ``gnn.*``) as the M-step calls it: (features, structure) -> logits.

    The network gets a new `Data` every time: GraphGym's layers write ``batch.x`` in place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, structure: Structure) -> Tensor:  # (N, D) -> (N, C)
        batch = Data(x=x, edge_index=structure.edge_index, num_nodes=structure.num_nodes)
        batch.adjacency = structure.adjacency
        logits, _ = self.network(batch)
        return logits


class LayeredGNN(GNN):
    """A `GNN` of one of our layer stacks, whose layers can be asked for one by one."""

    @property
    def _stack(self) -> LayerStack:
        stack = self.network.net
        assert isinstance(stack, LayerStack)
        return stack

    @property
    def num_layers(self) -> int:
        return len(self._stack.layers)

    def layer(self, index: int, x: Tensor, structure: Structure) -> Tensor:
        """What layer ``index`` gives the seeds of a neighbourhood of one hop, (b, D'), from ``x`` (n, D)."""
        block = structure.adjacency
        assert isinstance(block, BlockAdjacency)
        (one_hop,) = block.layers()
        return self._stack.layer(index, x, one_hop)


def has_layers() -> bool:
    """Whether `build_gnn` makes a `LayeredGNN` of the network that ``model.type`` names."""
    network = network_dict.get(cfg.model.type)
    return isinstance(network, type) and issubclass(network, GraphNetwork) and network.layered


def sees_hops() -> bool:
    """Whether ``model.type`` names a network on hop features."""
    network = network_dict.get(cfg.model.type)
    return isinstance(network, type) and issubclass(network, HopGraphNetwork)


def build_gnn(dim_in: int, num_classes: int) -> nn.Module:
    """The network that ``model.type`` names, with one logit a class (two for C = 2).

    Its ``forward`` takes features and a `Structure`, or hop features where it `sees_hops`.
    """
    if cfg.model.type not in network_dict:
        raise ValueError(f"model.type is '{cfg.model.type}', expected one of: {', '.join(map(str, network_dict))}")
    try:
        network = network_dict[cfg.model.type](dim_in, num_classes)
    except KeyError as error:
        raise ValueError(
            f"model.type {cfg.model.type}: gnn.* or model.* asks for {error}, which is not registered"
        ) from error
    if isinstance(network, HopGraphNetwork):
        return network.net
    return LayeredGNN(network) if has_layers() else GNN(network)


# ---- the language model -------------------------------------------------------------------------------------------


@register_network("glem_lm")
class LMNetwork(nn.Module):
    """The LM as a GraphGym network: texts of the split's nodes, looked up by ``batch.n_id``, to logits."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        config = encoder_config(cfg, hardware_for(cfg, "32"), cfg.lm.dropout, cfg.lm.attention_dropout)
        self.texts = TextEmbeddings(tokens_of_config(), load_text_encoder(config))
        self.head = LMHead(self.texts.encoder.dim, dim_out, cfg.lm.head_dropout)

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        nodes, labels = read_out(batch.n_id, batch)
        return self.head(self.texts(nodes)), labels
