"""Dropout that is cheap on CPU, where `F.dropout` draws numbers one by one, up to half of the time of a step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, probability: float, training: bool, generator: torch.Generator | None = None) -> Tensor:
    """`F.dropout`, but on CPU drawn from 16 random bits per element, which is several times as fast.

    On CPU the probability is rounded to a multiple of 2^-16, which the scale matches; a multiple of 2^-8, such as 1/2,
    needs only 8 bits. A ``generator``, on the device of ``x``, makes the draw repeatable.
    """
    if not training or probability == 0:
        return x
    if x.device.type == "cpu":
        return x * _keep_factors(x, probability, generator)
    if generator is None:
        return F.dropout(x, probability)
    return x * torch.empty_like(x).bernoulli_(1 - probability, generator=generator).div_(1 - probability)


def relu_dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """``dropout(relu(x))``, but on CPU with one tensor saved for the backward pass instead of three."""
    if not training or probability == 0 or x.device.type != "cpu":
        return dropout(F.relu(x), probability, training)
    return _ReluDropout.apply(x, probability)


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        factors = _keep_factors(x, probability)
        ctx.scale = _bits_and_scale(probability, x.dtype)[1]
        out = F.relu(x).mul_(factors)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors  # positive where x was and was kept, else 0
        return torch.ops.aten.threshold_backward(grads[0], out, 0).mul_(ctx.scale), None


def _keep_factors(x: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Factors in shape and dtype of ``x``: 0 with ``probability``, else the scale that preserves the expectation."""
    (bits, dropped), scale = _bits_and_scale(probability, x.dtype)
    if dropped == 0:
        return torch.ones_like(x)
    words = torch.empty((x.numel() * bits + 63) // 64, dtype=torch.int64)
    words.random_(-(2**63), None, generator=generator)
    drawn = words.view(torch.int8 if bits == 8 else torch.int16)[: x.numel()].view(x.shape)
    # 0 and 1 by integer arithmetic in place: comparing and converting booleans takes ten times as long.
    least = dropped - 2 ** (bits - 1)
    is_kept = drawn.clamp_(least - 1, least).sub_(least - 1)
    if bits == 16 and x.dtype in (torch.bfloat16, torch.float16):
        return is_kept.mul_(scale.view(torch.int16)).view(x.dtype)  # 1 times the scale's bit pattern
    return is_kept.to(x.dtype).mul_(scale)


def _bits_and_scale(probability: float, dtype: torch.dtype) -> tuple[tuple[int, int], Tensor]:
    """Random bits per element with the number of their values that mean dropped, and the scale of kept elements."""
    bits = 8 if probability * 2**8 == round(probability * 2**8) else 16
    dropped = min(round(probability * 2**bits), 2**bits - 1)
    return (bits, dropped), torch.tensor(2**bits / (2**bits - dropped), dtype=dtype)


class Dropout(nn.Dropout):
    """`nn.Dropout` by means of `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


def use_cheap_dropout(module: nn.Module) -> None:
    """Turn every `nn.Dropout` inside ``module`` into a `Dropout` of the same probability."""
    for submodule in module.modules():
        if type(submodule) is nn.Dropout:
            submodule.__class__ = Dropout
