"""Folders of DeBERTa (v1) models with random weights and a tokenizer for the generated texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glem_graphgym.data.synthetic import word_list
from glem_graphgym.files import make_once

# Differences between the sizes; everything else is as in microsoft/deberta-base.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 256},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
VOCABULARY = {"tiny": 2048, "base": 50_265}  # rows of the embedding table


def make_deberta(folder: Path, size: str) -> Path:
    """Make a folder that ``lm.model`` can name, unless it exists.

    Words of five letters are one token, compounds of two words are two.
    """

    def make(model_folder: Path) -> None:
        import torch
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
        from transformers import DebertaConfig, DebertaModel, PreTrainedTokenizerFast

        words, signs = word_list(512), "abcdefghijklmnopqrstuvwxyz0123456789.,:-"
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "title", "abstract", "content", *words, *signs]
        pieces += [f"##{piece}" for piece in (*words, *signs)]
        tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
        ).save_pretrained(model_folder)
        torch.manual_seed(0)
        config = DebertaConfig(
            vocab_size=VOCABULARY[size], max_position_embeddings=512, type_vocab_size=0, layer_norm_eps=1e-7,
            relative_attention=True, max_relative_positions=-1, pos_att_type=["c2p", "p2c"],
            position_biased_input=False, **SIZES[size],
        )  # fmt: skip
        DebertaModel(config).save_pretrained(model_folder)

    return make_once(folder, make)
