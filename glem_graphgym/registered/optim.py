"""Optimizers and schedules that GraphGym lacks: fused AdamW, RMSprop, and linear warm-up with three kinds of decay."""

from __future__ import annotations

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


@register_scheduler("linear_warmup")
def linear_warmup(optimizer: Optimizer, warmup_epochs: float, max_epoch: int) -> LambdaLR:
    """``optim.scheduler: linear_warmup``: up over ``optim.warmup_epochs``, then linearly to 0 at ``max_epoch``."""
    return warmup_schedule(optimizer, warmup_epochs, max_epoch, "linear")


@register_scheduler("cosine_warmup")
def cosine_warmup(optimizer: Optimizer, warmup_epochs: float, max_epoch: int) -> LambdaLR:
    """``optim.scheduler: cosine_warmup``: up over ``optim.warmup_epochs``, then along a cosine to 0."""
    return warmup_schedule(optimizer, warmup_epochs, max_epoch, "cosine")


@register_scheduler("constant_warmup")
def constant_warmup(optimizer: Optimizer, warmup_epochs: float, max_epoch: int) -> LambdaLR:
    """``optim.scheduler: constant_warmup``: up over ``optim.warmup_epochs``, then level."""
    return warmup_schedule(optimizer, warmup_epochs, max_epoch, "constant")
