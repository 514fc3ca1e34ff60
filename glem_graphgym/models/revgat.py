"""RevGAT: graph attention in reversible blocks (Li et al., "Training GNNs with 1000 Layers", ICML 2021).

The network is that of the authors' submission to OGB's ogbn-arxiv, which GLEM trains too. Blocks are invertible: the
backward pass recomputes a block's input from its output, so that memory does not grow with the number of layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glem_graphgym.models.attention_propagation import AttentionGraph, attention_scores
from glem_graphgym.models.checks import check_probabilities, check_sizes
from glem_graphgym.models.dropout import dropout
from glem_graphgym.models.mlp import Activation
from glem_graphgym.models.propagation import Adjacency, working_type


class RevGATLayer(nn.Module):
    """Graph attention plus a linear transform of the node itself; no bias.

    Unlike the GAT paper, and like the authors' code, scores depend on the source only; edges are dropped before the
    softmax; with ``symmetric_norm`` a source's values are divided by the root of its out-degree before scoring, and the
    sum is multiplied by the root of the target's in-degree: uniform attention is then GCN's D^-1/2 A D^-1/2.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        heads: int,
        edge_drop: float = 0.0,
        attention_dropout: float = 0.0,
        symmetric_norm: bool = True,
    ) -> None:
        super().__init__()
        self.edge_drop, self.attention_dropout, self.symmetric_norm = edge_drop, attention_dropout, symmetric_norm
        self.linear = nn.Linear(dim_in, heads * dim_out, bias=False)
        self.root = nn.Linear(dim_in, heads * dim_out, bias=False)
        self.source = nn.Parameter(torch.empty(heads, dim_out))
        gain = nn.init.calculate_gain("relu")
        for weight in (self.linear.weight, self.root.weight):
            nn.init.xavier_normal_(weight, gain)
        nn.init.xavier_normal_(self.source[None], gain)  # the authors' is (1, H, D), which changes the scale

    def forward(self, x: Tensor, graph: AttentionGraph, seed: int | None) -> Tensor:
        """Output (N, H·D) for ``x`` (N, D_in); ``seed`` of dropped edges and attention weights, None = drop nothing."""
        x = x.to(working_type(x))  # once, rather than in every product below
        (source,) = attention_scores(x, self.linear.weight, self.source)
        if self.symmetric_norm:
            source = source * graph.out_degree.clamp(min=1).to(self.source.dtype).rsqrt()[:, None]
        if seed is None:
            weight = graph.softmax(source)
        else:
            generator = torch.Generator(x.device).manual_seed(seed)
            weight = graph.softmax(source, kept=graph.draw_edges(self.edge_drop, generator))
            weight = dropout(weight, self.attention_dropout, True, generator)
        if self.symmetric_norm:
            weight = weight * graph.symmetric_weight().to(weight.dtype)
        return torch.addmm(graph.sum(self.linear(x), weight), x, self.root.weight.T)


class Draws(NamedTuple):
    """Random draws of one forward pass, which the blocks need again to invert their outputs."""

    graph: AttentionGraph
    masks: Sequence[Tensor | None]  # per group: dropout's factors, the same in all blocks
    seeds: Sequence[int | None]  # per block


class GroupLayer(nn.Module):
    """Norm, ReLU, dropout and attention: f_i, which a block adds to one group of channels."""

    def __init__(self, norm: str, layer: RevGATLayer) -> None:
        super().__init__()
        self.activation = Activation(layer.linear.in_features, norm, 0.0)
        self.layer = layer

    def forward(self, x: Tensor, graph: AttentionGraph, mask: Tensor | None, seed: int | None) -> Tensor:
        x = self.activation(x)
        x = x.to(working_type(x))
        return self.layer(x if mask is None else x * mask, graph, seed)


