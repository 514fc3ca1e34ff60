"""Dropout that is cheap on CPU, where `F.dropout` draws number after number and takes up to half of a step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """`F.dropout`, but on CPU drawn from 16 random bits an element, which is several times as fast.

    There the probability is rounded to a multiple of 2^-16; the scale matches the rounded one.
    """
    if not training or probability == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    return x * _kept(x, probability)


def _kept(x: Tensor, probability: float) -> Tensor:
    """What to multiply ``x`` by: 0 with that probability, else what keeps the expectation; of its shape and dtype."""
    threshold = min(round(probability * 2**16), 2**16 - 1)
    scale = 2**16 / (2**16 - threshold)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    # 0 and 1 by integer arithmetic in place: comparing and converting booleans takes ten times as long.
    least = threshold - 2**15
    if threshold == 0:
        kept = torch.ones_like(x, dtype=torch.int16)
    else:
        kept = words.view(torch.int16)[: x.numel()].view(x.shape).clamp_(least - 1, least).sub_(least - 1)
    if x.dtype in (torch.bfloat16, torch.float16):
        pattern = torch.tensor(scale, dtype=x.dtype).view(torch.int16)
        return kept.mul_(pattern).view(x.dtype)
    return kept.to(x.dtype).mul_(scale)


class Dropout(nn.Dropout):
    """`nn.Dropout` by means of `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


def use_cheap_dropout(module: nn.Module) -> None:
    """Let every `nn.Dropout` inside ``module`` be a `Dropout`, with its probability."""
    for inner in module.modules():
        if type(inner) is nn.Dropout:
            inner.__class__ = Dropout
