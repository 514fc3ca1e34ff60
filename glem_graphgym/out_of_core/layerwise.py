"""Exact prediction of networks that are trained on sampled neighbourhoods, where the whole graph is too much at a time.

Layer after layer, each over blocks of nodes with all their neighbours: no node's layer is computed twice, and memory
holds a block. What a layer gives lies on disk until the next one has read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from glem_graphgym.data.csr import bounded_cuts
from glem_graphgym.data.reach import nodes_within
from glem_graphgym.data.sampling import ALL, Block, NeighbourSampler
from glem_graphgym.disk import new_array
from glem_graphgym.hardware import Hardware
from glem_graphgym.out_of_core.propagation import FILE_TYPES, MappedHops, file_numbers
from glem_graphgym.progress import Progress

MOST_BYTES = 1 << 30  # of a block, whatever the budget: more would hardly be faster
ROW_COPIES = 4  # of a node's features in a block: as read, on the device, multiplied, given
EDGE_BYTES = 160  # while a block is made of its edges
NODES_AT_ONCE = 1 << 20  # that are cut into blocks together


class LayerwiseInference:
    """Logits of a network as on the whole graph, within a budget of memory.

    The network has ``num_layers``, and a ``layer(index, x, structure)`` that gives the seeds of a neighbourhood of one
    hop their output, from the ``x`` (n, D) of its nodes (`LayeredGNN`).

    Args:
        rowptr: integers (N+1,), col: integers (E,), of what prediction sees; may be memory-mapped.
        of_block: a neighbourhood -> what the network takes as ``structure``.
        budget: bytes that a block may take. A node with more neighbours than that is a block of its own.
        working: folder for what layers give.
        hardware: device and precision.
    """

    def __init__(
        self,
        rowptr: np.ndarray,
        col: np.ndarray,
        of_block: Callable[[Block], Any],
        *,
        budget: int,
        working: Path,
        hardware: Hardware,
    ) -> None:
        self.rowptr, self.col, self.of_block = rowptr, col, of_block
        self.budget, self.working, self.hardware = min(budget, MOST_BYTES), working, hardware
        self.sampler = NeighbourSampler(rowptr, col, [ALL])

    def logits(
        self, model: Any, dim_in: int, rows: Callable[[np.ndarray], Tensor], nodes: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Parts of ``nodes``, int64 (n,), increasing, each with its logits (b, C), of a network in evaluation mode.

        ``rows`` gives the network's input (n, D) of some nodes; ``dim_in`` is D.
        """
        needed = [nodes]  # for each layer, the first one first, the nodes whose outputs are needed
        for _ in range(model.num_layers - 1):
            needed.insert(0, nodes_within(self.rowptr, self.col, needed[0], 1))
        width = max(dim_in, *(max(parameter.shape) for parameter in model.parameters()))  # of all that is computed
        files: list[Path] = []
        for index, of_layer in enumerate(needed[:-1]):
            files.append(self.working / f"layer_{index}.npy")
            rows = self._stored(files[-1], self._layer(model, index, width, rows, of_layer), of_layer)
            for file in files[:-1]:
                file.unlink(missing_ok=True)
        yield from self._layer(model, len(needed) - 1, width, rows, needed[-1])
        for file in files:
            file.unlink(missing_ok=True)

    def _layer(
        self, model: Any, index: int, width: int, rows: Callable[[np.ndarray], Tensor], nodes: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        rng = np.random.default_rng(0)  # which has nothing to choose
        title = f"layer {index + 1} of {model.num_layers}"
        with Progress(total=len(nodes), desc=title, unit="node", leave=False) as bar:
            for seeds in self._blocks(nodes, width):
                block = self.sampler.sample(seeds, rng)
                x = rows(block.nodes).to(self.hardware.device)
                yield seeds, model.layer(index, x, self.of_block(block).to(self.hardware.device))
                bar.update(len(seeds))

    def _blocks(self, nodes: np.ndarray, width: int) -> Iterator[np.ndarray]:
        """Parts of ``nodes`` that, with their neighbours, stay within the budget."""
        row_bytes = ROW_COPIES * 4 * width
        for start in range(0, len(nodes), NODES_AT_ONCE):
            part = nodes[start : start + NODES_AT_ONCE]
            degree = np.asarray(self.rowptr[part + 1], dtype=np.int64) - self.rowptr[part]
            sizes = (degree + 1) * row_bytes + degree * EDGE_BYTES
            yield from (part[first:end] for first, end in pairwise(bounded_cuts(sizes, self.budget)))

    def _stored(
        self, file: Path, parts: Iterator[tuple[np.ndarray, Tensor]], nodes: np.ndarray
    ) -> Callable[[np.ndarray], Tensor]:
        """A reader of rows of a layer's outputs, which are written first."""
        array, done = None, 0
        for _, out in parts:
            values = out.cpu()
            if array is None:
                self.working.mkdir(parents=True, exist_ok=True)
                array = new_array(file, FILE_TYPES[values.dtype], (1, len(nodes), values.shape[1]))
            array[0, done : done + len(values)] = file_numbers(values)
            done += len(values)
        assert array is not None, "a prediction of no nodes"
        hidden = MappedHops(array, None if len(nodes) == len(self.rowptr) - 1 else nodes)
        return lambda wanted: hidden.read(wanted)[0]
