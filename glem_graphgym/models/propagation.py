"""Sparse propagation over a graph: constant operators times dense node features.

A product is one `embedding_bag`: a row sums the weighted features of its neighbours as a bag sums weighted
word embeddings. On CPU that kernel is about three times as fast as torch's CSR product (MKL), and it supports
bfloat16, which MKL does not. The backward pass is the same product with the transpose, made once and cached.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing from Python 3.11 on

MAX_CACHED_BYTES = 1 << 30  # the largest input whose product is cached
SPLIT_ON, PIECE = ("cuda",), 128  # on these devices, longer rows are summed in pieces of that many entries
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def mark_constant(x: Tensor) -> Tensor:
    """Mark a tensor that stays the same in every epoch: its product with an operator is computed once and cached.

    The mark is explicit, because if uses were counted, a network's products would depend on the past, and a resumed
    stage would round differently from one that was not interrupted.
    """
    x.is_constant = True  # type: ignore[attr-defined]
    return x


def working_type(x: Tensor) -> torch.dtype:
    """Autocast's type if it is enabled on the device of ``x``, else the type of ``x``."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def cached_operator(make: Callable[[Any], SparseOperator]) -> Callable[[Any], SparseOperator]:
    """Cache the operator that a method of `Adjacency` makes on its first call."""

    @functools.wraps(make)
    def operator(self: Adjacency) -> SparseOperator:
        if make.__name__ not in self.derived:
            self.derived[make.__name__] = make(self)
        return self.derived[make.__name__]

    return operator


