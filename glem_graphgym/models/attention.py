"""Attention for encoders on CPU, registered with transformers as the implementation `CPU_ATTENTION`.

Scores, masks, softmax and product are those of transformers' eager attention, with the dropout of `dropout.py` and the
softmax in float32, which on CPU is three times as fast as in bfloat16 for short texts, and no less exact.

Named ``glem_cpu_256_64``, it uses torch's sdpa from 256 tokens on in training and from 64 on in inference; 0 = never.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glem_graphgym.models.dropout import dropout as cheap_dropout

CPU_ATTENTION = "glem_cpu"
UNSUPPORTED_ARGUMENTS = ("softcap", "position_bias", "s_aux", "sinks")  # arguments of some models, not supported
SCORES_AT_ONCE = 1 << 20  # attention scores computed at a time in inference: 2 to 4 MB


def cpu_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sdpa_from: tuple[int, int] = (0, 0),
    **model_arguments: Any,
) -> tuple[Tensor, None]:
    """Attend by transformers' interface: query, key and value (B, heads, L, D) -> ((B, L, heads, D), no weights).

    ``attention_mask`` is added to the scores; ``scaling`` None = D^-1/2; ``dropout`` acts if ``module`` is in training
    mode; ``sdpa_from``: lengths as returned by `sdpa_lengths`.

    Raises:
        TypeError: the model passes one of the arguments `UNSUPPORTED_ARGUMENTS`.
    """
    if any(model_arguments.get(name) is not None for name in UNSUPPORTED_ARGUMENTS):
        raise TypeError(f"{CPU_ATTENTION} takes no {', '.join(UNSUPPORTED_ARGUMENTS)}")
    dropout = dropout if module.training else 0.0
    if 0 < sdpa_from[0 if torch.is_grad_enabled() else 1] <= query.shape[2]:
        options: dict[str, Any] = {"attn_mask": attention_mask, "dropout_p": dropout, "scale": scaling}
        return F.scaled_dot_product_attention(query, key, value, **options).transpose(1, 2).contiguous(), None
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if torch.is_grad_enabled():
        return _attend(query, key, value, attention_mask, dropout).transpose(1, 2).contiguous(), None
    # A few texts at a time, so that their scores stay in the processor's cache.
    texts, heads, length = query.shape[:3]
    step = max(1, SCORES_AT_ONCE // (heads * length * length))
    out = query.new_empty(texts, length, heads, value.shape[-1])
    for block in (slice(start, start + step) for start in range(0, texts, step)):
        mask = attention_mask if attention_mask is None or len(attention_mask) == 1 else attention_mask[block]
        out[block] = _attend(query[block], key[block], value[block], mask, dropout).transpose(1, 2)
    return out, None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(query · keyᵀ + mask) · value, (B, heads, L, D), with dropout of the weights; ``query`` is scaled."""
    scores = torch.matmul(query, key.transpose(2, 3))
    if mask is not None:
        scores = scores.float().add_(mask)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(cheap_dropout(weights, dropout, True), value)


def sdpa_lengths(name: str | None) -> tuple[int, int] | None:
    """Parse a name of `CPU_ATTENTION`: lengths from which sdpa is used in training and in inference; else None."""
    if name == CPU_ATTENTION:
        return 0, 0
    match = re.fullmatch(rf"{CPU_ATTENTION}_(\d+)_(\d+)", name or "")
    return (int(match[1]), int(match[2])) if match else None


def use_cpu_attention(backbone: Any, name: str = CPU_ATTENTION) -> None:
    """Switch a transformers model from eager attention to `cpu_attention`, unless its output of a small batch changes.

    Some models support only their own implementation; some need more of it, such as a position bias.
    """
    if not getattr(backbone, "_supports_attention_backend", False):
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    lengths = sdpa_lengths(name) or (0, 0)
    AttentionInterface.register(name, functools.partial(cpu_attention, sdpa_from=lengths))
    AttentionMaskInterface.register(name, eager_mask)
    batch = probe_batch(backbone.config)
    expected = states_of(backbone, *batch.values())
    backbone.set_attn_implementation(name)
    try:
        rounding = 8 * torch.finfo(expected.dtype).eps
        states = states_of(backbone, *batch.values())
        same = torch.allclose(states, expected, rtol=max(1e-3, rounding), atol=max(1e-4, rounding))
    except Exception:  # a model may require anything of its attention
        same = False
    if not same:
        backbone.set_attn_implementation("eager")


def probe_batch(config: Any) -> dict[str, Tensor]:
    """Two texts of 7 and 4 tokens, to find out how a model of this configuration behaves."""
    ids = torch.arange(14).view(2, 7) % config.vocab_size
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])}


def states_of(backbone: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states (B, L, H) of token ids (B, L) with their attention mask, in evaluation mode; zeros at padding."""
    training, ids, mask = backbone.training, ids.to(backbone.device), mask.to(backbone.device)
    backbone.eval()
    with torch.no_grad():
        states = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    backbone.train(training)
    return states * mask[:, :, None]
