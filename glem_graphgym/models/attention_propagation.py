"""Attention over the edges of a graph: a softmax over each node's incoming edges, then the weighted sum of the sources.

A graph with H heads is treated as H disjoint copies of it: node i of head h is row iH+h. So features (N, H·D) are
those of N·H nodes without being copied, and everything on edges is a vector. The weighted sum is one `embedding_bag`,
as in `propagation`; its gradient for the features is the same with the transposed matrix, and that for the weights is
one dot product per edge. No tensor of size edges times features is ever made.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from glem_graphgym.models.propagation import Adjacency, Pieces, pieces_of, weighted_sums

SLOPE = 0.2  # of leaky_relu for negative scores (GAT, Velickovic et al. 2018)


class AttentionGraph:
    """A graph of E edges, self-loops included, in H = ``heads`` copies, prepared for attention over its edges.

    The adjacency's T targets, the first of its N nodes, attend to sources among all N. Vectors on edges have shape
    (E·H,), ordered by target, then head, then source. Made by `AttentionGraph.cached`. ``in_degree`` (T,) and
    ``out_degree`` (N,), int64, count the edges into each target and out of each node.
    """

    def __init__(self, adjacency: Adjacency, heads: int) -> None:
        self.num_nodes, self.num_targets = adjacency.num_nodes, adjacency.num_targets
        self.num_edges, self.heads = len(adjacency.col), heads
        # embedding_bag needs all indices in one type; 32 bits halve the memory.
        index_type = torch.int32 if heads * max(self.num_nodes, self.num_edges) < 2**31 else torch.int64
        degree = adjacency.rowptr.diff().long()
        target, head = (torch.arange(n, device=adjacency.device) for n in (self.num_targets, heads))
        rows = _by_head(target.repeat_interleave(degree, output_size=self.num_edges), head)
        order = rows.argsort(stable=True)
        row, col = rows[order], _by_head(adjacency.col.long(), head)[order]
        self._edge = (order // heads).to(index_type)  # which edge of the graph each entry belongs to
        self._row, self._col = row.to(index_type), col.to(index_type)
        self._rowptr = _starts(degree.repeat_interleave(heads)).to(index_type)
        order = col.argsort(stable=True)
        self._order = order.to(index_type)  # where the transpose's entries are in the matrix
        self._transposed_col = self._row[order]
        # Not bincount, which synchronises with a GPU; sums of integers are exact in any order.
        column_counts = col.new_zeros(self.num_nodes * heads).scatter_add_(0, col, torch.ones_like(col))
        self._transposed_rowptr = _starts(column_counts).to(index_type)
        self.in_degree, self.out_degree = degree, column_counts[::heads].clone()
        self._symmetric_weight: Tensor | None = None
        pointers = self._rowptr, self._transposed_rowptr
        self._pieces, self._transposed_pieces = (pieces_of(p) if adjacency.is_reused else None for p in pointers)

    @staticmethod
    def cached(adjacency: Adjacency, heads: int) -> AttentionGraph:
        """The graph of A + I, so that nodes attend to themselves too; made once per adjacency and cached with it."""
        key = "attention", heads
        if key not in adjacency.derived:
            with torch.inference_mode(False):  # so that training may use it too
                adjacency.derived[key] = AttentionGraph(adjacency.with_self_loops(), heads)
        return adjacency.derived[key]

    def draw_edges(self, drop: float, generator: torch.Generator | None = None) -> Tensor | None:
        """Mask bool (E,) of the edges that stay when ⌊``drop`` · E⌋ random ones are dropped; None if none is."""
        number = int(self.num_edges * drop)
        if number == 0:
            return None
        drawn = torch.randperm(self.num_edges, generator=generator, device=self._col.device)
        kept = torch.ones(self.num_edges, dtype=torch.bool, device=self._col.device)
        return kept.index_fill_(0, drawn[:number], False)

    def softmax(self, source: Tensor, target: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        """Attention (E·H,): softmax of leaky_relu(source_j + target_i) over each node's incoming edges, per head.

        Scores are (N, H) for sources and (T, H), or None for 0, for targets. Edges outside ``kept``, bool (E,), get 0.
        Computed in float32, or in float64 for such scores.
        """
        dtype = torch.promote_types(source.dtype, torch.float32)
        source = source.to(dtype).flatten()
        target = None if target is None else target.to(dtype).flatten()
        return _EdgeSoftmax.apply(source, target, kept, self)

    def symmetric_weight(self) -> Tensor:
        """float32 (E·H,): (in-degree of the target / out-degree of the source)^1/2.

        Multiplied by uniform attention, 1 / in-degree, it gives GCN's weights D^-1/2 A D^-1/2.
        """
        if self._symmetric_weight is None:
            with torch.inference_mode(False):
                in_degree, out_degree = (degree.clamp(min=1) for degree in (self.in_degree, self.out_degree))
                ratio = in_degree[self._row.long() // self.heads] / out_degree[self._col.long() // self.heads]
                self._symmetric_weight = ratio.sqrt().float()
        return self._symmetric_weight

    def sum(self, values: Tensor, weight: Tensor) -> Tensor:
        """Sums (T, H·D) over the edges into each target: ``weight`` (E·H,) times the source's ``values`` (N, H·D).

        Values are float32, bfloat16, float16 or float64; weights are rounded to that type.
        """
        by_head = values.reshape(self.num_nodes * self.heads, values.shape[1] // self.heads)
        return _WeightedSum.apply(by_head, weight, self).view(self.num_targets, values.shape[1])

    def _total(self, entries: Tensor) -> Tensor:
        """Row sums (T·H,) of ``entries`` (E·H,)."""
        return _reduced(entries, "sum", self._rowptr, self._pieces, 0)

    def _transposed_total(self, entries: Tensor) -> Tensor:
        """Column sums (N·H,) of ``entries`` (E·H,)."""
        entries = entries.index_select(0, self._order)
        return _reduced(entries, "sum", self._transposed_rowptr, self._transposed_pieces, 0)

    def _dots(self, left: Tensor, right: Tensor) -> Tensor:
        """Dot products left[row] · right[column] per entry, (E·H,), of ``left`` (T·H, D) and ``right`` (N·H, D)."""
        if left.device.type == "cpu" and left.dtype in (torch.float32, torch.float64):
            # A third faster than the kernel below, which supports the other types and devices.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
                zeros, size = left.new_zeros(len(self._col)), (len(left), len(right))
                pattern = torch.sparse_csr_tensor(self._rowptr, self._col, zeros, size, check_invariants=False)
                return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0).values()
        # The gradient of embedding_bag for its weights, as autograd computes it; 0 stands for mode "sum".
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            left, right, self._col, self._rowptr, self._row, 0
        )


def attention_scores(x: Tensor, weight: Tensor, *vectors: Tensor) -> tuple[Tensor, ...]:
    """Scores a_h · W_h x, (N, H), for each of the ``vectors`` a (H, D).

    ``x`` is (N, D_in), ``weight`` W is (H·D, D_in). W_h and a_h are multiplied first: all scores are then one narrow
    matrix product, and W x, as wide as the features, is not needed.
    """
    heads, dim = vectors[0].shape
    by_head = weight.view(heads, dim, -1)
    combined = torch.cat([torch.einsum("hdi,hd->hi", by_head, vector) for vector in vectors])
    return F.linear(x, combined).split(heads, dim=1)


class _EdgeSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, target: Tensor | None, kept: Tensor | None, graph: AttentionGraph) -> Tensor:
        scores = source.index_select(0, graph._col)
        if target is not None:
            scores += target.index_select(0, graph._row)
        positive = scores > 0
        scores = F.leaky_relu_(scores, SLOPE)
        if kept is not None:
            scores.masked_fill_(~kept.index_select(0, graph._edge), -torch.inf)
        largest = _reduced(scores, "max", graph._rowptr, graph._pieces, -torch.inf)
        largest.masked_fill_(largest == -torch.inf, 0)  # a node without a kept edge
        attention = scores.sub_(largest.index_select(0, graph._row)).exp_()
        # The largest score adds 1, so a sum is below 1 only where all weights are 0.
        total = graph._total(attention).clamp_(min=1)
        attention.div_(total.index_select(0, graph._row))
        ctx.graph, ctx.has_target = graph, target is not None
        ctx.save_for_backward(attention, positive)
        return attention

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        attention, positive = ctx.saved_tensors
        graph = ctx.graph
        grad = grad * attention
        grad -= attention * graph._total(grad).index_select(0, graph._row)
        grad = torch.where(positive, grad, grad * SLOPE)
        target = graph._total(grad) if ctx.has_target and ctx.needs_input_grad[1] else None
        return graph._transposed_total(grad), target, None, None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, graph: AttentionGraph) -> Tensor:
        values = values.contiguous()
        ctx.graph = graph
        ctx.save_for_backward(values, weight)
        return weighted_sums(graph._rowptr, graph._col, weight.to(values.dtype), values, graph._pieces)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, weight = ctx.saved_tensors
        graph, grad = ctx.graph, grad.contiguous()
        values_grad = weight_grad = None
        if ctx.needs_input_grad[0]:
            transposed_weight = weight.index_select(0, graph._order).to(grad.dtype)
            matrix = graph._transposed_rowptr, graph._transposed_col, transposed_weight
            values_grad = weighted_sums(*matrix, grad, graph._transposed_pieces)
        if ctx.needs_input_grad[1]:
            weight_grad = graph._dots(grad, values).to(weight.dtype)
        return values_grad, weight_grad, None


def _reduced(entries: Tensor, reduction: str, rowptr: Tensor, pieces: Pieces | None, initial: float) -> Tensor:
    """Sum or maximum (``reduction``) of each row's ``entries`` (nnz,): (T,); ``initial`` for empty rows."""
    if entries.device.type == "cpu" and pieces is None:
        return torch.segment_reduce(entries, reduction, offsets=rowptr, unsafe=True, initial=initial)
    # With a second dimension the kernel uses one thread per row, without it a whole block of threads.
    out = entries[:, None]
    for offsets in (rowptr,) if pieces is None else pieces:
        out = torch.segment_reduce(out, reduction, offsets=offsets, unsafe=True, initial=initial)
    return out[:, 0]


def _by_head(node: Tensor, head: Tensor) -> Tensor:
    """Rows (E·H,) of nodes (E,) in every head's copy of the graph, ordered by edge, then head."""
    return (node[:, None] * len(head) + head).flatten()


def _starts(lengths: Tensor) -> Tensor:
    return F.pad(lengths.cumsum(0), (1, 0))
