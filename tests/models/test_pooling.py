"""What a causal model needs to encode: its end token, both directions where that is asked for, float32 at the end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models
from torch import Tensor

from glem_graphgym.data.tokens import Prompted, encode_texts
from glem_graphgym.models.attention import CPU_ATTENTION
from glem_graphgym.models.pooling import readout_of, with_end_token
from glem_graphgym.models.pretrained import load_tokenizer
from glem_graphgym.models.text_encoder import EncoderConfig, LMHead, TextClassifier, load_text_encoder
from tests.models.families import FAMILIES, IDS, MASK, save_random, save_tokenizer

CAUSAL = ("gpt2", "qwen3", "llama", "mistral", "gemma", "gemma2", "gemma3")
LAST = {"pooling_mode": "lasttoken", "word_embedding_dimension": 16}
MODULES = [
    {"type": f"sentence_transformers.models.{kind}", "path": path, "idx": number, "name": str(number)}
    for number, (kind, path) in enumerate({"Transformer": "", "Pooling": "1_Pooling"}.items())
]


# ---- the end token ------------------------------------------------------------------------------------------------

LLAMA = {"before": "<s>", "eos_token": "</s>", "bos_token": "<s>"}


@pytest.mark.parametrize(
    ("tokenizer", "modules", "pooling", "first", "last"),
    [
        # Qwen3-Embedding: its tokenizer appends another token than its eos_token
        ({"after": "<end>", "eos_token": "<im_end>"}, True, "auto", None, "<end>"),
        # e5-mistral, GTE-Qwen2: tokenizer_config.json asks for it, tokenizer.json does not do it
        ({**LLAMA, "add_eos_token": True}, True, "auto", "<s>", "</s>"),
        ({"eos_token": "<end>", "add_eos_token": True}, True, "mean", None, "<end>"),
        # a sentence-transformers folder that asks for none has been trained without
        (LLAMA, True, "auto", "<s>", None),
        # models that write: Llama, Qwen3
        (LLAMA, False, "auto", "<s>", "</s>"),
        ({"eos_token": "<end>"}, False, "auto", None, "<end>"),
        (LLAMA, False, "mean", "<s>", None),
        ({"before": "<s>"}, False, "auto", "<s>", None),
    ],
)
def test_a_text_ends_in_the_token_that_the_model_was_trained_with(
    tokenizer: dict[str, Any], modules: bool, pooling: str, first: str | None, last: str | None, tmp_path: Path
) -> None:
    FAMILIES["llama"].save_pretrained(save_tokenizer(tmp_path, **tokenizer))
    if modules:
        (tmp_path / "modules.json").write_text(json.dumps(MODULES))
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling/config.json").write_text(json.dumps(LAST))
    readout = readout_of(str(tmp_path), pooling)
    made = with_end_token(load_tokenizer(str(tmp_path)), str(tmp_path), readout)
    made.save_pretrained(tmp_path / "again")
    for each in (made, Prompted(made, "ab: ", ""), load_tokenizer(str(tmp_path / "again"))):
        for ids in encode_texts(["abc", "", "abc" * 20], each, 8):
            tokens = made.convert_ids_to_tokens(ids)
            special = [token for token in tokens if token.startswith("<")]
            assert special == [token for token in (first, last) if token]
            assert last is None or tokens[-1] == last
            assert len(ids) <= 8


def test_a_vocabulary_without_latin_letters_gets_its_end_token_too(tmp_path: Path) -> None:
    FAMILIES["llama"].save_pretrained(tmp_path)
    tokenizer = Tokenizer(models.BPE({"</s>": 0, "б": 1}, []))
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    made.save_pretrained(tmp_path)
    made = with_end_token(made, str(tmp_path), readout_of(str(tmp_path), "auto"))
    assert made("бб")["input_ids"] == [1, 1, 0]


# ---- both directions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", [CPU_ATTENTION, "eager", None])
@pytest.mark.parametrize("family", CAUSAL)
def test_an_early_tokens_state_depends_on_later_tokens_where_that_is_asked_for(
    family: str, attention: str | None, tmp_path: Path
) -> None:
    save_random(family, tmp_path)
    config = EncoderConfig(str(tmp_path), attention=attention)
    other = IDS.clone()
    other[:, 1] = 20

    def moves(config: EncoderConfig, ids: Tensor, mask: Tensor, changed: Tensor) -> Tensor:
        backbone: Any = load_text_encoder(config).eval().backbone
        with torch.no_grad():
            first, second = (backbone(input_ids=each, attention_mask=mask)[0][:, 0] for each in (ids, changed))
        return (first != second).any(1)

    both = replace(config, bidirectional=True)
    for rows in (slice(None), slice(1)):  # with padding in the batch and without
        batch = IDS[rows], MASK[rows], other[rows]
        assert not moves(config, *batch).any()
        assert moves(both, *batch).all()
    assert moves(replace(both, gradient_checkpointing=True), IDS, MASK, other).all()
    assert str(readout_of(str(tmp_path), "auto")) == "last"
    assert str(readout_of(str(tmp_path), "auto", bidirectional=True)) == "mean"
    encoder = load_text_encoder(both).eval()
    together = encoder(IDS, MASK)
    for row, length in enumerate(MASK.sum(1).tolist()):
        torch.testing.assert_close(encoder(IDS[row : row + 1, :length], MASK[row : row + 1, :length])[0], together[row])


MAMBA = transformers.MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, state_size=4)


@pytest.mark.parametrize(("config", "why"), [(FAMILIES["bert"], "directions as it is"), (MAMBA, "earlier tokens only")])
def test_a_model_that_does_not_allow_both_directions_is_refused(config: Any, why: str, tmp_path: Path) -> None:
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^lm.bidirectional is True, but .*'{config.model_type}'.* {why}"):
        load_text_encoder(EncoderConfig(str(tmp_path), bidirectional=True))


# ---- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_embedding_and_head_are_float32_whatever_the_backbone_computes_in(pooling: str, tmp_path: Path) -> None:
    save_random("bert", tmp_path)
    model = TextClassifier(load_text_encoder(EncoderConfig(str(tmp_path), pooling, shrink_dim=5)), LMHead(5, 3)).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits, embedding = model(IDS, MASK)
    assert (logits.dtype, embedding.dtype) == (torch.float32, torch.float32)
    assert torch.equal(logits, model.head(embedding))  # outside of autocast
