"""Optimizers and schedules missing in GraphGym: fused AdamW, RMSprop, and linear warm-up with three kinds of decay."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from torch import nn
from torch.optim import AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR
from torch_geometric.graphgym.register import register_optimizer, register_scheduler

from glem_graphgym.em.optim import warmup_schedule


@register_optimizer("adamw")
def adamw_optimizer(params: Iterator[nn.Parameter], base_lr: float, weight_decay: float) -> AdamW:
    """``optim.optimizer: adamw``."""
    return AdamW(params, base_lr, weight_decay=weight_decay, fused=True)


@register_optimizer("rmsprop")
def rmsprop_optimizer(params: Iterator[nn.Parameter], base_lr: float, weight_decay: float) -> RMSprop:
    """``optim.optimizer: rmsprop``, which RevGAT was published with."""
    return RMSprop(params, lr=base_lr, weight_decay=weight_decay)


def warmup(optimizer: Optimizer, warmup_epochs: float, max_epoch: int, decay: str) -> LambdaLR:
    """``optim.scheduler: <decay>_warmup``: up over ``optim.warmup_epochs``, then ``decay`` until ``max_epoch``."""
    return warmup_schedule(optimizer, warmup_epochs, max_epoch, decay)


for _decay in ("linear", "cosine", "constant"):
    register_scheduler(f"{_decay}_warmup", functools.partial(warmup, decay=_decay))
