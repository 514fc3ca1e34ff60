"""Graphs that `dgl.save_graphs` wrote, read without DGL."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from glem_graphgym.data.errors import DataError, reading_data

# First bytes of a file and of the parts nested in it, little-endian uint64 (src/graph/serialize of DGL).
FILE = 0xDD2E4FF046B4A13F
GRAPH, META_GRAPH, RELATION = 0xDD589FBE35224ABF, 0xDD3C5FFE20046ABF, 0xDD2E60F0F6B4A127
COO_MATRIX, CSR_MATRIX, ARRAY = 0xDD61FFD305DFF127, 0xDD6CD31205DFF127, 0xDD5E40F096B4A13F
HEADER_BYTES = 4096
COO, CSR, CSC = 1, 2, 4  # bits of the code for the formats that edges are stored in
OLD_CODES = {1: COO, 2: CSR, 3: CSC}  # code in older files -> format
REMEDY = (
    "download it again, or save it where DGL is: g = dgl.load_graphs(file)[0][0]; "
    "torch.save({'edge_index': torch.stack(g.edges()), **g.ndata}, 'graph.pt')"
)


def is_dgl_file(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8) == FILE.to_bytes(8, "little")


def read_dgl_file(path: Path) -> dict[str, np.ndarray]:
    """Read the one graph in a file: ``edge_index``, int64 (2, E), and its node data by name, (N, …) each.

    Raises:
        DataError: the file has several graphs, node types or edge types, is damaged, or is from DGL before 0.5.
    """
    with reading_data(f"{path} is damaged or not of DGL 0.5 to 2", REMEDY):
        return _Stream(path).graph()


class _Stream:
    """Reads the parts of a file one after the other; each method reads one and moves on."""

    def __init__(self, path: Path) -> None:
        self.path, self.content, self.position = path, memoryview(path.read_bytes()), 0

    def graph(self) -> dict[str, np.ndarray]:
        _, version, _, graphs = (self.number() for _ in range(4))
        if version != 2:
            raise ValueError(f"version {version} of the format, expected 2")
        self.position = HEADER_BYTES
        self.position = self.number()  # skips the graphs' labels
        self.expect_magic(GRAPH)
        self.meta_graph()
        if graphs != 1 or (relations := self.number()) != 1:
            contents = f"{graphs} graphs" if graphs != 1 else f"a graph with {relations} types of edges"
            raise DataError(
                f"{self.path} holds {contents}, expected one graph with one type of edges; save it by itself"
            )
        edges = self.relation()
        for _ in range(self.number()):
            self.number()  # number of nodes of a type
        node_data = [self.named_arrays() for _ in range(self.number())]
        if len(node_data) != 1:
            raise DataError(
                f"{self.path} holds {len(node_data)} types of nodes, expected one; save a homogeneous graph"
            )
        return {**node_data[0], "edge_index": edges}

    def number(self) -> int:
        (value,) = struct.unpack_from("<Q", self.content, self.position)
        self.position += 8
        return int(value)

    def expect_magic(self, magic: int) -> None:
        if (value := self.number()) != magic:
            raise ValueError(f"{value:#x} at byte {self.position - 8}, expected {magic:#x}")

    def array(self) -> np.ndarray:
        self.expect_magic(ARRAY)
        _, _, dimensions, kind, bits, _ = struct.unpack_from("<QQIBBH", self.content, self.position)
        self.position += struct.calcsize("<QQIBBH")
        shape = [self.number() for _ in range(dimensions)]
        size, dtype = self.number(), np.dtype(f"<{'iuf'[kind]}{bits // 8}")
        if size != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{size} bytes for {dtype} {shape} at byte {self.position}")
        values = np.frombuffer(self.content, dtype, math.prod(shape), self.position).reshape(shape)
        self.position += size
        return values

    def named_arrays(self) -> dict[str, np.ndarray]:
        arrays = {}
        for _ in range(self.number()):
            length = self.number()
            name = self.content[self.position : self.position + length].tobytes().decode()
            self.position += length
            arrays[name] = self.array()
        return arrays

    def relation(self) -> np.ndarray:
        """Edges of one type, int64 (2, E); the file has them in one or more formats."""
        self.expect_magic(RELATION)
        code, _ = self.number(), self.number()
        formats = code & 0xFFFFFFFF if code >> 32 else OLD_CODES[code]
        ends: list[tuple[np.ndarray, np.ndarray]] = []  # sources and targets, per format
        for bit, read in ((COO, self.coo), (CSR, self.csr), (CSC, lambda: self.csr()[::-1])):
            if formats & bit:
                self.meta_graph()
                ends.append(read())
        return np.stack(ends[0]).astype(np.int64)

    def meta_graph(self) -> None:
        """Skip the metagraph (the graph of node types)."""
        self.expect_magic(META_GRAPH)
        self.csr()

    def coo(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the entries of a sparse matrix, (E,) each."""
        self.expect_magic(COO_MATRIX)
        self.position += 16  # the matrix's numbers of rows and columns
        rows, columns, _ = self.array(), self.array(), self.array()
        self.position += 2  # whether rows and columns are sorted
        return rows, columns

    def csr(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the entries of a CSR matrix, (E,) each."""
        self.expect_magic(CSR_MATRIX)
        self.position += 16  # the matrix's numbers of rows and columns
        indptr, columns, _ = self.array(), self.array(), self.array()
        self.position += 1  # whether columns are sorted
        counts = indptr[1:].astype(np.int64) - indptr[:-1].astype(np.int64)
        if (counts < 0).any() or counts.sum() != len(columns):
            raise ValueError(f"{counts.sum()} entries in the rows of a matrix with {len(columns)}")
        return np.repeat(np.arange(len(counts)), counts), columns
