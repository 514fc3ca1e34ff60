"""The text encoder as a GraphGym node encoder: a stock ``model.type: gnn`` trains end to end on text with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import register_node_encoder

from glem_graphgym.models.text_encoder import load_text_encoder
from glem_graphgym.registered.language_model import encoder_config, hardware_for
from glem_graphgym.registered.loader import tokens_of_config


@register_node_encoder("glem_text")
class TextNodeEncoder(nn.Module):
    """Node features from text: encodes the texts of the batch's nodes, looked up by ``batch.n_id``.

    Args:
        emb_dim: width that GraphGym expects of a node encoder (``gnn.dim_inner``).
    """

    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.tokens = tokens_of_config()
        hardware = hardware_for(cfg, "32")
        config = encoder_config(cfg, self.tokens, hardware, cfg.lm.dropout, cfg.lm.attention_dropout)
        self.encoder = load_text_encoder(config)
        self.project = nn.Linear(self.encoder.dim, emb_dim)

    def forward(self, batch: Any) -> Any:
        ids, mask = self.tokens.pad(batch.n_id.cpu().numpy())
        device = self.project.weight.device
        batch.x = self.project(self.encoder(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)))
        return batch
