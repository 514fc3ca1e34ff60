from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glem_graphgym.data.sampling import ALL, Block, NeighbourSampler
from glem_graphgym.data.text_graph import csr_from_edges

N = 60
RNG = np.random.default_rng(0)
# Node 0 is a hub, the last five nodes have no neighbours.
SOURCE = np.concatenate([RNG.integers(0, N - 5, 150), np.zeros(40, dtype=np.int64)])
TARGET = np.concatenate([RNG.integers(0, N - 5, 150), np.arange(1, 41)])
ROWPTR, COL = csr_from_edges(SOURCE, TARGET, N)
NEIGHBOURS = [set(COL[ROWPTR[node] : ROWPTR[node + 1]].tolist()) for node in range(N)]


def sampled(seeds: list[int], fan_outs: list[int], seed: int = 0) -> Block:
    return NeighbourSampler(ROWPTR, COL, fan_outs).sample(np.array(seeds, dtype=np.int64), np.random.default_rng(seed))


def drawn(block: Block) -> dict[int, list[int]]:
    """Node -> its drawn neighbours, in the graph's indices, read off the edges."""
    found: dict[int, list[int]] = {int(node): [] for node in block.nodes}
    for neighbour, target in block.edge_index().T:
        found[int(block.nodes[target])].append(int(block.nodes[neighbour]))
    return found


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, N - 1), unique=True, max_size=12),
    st.lists(st.sampled_from([1, 2, 3, 10, 100, ALL]), min_size=1, max_size=3),
    st.integers(0, 99),
)
def test_a_block_against_the_graph(seeds: list[int], fan_outs: list[int], seed: int) -> None:
    block = sampled(seeds, fan_outs, seed)
    assert block.nodes[: len(seeds)].tolist() == seeds
    assert block.num_seeds == len(seeds)
    assert len(np.unique(block.nodes)) == len(block.nodes) == block.ends[-1] == len(block.rowptr) - 1
    assert block.rowptr.dtype == block.col.dtype == block.nodes.dtype == np.int64
    assert block.rowptr[-1] == len(block.col)
    assert all((np.diff(block.col[first:end]) > 0).all() for first, end in pairwise(block.rowptr))
    hop_of = np.searchsorted(block.ends, np.arange(len(block.nodes)), side="right")
    for place, (node, neighbours) in enumerate(drawn(block).items()):
        assert set(neighbours) <= NEIGHBOURS[node]
        assert len(set(neighbours)) == len(neighbours)
        fan_out = ([*fan_outs, 0])[hop_of[place]]
        assert len(neighbours) == (len(NEIGHBOURS[node]) if fan_out == ALL else min(fan_out, len(NEIGHBOURS[node])))
    # Whatever is not a seed is there because it was drawn, by a node one hop nearer.
    reached: set[int] = set()
    for hop in range(len(fan_outs)):
        inner = block.nodes[: block.ends[hop]]
        reached = set(inner.tolist()) | {other for node in inner for other in drawn(block)[int(node)]}
        assert set(block.nodes[: block.ends[hop + 1]].tolist()) == reached
    assert block.degree.tolist() == [len(NEIGHBOURS[node]) for node in block.nodes]


def test_the_same_generator_draws_the_same_and_another_does_not() -> None:
    one, same, other = sampled([0, 1, 2], [4, 3], 5), sampled([0, 1, 2], [4, 3], 5), sampled([0, 1, 2], [4, 3], 6)
    assert np.array_equal(one.nodes, same.nodes)
    assert np.array_equal(one.col, same.col)
    assert drawn(one) != drawn(other)


def test_nodes_without_neighbours_and_no_seeds_at_all() -> None:
    block = sampled([N - 1, N - 2], [3, ALL])
    assert block.nodes.tolist() == [N - 1, N - 2]
    assert block.ends.tolist() == [2, 2, 2]
    assert block.edge_index().shape == (2, 0)
    assert len(sampled([], [3, 2]).nodes) == 0


@pytest.mark.parametrize("fan_out", [1, 3, 7])
def test_all_subsets_of_neighbours_are_equally_probable(fan_out: int) -> None:
    """Each neighbour of a hub, and each pair of them, comes as often as it should, within four deviations."""
    size, hubs, draws = 9, 700, 6000
    rowptr, col = csr_from_edges(np.repeat(np.arange(hubs), size), hubs + np.tile(np.arange(size), hubs), hubs + size)
    sampler, rng = NeighbourSampler(rowptr, col, [fan_out]), np.random.default_rng(1)
    chosen = np.empty((0, size), dtype=np.int64)
    for count in [1] * 400 + [hubs] * 8:  # one hub at a time, and many
        block = sampler.sample(np.arange(count), rng)
        leaf, hub = block.edge_index()
        chosen = np.concatenate([chosen, np.zeros((count, size), dtype=np.int64)])
        chosen[hub - count, block.nodes[leaf] - hubs] = 1
    assert len(chosen) == draws and (chosen.sum(1) == fan_out).all()
    together = chosen.T @ chosen / draws
    single, pair = fan_out / size, fan_out * (fan_out - 1) / (size * (size - 1))
    wanted = np.where(np.eye(size, dtype=bool), single, pair)
    assert (np.abs(together - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / draws) + 1e-9).all()


def test_draws_of_several_nodes_are_independent() -> None:
    """Two hubs with the same neighbours do not draw the same one more often than by chance."""
    size, draws = 8, 3000
    leaves = np.arange(2, size + 2)
    rowptr, col = csr_from_edges(np.repeat([0, 1], size), np.tile(leaves, 2), size + 2)
    sampler, rng = NeighbourSampler(rowptr, col, [1]), np.random.default_rng(2)
    same = 0
    for _ in range(draws):
        block = sampler.sample(np.array([0, 1]), rng)
        same += int(block.col[0] == block.col[1])
    assert abs(same / draws - 1 / size) < 4 * np.sqrt(1 / size * (1 - 1 / size) / draws)


def test_memory_mapped_arrays_give_the_same(tmp_path: Path) -> None:
    np.save(tmp_path / "rowptr.npy", ROWPTR)
    np.save(tmp_path / "col.npy", COL)
    arrays = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("rowptr", "col")]
    block = NeighbourSampler(arrays[0], arrays[1], [4, 3]).sample(np.array([0, 9]), np.random.default_rng(3))
    usual = sampled([0, 9], [4, 3], 3)
    assert np.array_equal(block.nodes, usual.nodes)
    assert np.array_equal(block.col, usual.col)
    assert type(block.nodes) is type(block.col) is type(block.degree) is np.ndarray


@pytest.mark.parametrize("fan_outs", [[], [0], [3, -2]])
def test_fan_outs_that_mean_nothing(fan_outs: list[int]) -> None:
    with pytest.raises(ValueError, match="expected at least one, each at least 1, or -1 for all"):
        NeighbourSampler(ROWPTR, COL, fan_outs)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [([3, 1, 3], "node 3 is a seed more than once"), ([N], f"run from {N} to {N}, expected 0"), ([-1, 2], "from -1")],
)
def test_seeds_that_are_none(seeds: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampled(seeds, [2])
