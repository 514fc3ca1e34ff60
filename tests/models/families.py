"""Tiny configurations of every model family that ``lm.model`` may name, shaped as its published models are."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    **{"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 24, "max_position_embeddings": 40, "pad_token_id": 0},
}
MODERN_IDS: dict[str, Any] = {f"{name}_token_id": 2 for name in ("bos", "eos", "cls", "sep")}
CAUSAL: dict[str, Any] = {**SIZES, "num_key_value_heads": 1, "head_dim": 8}
DEBERTA: dict[str, Any] = {
    **SIZES,
    **{
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "type_vocab_size": 0,
        "position_biased_input": False,
    },
}
FAMILIES: dict[str, Any] = {
    "bert": transformers.BertConfig(**SIZES),
    "roberta": transformers.RobertaConfig(**SIZES),
    "xlm-roberta": transformers.XLMRobertaConfig(**SIZES),
    "camembert": transformers.CamembertConfig(**SIZES),
    "deberta": transformers.DebertaConfig(**DEBERTA),
    "deberta-v2": transformers.DebertaV2Config(**DEBERTA, conv_kernel_size=3, conv_act="gelu", position_buckets=4),
    "deberta-v3": transformers.DebertaV2Config(
        **DEBERTA, share_att_key=True, norm_rel_ebd="layer_norm", position_buckets=4
    ),
    "modernbert": transformers.ModernBertConfig(**{**SIZES, "num_hidden_layers": 4}, **MODERN_IDS, local_attention=6),
    "albert": transformers.AlbertConfig(**SIZES, embedding_size=8),
    "distilbert": transformers.DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=24),
    "electra": transformers.ElectraConfig(**SIZES, embedding_size=8),
    "mpnet": transformers.MPNetConfig(**SIZES),
    "mobilebert": transformers.MobileBertConfig(**SIZES, embedding_size=8, intra_bottleneck_size=8, true_hidden_size=8),
    "convbert": transformers.ConvBertConfig(**SIZES, embedding_size=8),
    "nomic_bert": transformers.NomicBertConfig(**SIZES),
    "eurobert": transformers.EuroBertConfig(**SIZES, num_key_value_heads=1, **MODERN_IDS),
    "xlnet": transformers.XLNetConfig(vocab_size=60, d_model=16, n_layer=2, n_head=2, d_inner=24, pad_token_id=0),
    "longformer": transformers.LongformerConfig(**SIZES, attention_window=4),
    "big_bird": transformers.BigBirdConfig(**SIZES, block_size=1, num_random_blocks=1),
    "rembert": transformers.RemBertConfig(**SIZES, input_embedding_size=8),
    "t5": transformers.T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2),
    "bart": transformers.BartConfig(
        **{"vocab_size": 60, "d_model": 16, "max_position_embeddings": 40, "pad_token_id": 0},
        **{"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24},
        **{"decoder_layers": 3, "decoder_attention_heads": 2, "decoder_ffn_dim": 24},
    ),
    "gpt2": transformers.GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=40),
    "qwen3": transformers.Qwen3Config(**CAUSAL),
    "llama": transformers.LlamaConfig(**CAUSAL),
    "mistral": transformers.MistralConfig(**CAUSAL, sliding_window=4),
    "gemma": transformers.GemmaConfig(**CAUSAL),
    "gemma2": transformers.Gemma2Config(**CAUSAL, sliding_window=4, attn_logit_softcapping=0.5),
    "gemma3": transformers.Gemma3TextConfig(**CAUSAL, sliding_window=4),
}

IDS = torch.tensor([[2, 7, 9, 30, 31, 32, 33, 34, 3], [2, 11, 3, 0, 0, 0, 0, 0, 0], [2, 40, 41, 42, 3, 0, 0, 0, 0]])
MASK = (IDS > 0).long()


def save_random(name: str, folder: Path) -> None:
    """A model of the family ``name`` in ``folder``: every weight is drawn, biases and norms too, so that all count."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(copy.deepcopy(FAMILIES[name]))
        with torch.no_grad():
            for parameter in model.parameters():
                scale = 0.5 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
                parameter.add_(scale * torch.randn_like(parameter))
        model.save_pretrained(folder)


def save_tokenizer(folder: Path, before: str = "", after: str = "", **names: Any) -> Path:
    """A tokenizer of single bytes in ``folder``, which puts special tokens ``before`` and ``after`` a text.

    Args:
        names: of special tokens, ``eos_token="</s>"``, and whatever else tokenizer_config.json shall hold.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = list(dict.fromkeys([before, after, *(name for key, name in names.items() if key.endswith("_token"))]))
    special = [token for token in special if isinstance(token, str) and token]
    pieces = ["<unk>", "<pad>", *special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(numbers, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if before or after:
        single, known = list(filter(None, [before, "$A", after])), [(token, numbers[token]) for token in special]
        template = processors.TemplateProcessing(single=single, special_tokens=known)
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, template])
    flags = {key: names.pop(key) for key in list(names) if not isinstance(names[key], str)}
    names = {"pad_token": "<pad>", "unk_token": "<unk>", **names}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **flags}))
    return folder


# What each family's published encoders put around a text.
TOKENIZERS: dict[str, dict[str, Any]] = {
    "qwen3": {"after": "<|endoftext|>", "eos_token": "<|im_end|>"},
    "llama": {"before": "<s>", "bos_token": "<s>", "eos_token": "</s>"},
    "bert": {"before": "[CLS]", "after": "[SEP]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
}


def save_encoder(name: str, folder: Path, **sizes: Any) -> Path:
    """A model of the family ``name`` with random weights, and a tokenizer of bytes that belongs to it."""
    save_tokenizer(folder, **TOKENIZERS.get(name, TOKENIZERS["bert"]))
    config = copy.deepcopy(FAMILIES[name])
    config.update({"vocab_size": 262, "pad_token_id": 1, **sizes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder
