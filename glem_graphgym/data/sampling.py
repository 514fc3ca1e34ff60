"""Neighbourhood sampling directly from a graph's CSR arrays, which may be memory-mapped.

PyG's samplers need pyg-lib, which has no wheels on the package index. This one loops over hops and over the neighbours
to draw, never over nodes or edges; its cost does not grow with the graph or with the degrees of hubs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

ALL = -1  # as a fan-out: every neighbour


@dataclass(frozen=True)
class Block:
    """The sampled neighbourhood of some nodes, the seeds: n nodes, with local indices 0..n-1, and e edges.

    Nodes added in the last hop have no drawn neighbours. Row = target, as in `models.propagation.Adjacency`.
    """

    nodes: np.ndarray  # int64 (n,), indices in the graph: seeds in their order, then each hop's new nodes, sorted
    ends: np.ndarray  # int64 (hops + 1,), number of nodes within 0, 1, … hops of the seeds
    rowptr: np.ndarray  # int64 (n+1,), where each node's drawn neighbours begin in col
    col: np.ndarray  # int64 (e,), local indices of the neighbours, increasing within a row
    degree: np.ndarray  # int64 (n,), number of neighbours of each node in the graph

    @property
    def num_seeds(self) -> int:
        return int(self.ends[0])

    def edge_index(self) -> np.ndarray:
        """Edges int64 (2, e) in PyG's convention: messages go from row 0, the drawn neighbours, to row 1."""
        return np.stack([self.col, np.repeat(np.arange(len(self.nodes)), np.diff(self.rowptr))])


class NeighbourSampler:
    """Samples neighbourhoods of several hops, uniformly without replacement (GraphSAGE, Hamilton et al. 2017).

    Args:
        rowptr, col: CSR row pointers, integers (N+1,), and neighbours, integers (E,); no duplicates within a row.
        fan_outs: number of neighbours to draw per seed, then per new node of the first hop, and so on; `ALL` (-1) =
            every neighbour. A draw takes time quadratic in the fan-out.

    Raises:
        ValueError: no fan-out, or one that is neither positive nor `ALL`.
    """

    def __init__(self, rowptr: np.ndarray, col: np.ndarray, fan_outs: Sequence[int]) -> None:
        if not len(fan_outs) or any(fan_out < 1 and fan_out != ALL for fan_out in fan_outs):
            raise ValueError(f"fan-outs are {list(fan_outs)}, expected at least one, each at least 1, or {ALL} for all")
        self.rowptr, self.col, self.fan_outs = rowptr, col, tuple(fan_outs)

    def sample(self, seeds: np.ndarray, rng: np.random.Generator) -> Block:
        """Sample the neighbourhood of ``seeds``, int64 (b,); a node reached several times draws its neighbours once.

        Raises:
            ValueError: a seed occurs twice, or is no node of the graph.
        """
        nodes = np.asarray(seeds, dtype=np.int64)
        visited = np.sort(nodes)
        if (np.diff(visited) == 0).any():
            raise ValueError(f"node {visited[:-1][np.diff(visited) == 0][0]} is a seed more than once")
        if len(visited) and (visited[0] < 0 or visited[-1] >= len(self.rowptr) - 1):
            raise ValueError(f"seeds run from {visited[0]} to {visited[-1]}, expected 0 to {len(self.rowptr) - 2}")
        hop_nodes, counts, drawn = [nodes], [], []
        for fan_out in self.fan_outs:
            count, neighbours = self._draw(hop_nodes[-1], fan_out, rng)
            visited, new = _union_and_new(visited, neighbours)
            hop_nodes.append(new)
            counts.append(count)
            drawn.append(neighbours)
        nodes = np.concatenate(hop_nodes)
        ends = np.cumsum([len(new) for new in hop_nodes])
        degree = np.asarray(self.rowptr[nodes + 1], dtype=np.int64) - self.rowptr[nodes]
        rowptr = np.zeros(len(nodes) + 1, dtype=np.int64)
        np.cumsum(np.concatenate([*counts, np.zeros(len(hop_nodes[-1]), dtype=np.int64)]), out=rowptr[1:])
        local = _positions(nodes, np.concatenate(drawn))
        row = np.repeat(np.arange(len(nodes)), np.diff(rowptr))
        return Block(nodes, ends, rowptr, _sorted(row * len(nodes) + local)[0] % max(len(nodes), 1), degree)

    def _draw(self, nodes: np.ndarray, fan_out: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw neighbours of ``nodes``: the number for each node, int64 (b,), and the neighbours, node after node."""
        first = np.asarray(self.rowptr[nodes], dtype=np.int64)
        degree = self.rowptr[nodes + 1] - first
        count = degree if fan_out == ALL else np.minimum(degree, fan_out)
        start = np.cumsum(count) - count
        # Positions in `col`: each node's first entries, replaced by drawn ones if it has more than it needs.
        position = np.arange(count.sum()) + np.repeat(first - start, count)
        choice = np.flatnonzero(degree > count)
        if len(choice):
            picked = first[choice, None] + _subsets(degree[choice], fan_out, rng)
            position[start[choice, None] + np.arange(fan_out)] = picked
        return count, np.asarray(self.col[position], dtype=np.int64)


def _union_and_new(visited: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct numbers of ``visited`` and ``values`` (all at least 0), and those not ``visited``; both sorted."""
    numbers, order = _sorted(np.concatenate([visited, values]))
    is_first = np.diff(numbers, prepend=-1) > 0
    return numbers[is_first], numbers[is_first & (order >= len(visited))]


def _positions(distinct: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Position of each of the ``values`` among the ``distinct`` numbers, int64 (v,); all numbers are at least 0."""
    numbers, order = _sorted(np.concatenate([distinct, values]))
    is_first = np.diff(numbers, prepend=-1) > 0  # the distinct number: a stable sort puts it before the equal values
    positions = np.empty_like(order)
    positions[order] = order[is_first][np.cumsum(is_first) - 1]
    return positions[len(distinct) :]


def _sorted(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stable sort and argsort; torch's radix sort is four times as fast as numpy's sort."""
    values, order = torch.from_numpy(numbers).sort(stable=True)
    return values.numpy(), order.numpy()


def _subsets(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """A uniform subset of 0..size-1 for each of ``sizes`` (above ``count``), by Floyd's algorithm: int64 (b, count).

    Bentley and Floyd, "A sample of brilliance", 1987.
    """
    chosen = np.full((len(sizes), count), -1, dtype=np.int64)
    for drawn in range(count):
        last = sizes - count + drawn
        candidate = rng.integers(0, last + 1)
        taken = (chosen[:, :drawn] == candidate[:, None]).any(1)
        chosen[:, drawn] = np.where(taken, last, candidate)
    return chosen
