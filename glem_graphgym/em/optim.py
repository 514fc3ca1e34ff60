"""Optimizer and learning-rate schedules shared by the steps, with plain arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR


class ClippedAdamW(torch.optim.AdamW):
    """Fused AdamW that clips the gradient norm to ``clip`` (0 = no bound) and takes sparse gradients of embeddings.

    Equals `nn.utils.clip_grad_norm_` and AdamW on dense gradients, up to rounding. To clip, the fused kernel itself
    divides the gradients, which saves a pass over them. A sparse gradient (an `nn.Embedding` with ``sparse=True``) is
    added to a dense table that persists between steps, and only the rows in use are cleared after the step: a new dense
    gradient of a vocabulary would be tens of MB to fill with zeros at every step.
    """

    def __init__(
        self, params: Iterable[nn.Parameter] | list[dict], lr: float, weight_decay: float, clip: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, fused=True)
        self.clip = clip
        self.grad_scale: Tensor | None = None  # torch's fused kernel divides gradients by it
        self._tables: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        assert closure is None, "gradients are there before a step"
        rows = self._densify_gradients()
        if self.clip > 0:
            self.grad_scale = self._clip_divisor(rows)
        super().step()
        for param, used in rows.items():
            self._tables[param].index_fill_(0, used, 0)
            param.grad = None

    def _densify_gradients(self) -> dict[nn.Parameter, Tensor]:
        """Make sparse gradients dense; returns, for each of their parameters, the rows in use."""
        rows = {}
        for param in self._trained_parameters():
            grad = param.grad
            if grad is None or not grad.is_sparse:
                continue
            if param not in self._tables:
                self._tables[param] = torch.zeros_like(param)
            used = grad._indices()[0]
            param.grad = self._tables[param].index_add_(0, used, grad._values())
            rows[param] = used.unique()
        return rows

    def _clip_divisor(self, rows: dict[nn.Parameter, Tensor]) -> Tensor:
        """The gradient norm divided by ``clip``, at least 1: scalar tensor."""
        grads = [p.grad[rows[p]] if p in rows else p.grad for p in self._trained_parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        return ((norm + 1e-6) / self.clip).clamp(min=1.0)

    def _trained_parameters(self) -> list[nn.Parameter]:
        return [param for group in self.param_groups for param in group["params"]]


def use_sparse_gradients(module: nn.Module, least_rows: int = 1000) -> None:
    """Give embeddings of ``least_rows`` rows or more in ``module`` sparse gradients, for `ClippedAdamW`."""
    for submodule in module.modules():
        if isinstance(submodule, nn.Embedding) and submodule.num_embeddings >= least_rows:
            submodule.sparse = True


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two parameter groups: matrices with ``weight_decay``; biases, norms and other vectors without."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def warmup_schedule(
    optimizer: torch.optim.Optimizer, warmup_steps: float, total_steps: float, decay: str = "linear"
) -> LambdaLR:
    """Learning rate: linear warm-up from 0 over ``warmup_steps``, then ``linear`` or ``cosine`` to 0, or ``constant``.

    Steps are optimizer steps for the LM, epochs for a GNN.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps))
        return {"linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress)), "constant": 1.0}[decay]

    return LambdaLR(optimizer, factor)
