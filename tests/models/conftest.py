"""The graph that networks are tested on, and attention over its edges on dense matrices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glem_graphgym.models.propagation import Adjacency, SparseOperator

NODES = 40


@pytest.fixture
def edges() -> Tensor:
    """Directed, with a self-loop; the last three nodes have no edge."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, NODES - 3, (2, 150), generator=generator)
    return torch.cat([drawn[:, drawn[0] != drawn[1]], torch.tensor([[5], [5]])], dim=1).unique(dim=1)


@pytest.fixture
def adjacency(edges: Tensor) -> Adjacency:
    return Adjacency.from_edge_index(edges, NODES)


def dense_mask(adjacency: Adjacency, kept: Tensor | None = None) -> Tensor:
    """bool (T, N): whether node j sends to node i over a kept edge."""
    mask = torch.zeros(adjacency.num_targets, adjacency.num_nodes, dtype=torch.bool)
    row = torch.arange(adjacency.num_targets).repeat_interleave(adjacency.rowptr.diff())
    mask[row, adjacency.col.long()] = True if kept is None else kept
    return mask


def dense_attention(mask: Tensor, source: Tensor, target: Tensor | None, slope: float = 0.2) -> Tensor:
    """(H, T, N): what AttentionGraph.softmax is on a dense matrix; rows without an entry are 0."""
    scores = source.T[:, None, :] + (0 if target is None else target.T[:, :, None])
    scores = F.leaky_relu(scores.expand(-1, len(mask), -1), slope).masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=2).masked_fill(~mask, 0).nan_to_num(0)


def dense_sum(attention: Tensor, values: Tensor) -> Tensor:
    heads, _, nodes = attention.shape
    return torch.einsum("hij,jhd->ihd", attention, values.view(nodes, heads, -1)).flatten(1)


class Watched(SparseOperator):
    """Remembers how wide the operand of each product was."""

    def __init__(self, plain: SparseOperator) -> None:
        super().__init__(plain.rowptr, plain.col, plain._left, plain._right)
        self.widths: list[int] = []

    def _multiply(self, x: Tensor) -> Tensor:
        self.widths.append(x.shape[1])
        return super()._multiply(x)
