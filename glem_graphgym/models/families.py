"""Changes that some model families of transformers need before they encode here, made in place after loading."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from glem_graphgym.models.deberta import use_fast_attention


def fit_family(backbone: Any) -> Any:
    """The encoder inside ``backbone``, with its family's faults mended.

    - An encoder-decoder model (T5, BART) is its encoder.
    - A causal model keeps no keys and values for a next token.
    - DeBERTa attends faster, and v1 under autocast to half precision too.
    - ConvBERT embeds a text alike with and without padding.
    - MobileBERT, whose last token sees what follows it, sees zeros there, whether padding follows or nothing.
    - BigBird attends to all tokens: its sparse attention depends on the padding, stops in half precision, and is
      given up for good by the first short batch.
    """
    if backbone.config.is_encoder_decoder:
        backbone = backbone.get_encoder()
    if getattr(backbone.config, "use_cache", False):
        backbone.config.use_cache = False
    family = backbone.config.model_type
    if family in ("deberta", "deberta-v2"):
        use_fast_attention(backbone)
    elif family == "convbert":
        _hide_padding_from_convolutions(backbone)
    elif family == "mobilebert":
        words = backbone.embeddings.word_embeddings
        with torch.no_grad():
            words.weight[words.padding_idx] = 0  # and it stays so: an embedding's padding has no gradient
    elif family == "big_bird":
        backbone.set_attention_type("original_full")
    return backbone


def _hide_padding_from_convolutions(backbone: nn.Module) -> None:
    """Let ConvBERT's convolutions see zeros beyond a text's end, whether padding follows there or nothing."""
    from transformers.models.convbert.modeling_convbert import ConvBertSelfAttention

    class MaskedConvolutions(ConvBertSelfAttention):
        def forward(
            self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any
        ) -> Any:
            if attention_mask is None:
                return super().forward(hidden_states, attention_mask, *args, **kwargs)
            text = (attention_mask[:, 0, -1] == 0).to(hidden_states.dtype)  # (B, L): 1 where a token is
            hooks = (
                self.key_conv_attn_layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] * text[:, None],)),
                self.conv_out_layer.register_forward_hook(lambda *call: call[-1] * text[..., None].to(call[-1].dtype)),
            )
            try:
                return super().forward(hidden_states, attention_mask, *args, **kwargs)
            finally:
                for hook in hooks:
                    hook.remove()

    for module in backbone.modules():
        if type(module) is ConvBertSelfAttention:
            module.__class__ = MaskedConvolutions
