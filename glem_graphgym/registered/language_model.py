"""The language model as the configuration describes it: encoder, head, attention, device and precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from yacs.config import CfgNode

from glem_graphgym.data.tokens import TokenStore
from glem_graphgym.em.e_step import LMLearner, LMSettings
from glem_graphgym.em.stage import Hardware, Validation
from glem_graphgym.models.lm_head import LMHead
from glem_graphgym.models.text_encoder import EncoderConfig, TextClassifier, load_text_encoder

LONG_TEXT = 192  # mean tokens above which sdpa is no slower than eager on CPU over a whole run (docs/measurements.md)


def build_lm(config: EncoderConfig, num_classes: int, head_dropout: float) -> TextClassifier:
    encoder = load_text_encoder(config)
    return TextClassifier(encoder, LMHead(encoder.dim, num_classes, head_dropout))


def encoder_config(
    cfg: CfgNode, tokens: TokenStore, hardware: Hardware, dropout: float, attention_dropout: float
) -> EncoderConfig:
    lm = cfg.lm
    return EncoderConfig(
        model=lm.model,
        pooling=lm.pooling,
        shrink_dim=lm.shrink_dim,
        dropout=dropout,
        attention_dropout=attention_dropout,
        attention=attention_for(lm.attention, hardware, tokens),
        gradient_checkpointing=lm.gradient_checkpointing,
        lora_rank=lm.lora_rank,
        pretrained=lm.pretrained,
    )


def attention_for(wanted: str, hardware: Hardware, tokens: TokenStore) -> str | None:
    """``auto``: eager for short texts on CPU, where it was measured to be faster, else what transformers prefers."""
    if wanted != "auto":
        return wanted
    short = tokens.lengths.mean() < LONG_TEXT
    return "eager" if hardware.accelerator == "cpu" and short else None


def hardware_for(cfg: CfgNode, precision: str) -> Hardware:
    """Device and precision; ``auto`` takes bf16 where the processor has instructions for it."""
    accelerator = cfg.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator not in ("cpu", "cuda") or (accelerator == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"accelerator is '{accelerator}', expected auto, cpu, or cuda where torch sees a GPU")
    if precision == "auto":
        if accelerator == "cuda":
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "16"
        else:
            fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            precision = "bf16" if fast else "32"
    return Hardware(accelerator, {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision])


def untuned_lm(cfg: CfgNode, tokens: TokenStore) -> LMLearner:
    """The LM as it is pretrained, ready to predict; of its outputs only the embeddings mean anything."""
    hardware = hardware_for(cfg, cfg.lm.precision)
    # A bottleneck that nobody has trained would be a random projection.
    plain = replace(encoder_config(cfg, tokens, hardware, -1.0, -1.0), shrink_dim=0)
    nobody = Validation(np.empty(0, dtype=np.int64), lambda logits: 0.0)
    settings = LMSettings(infer_tokens=cfg.lm.infer_tokens)
    learner = LMLearner(tokens, lambda: build_lm(plain, 1, 0.0), settings, nobody, hardware)
    learner.load(None)
    return learner
