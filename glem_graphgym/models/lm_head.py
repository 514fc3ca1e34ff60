"""The LM head: text embedding -> class logits."""

from __future__ import annotations

from torch import Tensor, nn

from glem_graphgym.models.dropout import Dropout


class LMHead(nn.Module):
    """Dropout and a linear map, the classifier of q_θ(y_n | s_n).

    Args:
        dim: H, width of the text embedding.
        num_classes: C.
        dropout: share of embedding entries dropped in training, 0-1.
    """

    def __init__(self, dim: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(dim, num_classes)

    def forward(self, embedding: Tensor) -> Tensor:  # (B, H) -> (B, C)
        return self.linear(self.dropout(embedding))
