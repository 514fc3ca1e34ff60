"""Our networks, and the language model, as GraphGym networks: ``model.type`` finds them by name."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import register_network

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
