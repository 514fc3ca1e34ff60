"""Networks that GraphGym finds by name, and any of them as the GNN of our train modes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import network_dict, register_network

from glem_graphgym.models.gcn import GCN
from glem_graphgym.models.lm_head import LMHead
from glem_graphgym.models.mlp import MLP
from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.models.sage import SAGE
from glem_graphgym.models.text_encoder import load_text_encoder
from glem_graphgym.registered.language_model import TextEmbeddings, encoder_config, hardware_for
from glem_graphgym.registered.loader import tokens_of_config

# ---- GNNs as GraphGym networks ------------------------------------------------------------------------------------


class GraphNetwork(nn.Module):
    """One of our GNNs as a GraphGym network: built from ``gnn.*``, called with a batch, returns (pred, true).

    Args:
        make: the plain module's class.
        dim_in: F; dim_out: C.
    """

    def __init__(self, make: Callable[..., nn.Module], dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.net = make(
            dim_in,
            cfg.gnn.dim_inner,
            dim_out,
            cfg.gnn.layers_mp,
            dropout=cfg.gnn.dropout,
            norm=cfg.gnn.norm,
            input_dropout=cfg.gnn.input_dropout,
            residual=cfg.gnn.residual,
        )

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        adjacency = batch.adjacency if "adjacency" in batch else None
        if adjacency is None:
            adjacency = Adjacency.from_edge_index(batch.edge_index, batch.num_nodes)
        return read_out(self.net(batch.x, adjacency), batch)


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
        super().__init__(GCN, dim_in, dim_out)


@register_network("glem_sage")
class SAGENetwork(GraphNetwork):
    """Full-batch GraphSAGE with mean aggregation on sparse CSR (Hamilton et al. 2017)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(SAGE, dim_in, dim_out)


@register_network("glem_mlp")
class MLPNetwork(GraphNetwork):
    """MLP on node features; the graph is not looked at."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(MLP, dim_in, dim_out)


class Structure:
    """The graph as every GNN finds what it needs: edge_index for GraphGym's layers, sparse CSR for ours.

    Args:
        edge_index: int64 (2, E), both directions.
        num_nodes: N.
    """

    def __init__(self, edge_index: Tensor, num_nodes: int) -> None:
        self.edge_index, self.num_nodes = edge_index, num_nodes
        self.adjacency = Adjacency.from_edge_index(edge_index, num_nodes)

    def to(self, device: torch.device) -> Structure:
        if self.edge_index.device.type != torch.device(device).type:
            self.edge_index, self.adjacency = self.edge_index.to(device), self.adjacency.to(device)
        return self


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


def build_gnn(dim_in: int, num_classes: int) -> GNN:
    """The network that ``model.type`` names, with one logit a class (two for C = 2)."""
    if cfg.model.type not in network_dict:
        raise ValueError(f"model.type is '{cfg.model.type}', expected one of: {', '.join(map(str, network_dict))}")
    try:
        return GNN(network_dict[cfg.model.type](dim_in, num_classes))
    except KeyError as error:
        raise ValueError(
            f"model.type {cfg.model.type}: gnn.* or model.* asks for {error}, which is not registered"
        ) from error


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
