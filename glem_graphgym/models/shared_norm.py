"""Batch norm over the rows of all ranks, on CPU and GPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glem_graphgym import processes


class SharedBatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` whose mean and variance in training are over the rows (B_r, D) of all ranks.

    torch's `SyncBatchNorm` does the same on GPUs only. A rank may have no rows.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or processes.world_size() == 1:
            return super().forward(input)
        x = input.float()
        rows = _Sum.apply(x.new_tensor(float(len(x))))
        mean = _Sum.apply(x.sum(0)) / rows
        centred = x - mean
        variance = _Sum.apply(centred.square().sum(0)) / rows
        self._update_statistics(mean.detach(), variance.detach(), rows)
        out = centred * torch.rsqrt(variance + self.eps)
        if self.affine:
            out = out * self.weight + self.bias
        return out.to(input.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor, rows: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * rows / (rows - 1).clamp(min=1), share)


def share_batch_norms(module: nn.Module) -> None:
    """Turn every `nn.BatchNorm1d` inside ``module`` into a `SharedBatchNorm`; weights and their names stay the same."""
    for submodule in module.modules():
        if type(submodule) is nn.BatchNorm1d:
            submodule.__class__ = SharedBatchNorm


class _Sum(torch.autograd.Function):
    """Sum over ranks. Its gradient is the sum of all ranks' gradients, since every rank's loss depends on it."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        value = value.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(value)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)
