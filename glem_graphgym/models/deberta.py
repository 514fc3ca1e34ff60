"""DeBERTa's attention (v1, v2 and v3; He et al. 2021) without transformers' lookup of position scores per token pair.

Position scores depend on a token and a distance, so they are computed as (L, 2L); a skewed view of these is the (L, L)
matrix that transformers gathers pair by pair. On CUDA, sum, mask, softmax and dropout are one compiled function.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glem_graphgym.models.dropout import dropout


def attention_weights(
    scores: Tensor, c2p: Tensor | None, p2c: Tensor | None, mask: Tensor, probability: float, training: bool
) -> Tensor:
    """Softmax, in float32, of the sum of all scores, with dropout: (B, heads, L, L) in the type of ``scores``.

    Args:
        scores: (B, heads, L, L), queries with keys.
        c2p: (B, heads, L, 2L), query i with the position key of each distance i - j = L - 1, …, -L; None = not used.
        p2c: (B, heads, L, 2L), key j with the position query of each distance i - j = 1 - L, …, L; None = not used.
        mask: (B, 1, L or 1, L), nonzero where a token may be attended to.
    """
    total = scores.float()
    if c2p is not None:
        total = total + _skewed(c2p)
    if p2c is not None:
        total = total + _skewed(p2c).transpose(-1, -2)
    total = total.masked_fill(mask == 0, torch.finfo(torch.float32).min)
    return dropout(total.softmax(-1), probability, training).to(scores.dtype)


def _skewed(by_distance: Tensor) -> Tensor:
    """View (B, heads, L, L) of scores (B, heads, L, 2L), whose row r begins at column L - 1 - r."""
    length, width = by_distance.shape[-2:]
    rows = by_distance.flatten(-2)[..., length - 1 : length - 1 + length * (width - 1)]
    return rows.unflatten(-1, (length, width - 1))[..., :length]


@functools.cache
def _weights_function(kind: str) -> Callable[..., Tensor]:
    """`attention_weights`; for CUDA compiled, if Triton and a C compiler are installed and compiling works."""
    compiles = importlib.util.find_spec("triton") and shutil.which(os.environ.get("CC", "gcc"))
    if kind != "cuda" or not compiles:
        return attention_weights
    return _with_fallback(torch.compile(attention_weights, dynamic=True), attention_weights)


def _with_fallback(compiled: Callable[..., Tensor], plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Call ``compiled`` until it fails, as it does where Python's headers are missing; from then on ``plain``."""
    has_failed = False

    def function(*arguments: Any) -> Tensor:
        nonlocal has_failed
        if not has_failed:
            try:
                return compiled(*arguments)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of the compiler, of Triton or of the C compiler that it calls
                has_failed = True
                logging.warning(f"DeBERTa's attention runs uncompiled, as it cannot be compiled here: {error!r:.200}")
        return plain(*arguments)

    return function


def use_fast_attention(backbone: nn.Module) -> None:
    """Switch a DeBERTa's layers, in place, to attention by `attention_weights` and to torch's layer norm."""
    faster = _faster_classes()
    for module in backbone.modules():
        module.__class__ = faster.get(type(module), type(module))


@functools.cache
def _faster_classes() -> dict[type, type]:
    from transformers.models.deberta import modeling_deberta as v1
    from transformers.models.deberta_v2 import modeling_deberta_v2 as v2

    return {
        v1.DebertaLayerNorm: _layer_norm(v1.DebertaLayerNorm),
        v1.DisentangledSelfAttention: _attention(v1.DisentangledSelfAttention, _projected_v1),
        v2.DisentangledSelfAttention: _attention(v2.DisentangledSelfAttention, _projected_v2),
    }


def _layer_norm(base: Any) -> type:
    class LayerNorm(base):
        def forward(self, x: Tensor) -> Tensor:  # transformers' makes ten passes over the states
            kind = torch.promote_types(x.dtype, self.weight.dtype)
            weight, bias = self.weight.float(), self.bias.float()
            return F.layer_norm(x.float(), weight.shape, weight, bias, self.variance_epsilon).to(kind)

    return LayerNorm


