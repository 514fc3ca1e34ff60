"""Nodes within some hops, against a search node by node."""

from __future__ import annotations

import numpy as np
import pytest

from glem_graphgym.data.csr import csr_from_edges, nodes_within

NODES = 80
RNG = np.random.default_rng(0)
ROWPTR, COL = csr_from_edges(RNG.integers(0, NODES - 4, 70), RNG.integers(0, NODES - 4, 70), NODES)


def by_hand(start: set[int], hops: int) -> list[int]:
    reached = set(start)
    for _ in range(hops):
        reached |= {int(other) for node in reached for other in COL[ROWPTR[node] : ROWPTR[node + 1]]}
    return sorted(reached)


@pytest.mark.parametrize("hops", range(6))
@pytest.mark.parametrize("entries", [1, 7, 1 << 20])
def test_nodes_within_some_hops(hops: int, entries: int) -> None:
    for start in ([3], [0, 40, 79], [79, 78], []):
        found = nodes_within(ROWPTR, COL, np.array(start, dtype=np.int64), hops, entries_at_once=entries)
        assert found.tolist() == by_hand(set(start), hops)
    assert 1 < len(by_hand({3}, 2)) < len(by_hand({3}, 4)) < NODES  # so there is something to get wrong
