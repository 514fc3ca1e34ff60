"""Changes that some model families of transformers need to serve as text encoders, made in place after loading."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from glem_graphgym.models.deberta import use_fast_attention


def fit_family(backbone: Any) -> Any:
    """The encoder inside ``backbone``, with fixes for its model family.

    - Encoder-decoder models (T5, BART): only the encoder is used.
    - Causal models: the cache of keys and values is off.
    - DeBERTa: faster attention; v1 works under autocast to half precision too.
    - ConvBERT: a text's embedding no longer depends on padding.
    - MobileBERT: tokens also read the next token's word embedding; that of padding is 0, as beyond the last token.
    - BigBird: full attention. Its sparse attention depends on the padding, fails in half precision, and is switched off
      for good by the first short batch.
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
            words.weight[words.padding_idx] = 0  # stays 0: nn.Embedding has no gradient at padding_idx
    elif family == "big_bird":
        backbone.set_attention_type("original_full")
    return backbone


def _hide_padding_from_convolutions(backbone: nn.Module) -> None:
    """Let ConvBERT's convolutions read zeros in place of padding, as beyond the end of an unpadded text."""
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
