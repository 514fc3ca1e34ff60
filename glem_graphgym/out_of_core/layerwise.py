"""Exact layer-wise inference of networks trained on sampled neighbourhoods, for graphs that exceed memory.

Each layer runs over blocks of nodes with all their neighbours: every node is computed once per layer, and memory holds
one block. A layer's outputs are on disk until the next layer has read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from glem_graphgym.data.csr import bounded_cuts, nodes_within
from glem_graphgym.data.sampling import ALL, NeighbourSampler
from glem_graphgym.disk import new_array
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.block import BlockAdjacency
from glem_graphgym.out_of_core.propagation import FILE_TYPES, MappedHops, file_numbers
from glem_graphgym.progress import Progress

MOST_BYTES = 1 << 30  # per block, whatever the budget: larger blocks would hardly be faster
ROW_COPIES = 4  # copies of a node's features in a block: as read, on the device, transformed, output
EDGE_BYTES = 160  # per edge while a block is built
NODES_AT_ONCE = 1 << 20  # nodes that are divided into blocks at a time


class LayerwiseInference:
    """Full-batch logits of a network, computed within a memory budget.

    The network has ``num_layers`` and ``layer(index, x, block)``, which maps ``x`` (n, D) of the nodes of a one-hop
    neighbourhood to the outputs of its seeds (`LayeredGNN`).

    Args:
        rowptr, col: CSR of the graph that prediction sees, integers (N+1,) and (E,); may be memory-mapped.
        budget: bytes per block. A node with more neighbours than fit is a block of its own.
        working: folder for the layers' outputs.
        hardware: device and precision.
    """

    def __init__(
        self,
        rowptr: np.ndarray,
        col: np.ndarray,
        *,
        budget: int,
        working: Path,
        hardware: Hardware,
    ) -> None:
        self.rowptr, self.col = rowptr, col
        self.budget, self.working, self.hardware = min(budget, MOST_BYTES), working, hardware
        self.sampler = NeighbourSampler(rowptr, col, [ALL])

    def logits(
        self, model: Any, dim_in: int, rows: Callable[[np.ndarray], Tensor], nodes: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield parts of ``nodes``, int64 (n,), increasing, each with its logits (b, C).

        ``model`` must be in evaluation mode; ``rows`` returns its inputs (b, D) for given nodes; ``dim_in`` is D.
        """
        needed = [nodes]  # per layer, from the first: the nodes whose outputs are needed
        for _ in range(model.num_layers - 1):
            needed.insert(0, nodes_within(self.rowptr, self.col, needed[0], 1))
        width = max(dim_in, *(max(parameter.shape) for parameter in model.parameters()))  # of the widest tensor
        previous = None
        for index, layer_nodes in enumerate(needed[:-1]):
            file = self.working / f"layer_{index}.npy"
            rows = self._store_outputs(file, self._layer(model, index, width, rows, layer_nodes), layer_nodes)
            if previous is not None:
                previous.unlink(missing_ok=True)
            previous = file
        yield from self._layer(model, len(needed) - 1, width, rows, needed[-1])
        if previous is not None:
            previous.unlink(missing_ok=True)

    def _layer(
        self, model: Any, index: int, width: int, rows: Callable[[np.ndarray], Tensor], nodes: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        rng = np.random.default_rng(0)  # makes no choice: all neighbours are taken
        title = f"layer {index + 1} of {model.num_layers}"
        with Progress(total=len(nodes), desc=title, unit="node", leave=False) as bar:
            for seeds in self._blocks(nodes, width):
                block = self.sampler.sample(seeds, rng)
                x = rows(block.nodes).to(self.hardware.device)
                yield seeds, model.layer(index, x, BlockAdjacency.of(block).to(self.hardware.device))
                bar.update(len(seeds))

    def _blocks(self, nodes: np.ndarray, width: int) -> Iterator[np.ndarray]:
        """Parts of ``nodes`` that, with their neighbours, stay within the budget."""
        row_bytes = ROW_COPIES * 4 * width
        for start in range(0, len(nodes), NODES_AT_ONCE):
            chunk = nodes[start : start + NODES_AT_ONCE]
            degree = np.asarray(self.rowptr[chunk + 1], dtype=np.int64) - self.rowptr[chunk]
            sizes = (degree + 1) * row_bytes + degree * EDGE_BYTES
            yield from (chunk[first:end] for first, end in pairwise(bounded_cuts(sizes, self.budget)))

    def _store_outputs(
        self, file: Path, outputs: Iterator[tuple[np.ndarray, Tensor]], nodes: np.ndarray
    ) -> Callable[[np.ndarray], Tensor]:
        """Write a layer's outputs to ``file``; return a function that reads those of given nodes."""
        array, num_written = None, 0
        for _, out in outputs:
            values = out.cpu()
            if array is None:
                self.working.mkdir(parents=True, exist_ok=True)
                array = new_array(file, FILE_TYPES[values.dtype], (1, len(nodes), values.shape[1]))
            array[0, num_written : num_written + len(values)] = file_numbers(values)
            num_written += len(values)
        assert array is not None, "a prediction of no nodes"
        hidden = MappedHops(array, None if len(nodes) == len(self.rowptr) - 1 else nodes)
        return lambda row_nodes: hidden.read(row_nodes)[0]