class ReversibleBlock(nn.Module):
    """y_1 = x_1 + f_1(x_2 + ... + x_C), y_i = x_i + f_i(y_{i-1}), over C groups of channels."""

    def __init__(self, layers: Sequence[GroupLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, xs: Sequence[Tensor], draws: Draws, seed: int | None) -> list[Tensor]:
        """Outputs y_i of the groups, (N, D/C) each, from their inputs."""
        layer_input = reduce(torch.add, xs[1:])
        ys = []
        for layer, x, mask in zip(self.layers, xs, draws.masks, strict=True):
            layer_input = x + layer(layer_input, draws.graph, mask, seed)
            ys.append(layer_input)
        return ys

    def unwind(
        self, ys: Sequence[Tensor], grads: Sequence[Tensor], draws: Draws, seed: int | None
    ) -> tuple[list[Tensor], list[Tensor], dict[nn.Parameter, Tensor]]:
        """Recompute the inputs, their gradients and the parameters' from the outputs and their gradients."""
        xs, grads = list(ys), list(grads)
        parameter_grads: dict[nn.Parameter, Tensor] = {}
        for i in reversed(range(len(xs))):
            parameters = [parameter for parameter in self.layers[i].parameters() if parameter.requires_grad]
            layer_input = (ys[i - 1] if i else reduce(torch.add, xs[1:])).detach().requires_grad_()
            with torch.enable_grad(), _frozen_statistics(self.layers[i]):
                layer_output = self.layers[i](layer_input, draws.graph, draws.masks[i], seed)
            new_grads = torch.autograd.grad(layer_output, [layer_input, *parameters], grads[i].to(layer_output.dtype))
            parameter_grads |= dict(zip(parameters, new_grads[1:], strict=True))
            xs[i] = ys[i] - layer_output.detach()
            for j in [i - 1] if i else range(1, len(xs)):  # the groups that this one has read
                grads[j] = grads[j] + new_grads[0]
        return xs, grads, parameter_grads


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Freeze batch norm's running statistics, which the forward pass has already updated."""
    norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm1d) and norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def run_blocks(blocks: Sequence[ReversibleBlock], x: Tensor, draws: Draws) -> Tensor:
    """Apply all ``blocks`` in turn to ``x`` (N, D), saving only the last output for the backward pass."""
    parameters = [parameter for block in blocks for parameter in block.parameters()]
    return _Reversible.apply(x, blocks, draws, *parameters) if blocks else x


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, blocks: Sequence[ReversibleBlock], draws: Draws, *parameters: nn.Parameter
    ) -> Tensor:
        ctx.blocks, ctx.graph, ctx.seeds = blocks, draws.graph, draws.seeds
        device = x.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        groups = [group.contiguous() for group in x.chunk(len(draws.masks), dim=1)]
        for block, seed in zip(blocks, draws.seeds, strict=True):
            groups = block(groups, draws, seed)
        y = torch.cat(groups, dim=1)
        # The parameters are saved so that a change of them before the backward pass is noticed.
        ctx.save_for_backward(y, *draws.masks, *parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        num_groups = len(ctx.blocks[0].layers)
        y, *saved = ctx.saved_tensors
        draws = Draws(ctx.graph, saved[:num_groups], ctx.seeds)
        ys, grads = ([group.contiguous() for group in tensor.chunk(num_groups, dim=1)] for tensor in (y, grad))
        device, dtype, enabled = ctx.autocast
        parameter_grads: dict[nn.Parameter, Tensor] = {}
        # No cache: casts that it holds from the forward pass, which ran without gradients, would have none.
        with torch.autocast(device, dtype, enabled, cache_enabled=False):
            for block, seed in zip(reversed(ctx.blocks), reversed(ctx.seeds), strict=True):
                ys, grads, block_grads = block.unwind(ys, grads, draws, seed)
                parameter_grads |= block_grads
        ordered = [parameter_grads.get(parameter) for block in ctx.blocks for parameter in block.parameters()]
        return torch.cat(grads, dim=1), None, None, *ordered


class RevGAT(nn.Module):
    """Full-batch graph attention: a first layer, reversible blocks, a last layer with one head.

    The defaults are those of the authors' runs on ogbn-arxiv, with 5 layers and label input. GLEM trains 3 layers with
    ``input_norm``. All blocks share the dropout masks of a forward pass. Unlike in the authors' code, the groups of a
    block are initialised separately, and batch norm's running statistics are updated once per pass.

    Under autocast the channels that blocks add to stay in float32, so that inputs are recomputed with little error.

    Args:
        dim_hidden: width **per head**, as published (256); a hidden layer is ``heads`` times as wide.
        num_layers: at least 2; all but two of them are reversible blocks.
        group: number of groups, at least 2, into which a block divides the channels; must divide ``dim_hidden``.
        edge_drop, attention_dropout: dropped shares of the edges, drawn anew in every pass, and of attention weights.
        input_norm: batch norm of the features, before their dropout.
    """

    def __init__(
        self,
        dim_in: int,
        dim_hidden: int,
        dim_out: int,
        num_layers: int,
        heads: int = 3,
        group: int = 2,
        dropout: float = 0.75,
        input_dropout: float = 0.25,
        edge_drop: float = 0.3,
        attention_dropout: float = 0.0,
        symmetric_norm: bool = True,
        norm: str = "batch",
        input_norm: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(dim_in=dim_in, dim_hidden=dim_hidden, dim_out=dim_out, heads=heads)
        check_sizes(2, num_layers=num_layers, group=group)
        check_probabilities(input_dropout=input_dropout, edge_drop=edge_drop, attention_dropout=attention_dropout)
        if dim_hidden % group:
            raise ValueError(f"dim_hidden is {dim_hidden}, expected a multiple of group, {group}")

        def layer(dim_in: int, dim_out: int, heads: int) -> RevGATLayer:
            return RevGATLayer(dim_in, dim_out, heads, edge_drop, attention_dropout, symmetric_norm)

        def block() -> ReversibleBlock:
            return ReversibleBlock(
                [GroupLayer(norm, layer(width // group, dim_hidden // group, heads)) for _ in range(group)]
            )

        width = heads * dim_hidden
        self.heads, self.group = heads, group
        self.dropout, self.input_dropout = dropout, input_dropout
        self.input_norm = nn.BatchNorm1d(dim_in) if input_norm else None
        self.first = layer(dim_in, dim_hidden, heads)
        self.blocks = nn.ModuleList(block() for _ in range(num_layers - 2))
        self.activation = Activation(width, norm, dropout)
        self.last = layer(width, dim_out, 1)
        self.bias = nn.Parameter(torch.zeros(dim_out))

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        """Logits (N, C) of node features ``x`` (N, dim_in)."""
        graph = AttentionGraph.cached(adjacency, self.heads)
        seeds = self._draw_seeds()
        x = x if self.input_norm is None else self.input_norm(x)
        x = self.first(dropout(x, self.input_dropout, self.training), graph, seeds[0])
        x = x.to(self.bias.dtype)  # not autocast's narrower type, for the blocks' sums
        draws = Draws(graph, self._draw_masks(x), seeds[1:-1])
        x = self.activation(run_blocks(list(self.blocks), x, draws))  # type: ignore[arg-type]
        x = self.last(x, AttentionGraph.cached(adjacency, 1), seeds[-1])
        return x + self.bias.to(x.dtype)

    def _draw_seeds(self) -> list[int | None]:
        """One seed per layer for dropping edges and attention weights, from torch's generator; None = drop nothing."""
        if not self.training or self.first.edge_drop == self.first.attention_dropout == 0:
            return [None] * (len(self.blocks) + 2)
        return torch.randint(2**63 - 1, (len(self.blocks) + 2,)).tolist()

    def _draw_masks(self, x: Tensor) -> list[Tensor | None]:
        if not self.training or self.dropout == 0 or not self.blocks:
            return [None] * self.group
        ones = torch.ones((len(x), x.shape[1] // self.group), dtype=working_type(x), device=x.device)
        return [dropout(ones, self.dropout, True) for _ in range(self.group)]
