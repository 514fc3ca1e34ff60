"""A saved text encoder is read again as it was, whatever its family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from glem_graphgym.models.pooling import readout_of
from glem_graphgym.models.pretrained import load_config, load_tokenizer
from glem_graphgym.models.saving import save_text_encoder
from glem_graphgym.models.text_encoder import EncoderConfig, load_text_encoder
from tests.models.families import FAMILIES, IDS, MASK, save_random


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_encoder_is_read_again(family: str, tiny_lm: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    save_random(family, model)
    out.mkdir()
    encoder = load_text_encoder(EncoderConfig(str(model), shrink_dim=4)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.1)  # no longer what the model's own files hold
        expected = encoder(IDS, MASK)
        save_text_encoder(encoder, load_tokenizer(str(tiny_lm)), out, str(model), max_length=8)
        again = load_text_encoder(EncoderConfig(str(out))).eval()
        torch.testing.assert_close(again(IDS, MASK), expected)
    assert str(readout_of(str(out), "auto")) == f"{encoder.pooling} + 2_Dense"


def test_settings_of_training_are_not_saved(tiny_lm: Path, tmp_path: Path) -> None:
    encoder = load_text_encoder(EncoderConfig(str(tiny_lm), dropout=0.4, attention_dropout=0.3))
    save_text_encoder(encoder, load_tokenizer(str(tiny_lm)), tmp_path, str(tiny_lm), max_length=8)
    saved, own = load_config(str(tmp_path)), load_config(str(tiny_lm))
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    assert [getattr(saved, name) for name in names] == [getattr(own, name) for name in names]
    assert load_tokenizer(str(tmp_path)).model_max_length == 8


@pytest.mark.parametrize(("family", "said"), [("bert", "lora_rank is 0"), ("t5", "an encoder-decoder model")])
def test_adapters_that_cannot_be_saved_alone_are_refused(family: str, said: str, tiny_lm: Path, tmp_path: Path) -> None:
    if family == "t5":
        pytest.importorskip("peft", reason="the extra 'lora' is missing")
    save_random(family, tmp_path)
    encoder = load_text_encoder(EncoderConfig(str(tmp_path), lora_rank=2 if family == "t5" else 0))
    with pytest.raises(ValueError, match=said):
        save_text_encoder(encoder, load_tokenizer(str(tiny_lm)), tmp_path, str(tmp_path), max_length=8, adapter=True)
