"""Networks, language model, text encoder and LM head of this package under their GraphGym names."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.models.layer import LayerConfig
from torch_geometric.graphgym.register import register_head, register_layer, register_network, register_node_encoder

from glem_graphgym.build.gnn import NETWORKS, graphgym_network, read_out
from glem_graphgym.build.language_model import TextEmbeddings
from glem_graphgym.models.text_encoder import LMHead

for _name in NETWORKS:
    register_network(_name, functools.partial(graphgym_network, cfg, _name))


@register_network("glem_lm")
class LMNetwork(nn.Module):
    """The LM as a GraphGym network: logits of the split's nodes from their texts, looked up by ``batch.n_id``."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.texts = TextEmbeddings(cfg)
        self.head = LMHead(self.texts.encoder.dim, dim_out, cfg.lm.head_dropout)

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        nodes, labels = read_out(batch.n_id, batch)
        return self.head(self.texts(nodes)), labels


@register_node_encoder("glem_text")
class TextNodeEncoder(nn.Module):
    """Node features of width ``emb_dim`` from the texts of the batch's nodes, looked up by ``batch.n_id``.

    With it, GraphGym's stock ``model.type: gnn`` trains end to end on text.
    """

    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.texts = TextEmbeddings(cfg)
        self.project = nn.Linear(self.texts.encoder.dim, emb_dim)

    def forward(self, batch: Any) -> Any:
        batch.x = self.project(self.texts(batch.n_id))
        return batch


@register_network("polynormer")
class PolynormerNetwork(nn.Module):
    """Polynormer (Deng et al. 2024), in PyG's implementation with one head.

    For ``gnn.local_epochs`` training passes its local layers run alone, then with global attention on top.
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        from torch_geometric.nn.models import Polynormer

        gnn = cfg.gnn
        depths = {"local_layers": gnn.layers_mp, "global_layers": gnn.global_layers}
        dropouts = {"in_dropout": gnn.input_dropout, "dropout": gnn.dropout, "global_dropout": gnn.dropout}
        self.net = Polynormer(dim_in, gnn.dim_inner, dim_out, **depths, **dropouts, post_bn=gnn.norm == "batch")
        self.local_epochs = gnn.local_epochs
        self.passes: Tensor
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))  # saved with the weights

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        if self.training and torch.is_grad_enabled():
            self.passes += 1
        self.net._global = bool(self.passes > self.local_epochs)
        graph = torch.zeros(batch.num_nodes, dtype=torch.int64, device=batch.x.device)
        return read_out(self.net(batch.x, batch.edge_index, graph), batch)


@register_layer("gpsconv")
class GPSLayer(nn.Module):
    """A layer of GraphGPS (Rampášek et al. 2022): GCN and, in parallel, global attention in linear time (Performer).

    Its output is as wide as its input, so ``gnn.layers_pre_mp`` must first bring features to ``gnn.dim_inner``.
    """

    def __init__(self, layer_config: LayerConfig, **_: Any) -> None:
        super().__init__()
        from torch_geometric.nn import GCNConv, GPSConv

        width, dim_out = layer_config.dim_in, layer_config.dim_out
        if width != dim_out or width % cfg.gnn.att_heads:
            raise ValueError(
                f"gnn.layer_type gpsconv from width {width} to {dim_out} with gnn.att_heads {cfg.gnn.att_heads}: "
                "expected one width, a multiple of the heads; set gnn.layers_pre_mp to 1 and gnn.stage_type to stack"
            )
        attention = {"heads": cfg.gnn.att_heads, "dropout": cfg.gnn.dropout, "attn_type": "performer"}
        self.model = GPSConv(width, GCNConv(width, width), **attention)

    def forward(self, batch: Any) -> Any:
        batch.x = self.model(batch.x, batch.edge_index)
        return batch


@register_head("glem_lm_head")
class LMNodeHead(nn.Module):
    """`LMHead` on ``batch.x``, with ``lm.head_dropout``; returns (pred, true) of the split's nodes."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.head = LMHead(dim_in, dim_out, cfg.lm.head_dropout)

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        return read_out(self.head(batch.x), batch)
