"""The graph that networks are tested on, and a check that every network passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

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


def assert_reset_leaves_nothing_learned(build: Callable[[], nn.Module], adjacency: Adjacency) -> None:
    """``reset_parameters`` of a used network gives what it gives of a new one, running statistics included."""

    def reset(net: nn.Module) -> dict[str, Tensor]:
        torch.manual_seed(3)
        net.reset_parameters()  # type: ignore[operator]
        return {name: value.clone() for name, value in net.state_dict().items()}

    fresh, used = reset(build()), build()
    used(torch.randn(NODES, 6), adjacency)  # moves the running statistics
    with torch.no_grad():
        for parameter in used.parameters():
            parameter.add_(1)
    again = reset(used)
    assert fresh.keys() == again.keys()
    for name, value in fresh.items():
        assert torch.equal(value, again[name]), name
