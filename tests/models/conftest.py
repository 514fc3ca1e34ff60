"""The graph that networks are tested on, and a check that every network passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from glem_graphgym.models.propagation import Adjacency

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
