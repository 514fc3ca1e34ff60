"""Optimizers and schedules that GraphGym lacks: fused AdamW, RMSprop, and linear warm-up with three kinds of decay.

And the M-step's, whichever of these or of GraphGym's the configuration names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR
from torch_geometric.graphgym.optim import create_optimizer, create_scheduler
from torch_geometric.graphgym.register import register_optimizer, register_scheduler
from yacs.config import CfgNode

from glem_graphgym.em.optim import adamw, warmup_schedule


def gnn_optimizer(cfg: CfgNode) -> Callable[[Iterable[nn.Parameter]], tuple[Any, Any]]:
    """Parameters -> (optimizer, learning-rate schedule counted in epochs), as ``optim.*`` say."""

    def make(params: Iterable[nn.Parameter]) -> tuple[Any, Any]:
        optimizer = create_optimizer(list(params), cfg.optim)
        return optimizer, create_scheduler(optimizer, cfg.optim)

    return make


@register_optimizer("adamw")
def adamw_optimizer(params: Iterator[nn.Parameter], base_lr: float, weight_decay: float) -> AdamW:
    """``optim.optimizer: adamw``."""
    return adamw(params, base_lr, weight_decay)


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
