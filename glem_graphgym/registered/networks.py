"""Our networks, the language model, the text encoder and the LM head, under the names by which GraphGym finds them."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import register_head, register_network, register_node_encoder

from glem_graphgym.build.gnn import NETWORKS, graphgym_network, read_out
from glem_graphgym.build.language_model import TextEmbeddings
from glem_graphgym.models.text_encoder import LMHead

for _name in NETWORKS:
    register_network(_name, functools.partial(graphgym_network, cfg, _name))


@register_network("glem_lm")
class LMNetwork(nn.Module):
    """The LM as a GraphGym network: texts of the split's nodes, looked up by ``batch.n_id``, to logits."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.texts = TextEmbeddings.from_config(cfg)
        self.head = LMHead(self.texts.encoder.dim, dim_out, cfg.lm.head_dropout)

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        nodes, labels = read_out(batch.n_id, batch)
        return self.head(self.texts(nodes)), labels


@register_node_encoder("glem_text")
class TextNodeEncoder(nn.Module):
    """Node features of width ``emb_dim`` from the texts of the batch's nodes, looked up by ``batch.n_id``.

    A stock ``model.type: gnn`` trains end to end on text with it.
    """

    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.texts = TextEmbeddings.from_config(cfg)
        self.project = nn.Linear(self.texts.encoder.dim, emb_dim)

    def forward(self, batch: Any) -> Any:
        batch.x = self.project(self.texts(batch.n_id))
        return batch


@register_head("glem_lm_head")
class LMNodeHead(nn.Module):
    """`LMHead` on ``batch.x``, with ``lm.head_dropout``; returns (pred, true) of the split's nodes."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.head = LMHead(dim_in, dim_out, cfg.lm.head_dropout)

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        return read_out(self.head(batch.x), batch)
