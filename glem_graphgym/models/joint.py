"""Text encoder and GNN as one module: the texts' embeddings are the GNN's node features, gradients reach both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from glem_graphgym.models.text_encoder import TextEncoder


class JointModel(nn.Module):
    """p_φ(y_n | s_V, A), where φ includes the text encoder.

    Input norm is a layer norm here: statistics over nodes would be outdated, as the embeddings change with every step.
    ``gnn`` is called with features (n, H + F) and a graph.
    """

    def __init__(self, encoder: TextEncoder, gnn: nn.Module, norm: bool = True) -> None:
        super().__init__()
        self.encoder, self.gnn = encoder, gnn
        self.norm: nn.Module = nn.LayerNorm(encoder.dim) if norm else nn.Identity()

    def node_features(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """The GNN's input, float32 (n, H + F), from text embeddings (n, H) and further features (n, F)."""
        return torch.cat([self.norm(embeddings.float()), features.float()], dim=1)

    def forward(self, embeddings: Tensor, features: Tensor, adjacency: Any) -> Tensor:
        return self.gnn(self.node_features(embeddings, features), adjacency)