class Adjacency:
    """The adjacency matrix A (T x N) of a graph in CSR form, and the propagation operators made of it. Immutable.

    Row i lists the nodes that node i receives messages from; in PyG's terms row = target, column = source. The targets
    are the first T of the N nodes; in a whole graph T = N.

    Args:
        rowptr: int64 (T+1,), where each row begins in ``col``; from 0 to nnz.
        col: int32 or int64 (nnz,), column indices, strictly increasing within a row.
        num_nodes: N, at least T; None = T.

    Attributes:
        rowptr, col: both in int32 if it suffices, else int64.
        derived: cache of operators and attention graphs made of it.
    """

    is_reused = True  # for many steps, unlike a sampled neighbourhood
    by_source = False  # for symmetric matrices: whether `edge_index` is ordered by source

    def __init__(self, rowptr: Tensor, col: Tensor, num_nodes: int | None = None) -> None:
        self.num_nodes = len(rowptr) - 1 if num_nodes is None else num_nodes
        # embedding_bag needs both in one type; 32 bits halve the memory and cost no time.
        index_type = torch.int32 if max(self.num_nodes, len(col)) < 2**31 else torch.int64
        self.rowptr, self.col = rowptr.to(index_type), col.to(index_type)
        self.derived: dict[Any, Any] = {}

    @classmethod
    def from_edge_index(cls, edge_index: Tensor, num_nodes: int) -> Adjacency:
        """The matrix of PyG's ``edge_index``, int64 (2, nnz): sources, then targets. Duplicates count once."""
        if edge_index.dim() != 2 or len(edge_index) != 2 or edge_index.dtype != torch.int64:
            raise ValueError(
                f"edge_index is {described(edge_index)}, expected torch.int64 of shape (2, number of edges)"
            )
        if edge_index.numel() and (edge_index.min() < 0 or edge_index.max() >= num_nodes):
            bounds = f"{int(edge_index.min())} to {int(edge_index.max())}"
            raise ValueError(f"edge_index names nodes {bounds}, expected 0 to {num_nodes - 1}")
        source, target = edge_index
        return cls(*_csr(target, source, num_nodes, num_nodes))

    @property
    def num_targets(self) -> int:
        """T, the number of nodes that features are propagated to."""
        return len(self.rowptr) - 1

    @property
    def device(self) -> torch.device:
        return self.col.device

    def targets_of(self, x: Tensor) -> Tensor:
        """The targets' rows (T, D) of ``x`` (N, D); ``x`` itself if all nodes are targets."""
        # A slice of all rows would be copied in the backward pass.
        return x if self.num_targets == self.num_nodes else x[: self.num_targets]

    def target_degree(self) -> Tensor:
        """Number of neighbours of each target, integers (T,)."""
        return self.rowptr.diff()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same graph on ``device``; this object if it is there already."""
        return self._moved(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same graph in pinned memory, from which a GPU copies while it computes."""
        return self._moved(lambda x: x.pin_memory())

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        col = move(self.col)
        return self if col is self.col else self._with_entries(move(self.rowptr), col, self.num_nodes)

    def _with_entries(self, rowptr: Tensor, col: Tensor, num_nodes: int) -> Self:
        changed = copy.copy(self)
        changed.rowptr, changed.col, changed.num_nodes, changed.derived = rowptr, col, num_nodes, {}
        return changed

    def edge_index(self) -> Tensor:
        """PyG's edge index, int64 (2, nnz): sources, then targets; ordered by target, or `by_source`."""
        ends = [self.col.long(), _rows(self.rowptr, self.col)]
        return torch.stack(ends[::-1] if self.by_source else ends)

    def with_self_loops(self) -> Adjacency:
        """A + I, in which self-loops of A are not doubled."""
        target = torch.arange(self.num_targets, device=self.device)
        row, col = torch.cat([_rows(self.rowptr, self.col), target]), torch.cat([self.col.long(), target])
        # Sampled neighbourhoods have no self-loops.
        rowptr, col = _csr(row, col, self.num_targets, self.num_nodes, distinct=not self.is_reused)
        looped = Adjacency(rowptr, col, self.num_nodes)
        looped.is_reused = self.is_reused
        return looped

    def _operator(self, left: Tensor, right: Tensor) -> SparseOperator:
        return SparseOperator(self.rowptr, self.col, left, right, self.is_reused)

    @cached_operator
    def sum(self) -> SparseOperator:
        """A: the sum over neighbours."""
        return self._operator(self._ones(self.num_targets), self._ones(self.num_nodes))

    @cached_operator
    def mean(self) -> SparseOperator:
        """D^-1 A: the mean over neighbours, 0 where there are none (GraphSAGE, Hamilton et al. 2017)."""
        degree = self.rowptr.diff().double()
        return self._operator(1 / degree.clamp(min=1), self._ones(self.num_nodes))

    @cached_operator
    def gcn(self) -> SparseOperator:
        """D~^-1/2 (A+I) D~^-1/2, with D~ the row sums of A+I (GCN, Kipf and Welling 2017); whole graphs only."""
        if self.num_targets != self.num_nodes:
            raise ValueError(f"{self.num_targets} of {self.num_nodes} nodes are targets, GCN's operator needs all")
        looped = self.with_self_loops()
        scale = looped.rowptr.diff().double().rsqrt()
        return looped._operator(scale, scale)

    @cached_operator
    def symmetric(self) -> SparseOperator:
        """D^-1/2 A D^-1/2, with D the row sums of A; 0 for nodes without any (Correct & Smooth); whole graphs only."""
        degree = self.rowptr.diff().double()
        scale = degree.rsqrt().masked_fill_(degree == 0, 0.0)
        return self._operator(scale, scale)

    def _ones(self, number: int) -> Tensor:
        return torch.ones(number, dtype=torch.float64, device=self.device)


