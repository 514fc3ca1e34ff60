"""The LM head as a GraphGym head (``gnn.head: glem_lm_head``): dropout and one linear layer on node embeddings."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import register_head

from glem_graphgym.build.gnn import read_out
from glem_graphgym.models.text_encoder import LMHead


@register_head("glem_lm_head")
class LMNodeHead(nn.Module):
    """`LMHead` on ``batch.x``, with ``lm.head_dropout``; returns (pred, true) of the split's nodes."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.head = LMHead(dim_in, dim_out, cfg.lm.head_dropout)

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        return read_out(self.head(batch.x), batch)