def _attention(base: Any, projected: Callable[..., tuple[Tensor, ...]]) -> type:
    class FastAttention(base):
        def forward(
            self,
            hidden_states: Tensor,
            attention_mask: Tensor,
            output_attentions: bool = False,
            query_states: Tensor | None = None,
            relative_pos: Tensor | None = None,
            rel_embeddings: Tensor | None = None,
        ) -> tuple[Tensor, Tensor | None]:
            special = output_attentions or query_states is not None or getattr(self, "talking_head", False)
            if special or (self.relative_attention and (rel_embeddings is None or relative_pos is None)):
                arguments = (attention_mask, output_attentions, query_states, relative_pos, rel_embeddings)
                return super().forward(hidden_states, *arguments)
            query, key, value = projected(self, hidden_states)  # (B, heads, L, D)
            kinds = self.pos_att_type if self.relative_attention else []
            scale = (query.shape[-1] * _num_terms(self)) ** -0.5
            query, c2p, p2c = query * scale, None, None
            if kinds:
                assert rel_embeddings is not None and relative_pos is not None
                rows = self.pos_dropout(rel_embeddings)[_position_rows(self, relative_pos)]  # (2L, H)
                if "c2p" in kinds:
                    c2p = query @ _positions(self, rows, "key").flip(2).transpose(-1, -2)
                if "p2c" in kinds:
                    p2c = (key * scale) @ _positions(self, rows, "query").roll(-1, 2).transpose(-1, -2)
            weights = _weights_function(query.device.type)(
                query @ key.transpose(-1, -2), c2p, p2c, attention_mask, self.dropout.p, self.training
            )
            return (weights @ value).permute(0, 2, 1, 3).flatten(2), None

    return FastAttention


def _num_terms(module: Any) -> int:
    """Number of scores that are added up per pair of tokens; they are divided by the root of it times D."""
    return 1 + len(set(module.pos_att_type) & {"c2p", "p2c"}) if _is_v2(module) else 1 + len(module.pos_att_type)


def _is_v2(module: Any) -> bool:
    return hasattr(module, "query_proj")


def _position_rows(module: Any, relative_pos: Tensor) -> Tensor:
    """Rows of the position table, int64 (2L,), for distances -L (a filler that is never read), 1 - L, …, L - 1.

    ``relative_pos``, (…, L, L), holds the distance i - j or its bucket; its first row and column have every distance.
    """
    pairs = relative_pos.reshape(-1, *relative_pos.shape[-2:])[0].long()
    distances = torch.cat([pairs[:1, -1], pairs[0].flip(0), pairs[1:, 0]])
    span = module.pos_ebd_size if _is_v2(module) else module.max_relative_positions
    return (distances + span).clamp(0, 2 * span - 1)


def _positions(module: Any, rows: Tensor, side: str) -> Tensor:
    """Position keys or queries (1, heads, 2L, D), projected from ``rows`` (2L, H) of the position table."""
    if not _is_v2(module):
        project = module.pos_proj if side == "key" else module.pos_q_proj
    elif module.share_att_key:
        project = module.key_proj if side == "key" else module.query_proj
    else:
        project = module.pos_key_proj if side == "key" else module.pos_query_proj
    return _heads(module, project(rows[None]))


def _heads(module: Any, x: Tensor) -> Tensor:  # (B, L, H) -> (B, heads, L, H / heads)
    return x.unflatten(-1, (module.num_attention_heads, -1)).transpose(1, 2)


def _projected_v1(module: Any, states: Tensor) -> tuple[Tensor, ...]:
    query, key, value = _heads(module, module.in_proj(states)).chunk(3, dim=-1)
    q_bias, v_bias = (_heads(module, bias[None, None]).to(query.dtype) for bias in (module.q_bias, module.v_bias))
    return query + q_bias, key, value + v_bias


def _projected_v2(module: Any, states: Tensor) -> tuple[Tensor, ...]:
    return tuple(_heads(module, project(states)) for project in (module.query_proj, module.key_proj, module.value_proj))
