"""Every family of models that ``lm.model`` may name encodes, trains and is adapted through our own code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glem_graphgym.models.attention import CPU_ATTENTION
from glem_graphgym.models.text_encoder import EncoderConfig, TextEncoder, load_text_encoder
from tests.models.families import FAMILIES, IDS, MASK, save_random

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Roundings to half precision in a layer, forward and back: the inputs and results of ten or so products, attention
# weights and activations. Each is an error of up to the type's unit roundoff, and independent errors add as squares do.
ROUNDINGS = 32

Folder = Callable[[str], Path]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            save_random(name, made[name])
        return made[name]

    return folder


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest, folder_of: Folder) -> EncoderConfig:
    return EncoderConfig(str(folder_of(request.param)), pooling="mean", attention=CPU_ATTENTION)


def far(a: Tensor, b: Tensor) -> float:
    """Relative distance of two tensors."""
    return float(((a.float() - b.float()).norm() / b.norm()).detach())


def tolerance(encoder: TextEncoder, dtype: torch.dtype) -> float:
    """Bound of `far` between half precision and float32."""
    config: Any = encoder.backbone.config
    return (ROUNDINGS * config.num_hidden_layers) ** 0.5 * torch.finfo(dtype).eps / 2


# ---- padding and attention ----------------------------------------------------------------------------------------


def test_a_text_is_embedded_alike_alone_and_in_a_batch_by_every_attention(family: EncoderConfig) -> None:
    embedded = {}
    for attention in (CPU_ATTENTION, "eager", None):
        encoder = load_text_encoder(replace(family, attention=attention)).eval()
        for encoder.pooling in ("mean", "cls"):
            with torch.no_grad():
                together = embedded[attention, encoder.pooling] = encoder(IDS, MASK)
                for row, length in enumerate(MASK.sum(1).tolist()):
                    alone = encoder(IDS[row : row + 1, :length], MASK[row : row + 1, :length])
                    assert far(alone, together[row : row + 1]) < 1e-5
        assert far(encoder(IDS, torch.ones_like(MASK))[1], together[1]) > 1e-3 or encoder.pooling == "cls"
    for (_, pooling), embedding in embedded.items():
        assert far(embedding, embedded["eager", pooling]) < 1e-5


# ---- half precision -----------------------------------------------------------------------------------------------


def outcome(encoder: TextEncoder, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Embeddings, and all gradients of a loss as one vector."""
    encoder.zero_grad()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        embedding = encoder(IDS, MASK)
    target = torch.linspace(-1, 1, embedding.shape[1])
    (embedding.float() - target).square().mean().backward()
    grads = [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
    return embedding.detach(), torch.cat(grads)


def test_half_precision_encodes_and_trains_as_float32_up_to_rounding(family: EncoderConfig) -> None:
    encoder = load_text_encoder(family).eval()
    embedding, gradient = outcome(encoder)
    for dtype in HALVES.values():
        half_embedding, half_gradient = outcome(encoder, dtype)
        assert 0 < far(half_embedding, embedding) < tolerance(encoder, dtype)
        assert 0 < far(half_gradient, gradient) < tolerance(encoder, dtype)


def test_the_tolerance_sees_a_bias_that_is_left_out(folder_of: Folder) -> None:
    config = EncoderConfig(str(folder_of("deberta")), pooling="mean")
    encoder = load_text_encoder(config).eval()
    embedding, gradient = outcome(encoder)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("q_bias"):
                parameter.zero_()
    half_embedding, half_gradient = outcome(encoder, torch.float16)
    assert far(half_embedding, embedding) > tolerance(encoder, torch.float16)
    assert far(half_gradient, gradient) > tolerance(encoder, torch.float16)


def test_debertas_adaptation_changes_nothing_where_transformers_needs_none(
    folder_of: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, and once transformers fills masked scores with the least number of the scores' own type."""
    from transformers.models.deberta import modeling_deberta

    config = EncoderConfig(str(folder_of("deberta")), pooling="mean")
    ours = load_text_encoder(config).eval()
    own = load_text_encoder(config).eval()
    for module in own.modules():
        if isinstance(module, modeling_deberta.DisentangledSelfAttention):
            assert type(module) is not modeling_deberta.DisentangledSelfAttention
            module.__class__ = modeling_deberta.DisentangledSelfAttention
    for left, right in zip(outcome(ours), outcome(own), strict=True):
        assert torch.equal(left, right)
    finfo = torch.finfo
    monkeypatch.setattr(torch, "finfo", lambda dtype: finfo(torch.bfloat16))
    for left, right in zip(outcome(ours, torch.bfloat16), outcome(own, torch.bfloat16), strict=True):
        assert far(left, right) < (ROUNDINGS * 2) ** 0.5 * 2.0**-8