class SparseOperator:
    """The constant matrix diag(left) A diag(right), T x N; ``operator @ x`` multiplies it by dense features.

    ``x`` is (N, D) float32, bfloat16, float16 or float64. The product (T, D) has the same type, with sums in float32
    at least, and is differentiable any number of times by ``x``, not by the matrix. Equal operands give equal
    bits on the same machine, whatever the number of threads. Entries are rounded once, to the type of ``x``.
    """

    def __init__(self, rowptr: Tensor, col: Tensor, left: Tensor, right: Tensor, is_reused: bool = True) -> None:
        self.rowptr, self.col, self._left, self._right = rowptr, col, left, right
        self.num_targets, self.num_nodes, self.device = len(left), len(right), col.device
        self.is_reused = is_reused  # only then compared with its transpose and split, which synchronises with a GPU
        self._weights: dict[torch.dtype, Tensor] = {}
        self._transpose: SparseOperator | None = None
        self._is_symmetric = False  # a reference to itself as transpose would be a cycle, which outlives its last user
        self._product_cache: tuple[weakref.ref[Tensor], int, Tensor] | None = None  # an input, its version, the product

    @functools.cached_property
    def pieces(self) -> Pieces | None:
        """Pieces of its rows for `weighted_sums`; None if they are not split."""
        return pieces_of(self.rowptr) if self.is_reused else None

    def cached_product(self, x: Tensor) -> Tensor | None:
        """Product with an ``x`` marked by `mark_constant`, in `working_type`, cached until ``x`` changes; else None."""
        if not getattr(x, "is_constant", False) or x.requires_grad or x.is_inference() or x.nbytes > MAX_CACHED_BYTES:
            return None
        dtype = working_type(x)
        if self._product_cache is not None:
            cached_input, version, product = self._product_cache
            if cached_input() is x and version == x._version and product.dtype == dtype:
                return product
        with torch.inference_mode(False), torch.no_grad():  # so that training may use it too
            product = (self @ x).to(dtype)
        self._product_cache = weakref.ref(x), x._version, product
        return product

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Entries (nnz,) in CSR order, rounded to ``dtype``."""
        if dtype not in self._weights:
            weight = self._left[_rows(self.rowptr, self.col)] * self._right[self.col]
            self._weights[dtype] = weight.to(dtype)
        return self._weights[dtype]

    def transpose(self) -> SparseOperator:
        """The transposed operator; this object if the matrix is symmetric."""
        if self._transpose is None and not self._is_symmetric:
            row = _rows(self.rowptr, self.col)
            rowptr, col = _csr(self.col.long(), row, self.num_nodes, self.num_targets, distinct=True)
            rowptr, col = rowptr.to(self.rowptr.dtype), col.to(self.col.dtype)
            if self.is_reused and torch.equal(rowptr, self.rowptr) and torch.equal(col, self.col):
                rowptr, col = self.rowptr, self.col
                self._is_symmetric = torch.equal(self._left, self._right)
            if not self._is_symmetric:
                self._transpose = SparseOperator(rowptr, col, self._right, self._left, self.is_reused)
        return self if self._transpose is None else self._transpose

    def to(self, device: torch.device) -> SparseOperator:
        """The same matrix on ``device``; this object if it is there already."""
        col = self.col.to(device)
        if col is self.col:
            return self
        rowptr, left, right = (x.to(device) for x in (self.rowptr, self._left, self._right))
        return SparseOperator(rowptr, col, left, right, self.is_reused)

    def __matmul__(self, x: Tensor) -> Tensor:
        """The product (T, D) with ``x`` (N, D)."""
        if x.dim() != 2 or len(x) != self.num_nodes or x.dtype not in _FLOATS:
            raise ValueError(f"features are {described(x)}, expected floats of shape ({self.num_nodes}, D)")
        if x.device != self.device:
            raise ValueError(f"features are on {x.device}, the graph on {self.device}; move it with Adjacency.to")
        return _Product.apply(x, self)

    def _multiply(self, x: Tensor) -> Tensor:
        return weighted_sums(self.rowptr, self.col, self.weight(x.dtype), x.detach().contiguous(), self.pieces)


class Pieces(NamedTuple):
    """Division of a CSR matrix's rows into pieces of at most `PIECE` entries, P in all.

    Attributes:
        starts: (P+1,), where each piece begins among the entries.
        rowptr: (T+1,), where each row's pieces begin.
    """

    starts: Tensor
    rowptr: Tensor


def pieces_of(rowptr: Tensor) -> Pieces | None:
    """Division of rows into pieces; None if rows are not split: on CPU, or if none is longer than `PIECE`.

    A GPU sums a row serially in one group of threads: a hub with a million neighbours would outlast all other rows.
    """
    degree = rowptr.diff().long()
    if rowptr.device.type not in SPLIT_ON or not len(degree) or int(degree.max()) <= PIECE:
        return None
    number = (degree + PIECE - 1) // PIECE
    first = F.pad(number.cumsum(0), (1, 0))
    row = torch.arange(len(degree), device=rowptr.device).repeat_interleave(number)
    piece = torch.arange(len(row), device=rowptr.device) - first[row]
    starts = torch.cat([rowptr[row].long() + PIECE * piece, rowptr[-1:].long()])
    return Pieces(starts.to(rowptr.dtype), first.to(rowptr.dtype))


def weighted_sums(rowptr: Tensor, col: Tensor, weight: Tensor, x: Tensor, pieces: Pieces | None = None) -> Tensor:
    """Product (T, D) of a CSR matrix (T, N) with entries ``weight`` and ``x`` (N, D), both of the same type.

    With ``pieces``, each piece is summed, then the pieces of each row: without atomic additions, so reproducibly.
    """
    if pieces is None:
        return F.embedding_bag(col, x, rowptr, mode="sum", per_sample_weights=weight, include_last_offset=True)
    sums = weighted_sums(pieces.starts, col, weight, x)
    number = torch.arange(len(sums), dtype=col.dtype, device=col.device)
    return F.embedding_bag(number, sums, pieces.rowptr, mode="sum", include_last_offset=True)


def aggregate(operator: SparseOperator, x: Tensor, linear: nn.Linear, addend: Tensor | None = None) -> Tensor:
    """operator · x · Wᵀ + b [+ addend], (T, D_out), propagating x or its transform, whichever is narrower.

    Both orders agree up to rounding, as both steps are linear; the bias is added last. The product with an ``x`` that
    is marked by `mark_constant` is cached. If not all nodes are targets, training propagates ``x``, so that only
    targets are transformed; prediction does not, to round as on the whole graph. Where possible, ``addend`` (T, D_out)
    is added within the matrix product, without a pass of its own.
    """
    propagated = operator.cached_product(x)
    narrows = linear.out_features < linear.in_features
    trains_few = operator.num_targets < operator.num_nodes and torch.is_grad_enabled()
    if propagated is None and narrows and not trains_few:
        out = operator @ F.linear(x, linear.weight)
        for term in (linear.bias, addend):
            out = out if term is None else out + term.to(out.dtype)
        return out
    if propagated is None:
        propagated = operator @ x
    if addend is None:
        return linear(propagated)
    out = torch.addmm(addend, propagated, linear.weight.T)
    return out if linear.bias is None else out + linear.bias.to(out.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: SparseOperator) -> Tensor:
        ctx.operator = operator
        return operator._multiply(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.operator.transpose() @ grads[0], None


def _rows(rowptr: Tensor, col: Tensor) -> Tensor:
    """Row of each entry, int64 (nnz,)."""
    return torch.arange(len(rowptr) - 1, device=col.device).repeat_interleave(rowptr.diff(), output_size=len(col))


def _csr(row: Tensor, col: Tensor, num_rows: int, num_columns: int, distinct: bool = False) -> tuple[Tensor, Tensor]:
    """Row pointers and columns, int64, of the entries (row, col), sorted and without duplicates.

    Unless they are known to be ``distinct``, this synchronises with a GPU.
    """
    key = (row * num_columns + col).sort().values
    if not distinct:
        key = torch.unique_consecutive(key)
    starts = torch.arange(num_rows + 1, device=key.device) * num_columns
    return torch.searchsorted(key, starts), key % max(num_columns, 1)


def described(x: Tensor) -> str:
    """Type and shape of a tensor, for messages."""
    return f"{x.dtype} of shape {tuple(x.shape)}"
