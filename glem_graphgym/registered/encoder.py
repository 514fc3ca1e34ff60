"""The text encoder as a GraphGym node encoder: a stock ``model.type: gnn`` trains end to end on text with it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import register_node_encoder

from glem_graphgym.build.language_model import TextEmbeddings


@register_node_encoder("glem_text")
class TextNodeEncoder(nn.Module):
    """Node features from text: encodes the texts of the batch's nodes, looked up by ``batch.n_id``.

    Args:
        emb_dim: width that GraphGym expects of a node encoder (``gnn.dim_inner``).
    """

    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.texts = TextEmbeddings.from_config(cfg)
        self.project = nn.Linear(self.texts.encoder.dim, emb_dim)

    def forward(self, batch: Any) -> Any:
        batch.x = self.project(self.texts(batch.n_id))
        return batch
