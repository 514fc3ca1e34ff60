"""Language models that cannot be trained as is asked: one line that names the key, before the first stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.language_model import check_lm
from glem_graphgym.build.run import lm_learners
from glem_graphgym.data.tokens import TokenStore
from glem_graphgym.em.e_step import LMLearner
from glem_graphgym.em.fit import Validation
from glem_graphgym.memory import OutOfMemoryError
from glem_graphgym.models.text_encoder import TextEncoder
from tests.bad_inputs.conftest import Program
from tests.checks import refused
from tests.models.families import FAMILIES, save_random

TEXTS = [[2, 5, 3], [2, 7, 8, 9, 3], [2, 7, 3], [2] + [9] * 20 + [3]]


def learner(folder: Path, ids: list[list[int]] = TEXTS, pad_id: int = 0, **keys: Any) -> LMLearner:
    """The LM of a run on these texts, its model being in ``folder``."""
    cfg.lm.model, cfg.accelerator, cfg.lm.precision, cfg.lm.pooling = str(folder), "cpu", "32", "mean"
    for key, value in keys.items():
        cfg.lm[key] = value
    flat = np.array([token for text in ids for token in text], dtype=np.int32)
    store = TokenStore(flat, np.cumsum([0, *map(len, ids)]), pad_id)
    nobody = Validation(np.empty(0, dtype=np.int64), lambda logits: 0.0)
    return lm_learners(cfg, store, 3, nobody)[0]


def refusal(lm: LMLearner, *names: str) -> str:
    """The one line with which a model is refused, which holds ``names``; nothing was drawn."""
    state = torch.get_rng_state()
    message = refused(lambda: check_lm(cfg, lm), *names, error=ValueError)
    assert torch.equal(torch.get_rng_state(), state)
    return message


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    save_random("bert", tmp_path)
    return tmp_path


@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
def test_a_model_that_can_passes_and_leaves_no_trace(bert: Path, precision: str) -> None:
    lm, state = learner(bert, precision=precision), torch.get_rng_state()
    check_lm(cfg, lm)
    assert torch.equal(torch.get_rng_state(), state)


# ---- ids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [60, 61, 70_000])
def test_ids_beyond_the_embedding_table(bert: Path, largest: int) -> None:
    refusal(learner(bert, [*TEXTS, [2, largest, 3]]), "lm.model", f"{largest}", "60")


@pytest.mark.parametrize("pad_id", [60, 32_000, -1])
def test_a_padding_id_beyond_the_embedding_table(bert: Path, pad_id: int) -> None:
    refusal(learner(bert, pad_id=pad_id), "lm.model", f"{pad_id}", "60")


def test_a_larger_vocabulary_that_no_text_uses_is_no_fault(bert: Path) -> None:
    lm = learner(bert, [*TEXTS, [2, 59, 3]], pad_id=59)
    lm.tokens.ids_below = 1000
    check_lm(cfg, lm)


def test_ids_are_not_read_where_the_tokenizer_cannot_exceed_the_table(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TokenStore, "largest_id", lambda self: pytest.fail("all texts were read"))
    lm = learner(bert)
    lm.tokens.ids_below = 60
    check_lm(cfg, lm)


def test_a_whole_run_with_a_tokenizer_of_another_model(program: Program, tmp_path: Path) -> None:
    folder = tmp_path / "smaller"
    shutil.copytree(program.tiny_lm, folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.vocab_size = 40
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    program.refuses("lm.model", folder, names=["lm.model", "40"])


# ---- any exception ------------------------------------------------------------------------------------------------


FAULTS: list[BaseException] = [
    *(kind("out\nof order") for kind in (TypeError, KeyError, AttributeError, AssertionError, ZeroDivisionError)),
    *(kind("out of order") for kind in (ValueError, RuntimeError, IndexError, NotImplementedError, OSError)),
    *(RuntimeError(), StopIteration(), RecursionError("deep"), FloatingPointError("nan")),
]


@pytest.mark.parametrize("where", ["load_text_encoder", "forward"])
@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_whatever_a_model_raises(bert: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, where: str) -> None:
    place = "models.text_encoder.TextEncoder" if where == "forward" else "build.language_model"
    monkeypatch.setattr(f"glem_graphgym.{place}.{where}", Mock(side_effect=fault))
    refusal(learner(bert), f"lm.model {bert}", type(fault).__name__)


@pytest.mark.parametrize("fault", [MemoryError(), OutOfMemoryError("no"), RuntimeError("CUDA error: out of memory")])
def test_memory_that_runs_out_is_not_the_models_fault(
    bert: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    monkeypatch.setattr(TextEncoder, "forward", Mock(side_effect=fault))
    with pytest.raises(type(fault)) as caught:
        check_lm(cfg, learner(bert))
    assert caught.value is fault


# ---- precision ----------------------------------------------------------------------------------------------------


def overflowing(self: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    states = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    half = torch.is_autocast_enabled("cpu")
    return states.mean(1) * (torch.full((), 1e6, dtype=torch.float16) if half else 1.0)


def stopping(self: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    states = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    if torch.is_autocast_enabled("cpu"):
        states = states.bfloat16().masked_fill(states > 0, torch.finfo(torch.float32).min)
    return states.mean(1)


@pytest.mark.parametrize("precision", ["16", "bf16"])
@pytest.mark.parametrize("forward", [overflowing, stopping])
def test_what_only_fails_in_half_precision_says_so(
    bert: Path, monkeypatch: pytest.MonkeyPatch, forward: Callable[..., torch.Tensor], precision: str
) -> None:
    monkeypatch.setattr(TextEncoder, "forward", forward)
    refusal(learner(bert, precision=precision), "lm.model", "lm.precision", "32")
    check_lm(cfg, learner(bert, precision="32"))


def test_a_model_that_is_not_to_be_trained_need_not_be_trainable(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_predicts(self: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return torch.zeros(len(ids), 16)

    monkeypatch.setattr(TextEncoder, "forward", only_predicts)
    check_lm(cfg, learner(bert, epochs=0))
    refusal(learner(bert, epochs=1))


# ---- what a family cannot -----------------------------------------------------------------------------------------


CANNOT: list[tuple[str, str, float]] = [
    *((name, "gradient_checkpointing", True) for name in ("albert", "mpnet", "xlnet")),
    *((name, "dropout", 0.3) for name in ("eurobert", "qwen3", "llama", "mistral", "gemma", "gemma2", "gemma3")),
    *((name, "attention_dropout", 0.3) for name in ("xlnet", "t5")),
    *(("albert", "freeze_layers", count) for count in (1, 2, 12)),
    *((name, "freeze_layers", 5) for name in FAMILIES if name != "albert"),
]


@pytest.mark.parametrize(("name", "key", "value"), CANNOT)
def test_what_a_family_cannot_names_the_key(name: str, key: str, value: float, tmp_path: Path) -> None:
    FAMILIES[name].save_pretrained(tmp_path)
    message = refusal(learner(tmp_path, **{"pretrained": False, key: value}))
    assert message.startswith(f"lm.{key} is {value}, but ")


@pytest.mark.parametrize("name", ["bert", "deberta", "roberta", "gpt2", "bart"])
def test_texts_longer_than_the_model_has_positions_for(name: str, tmp_path: Path) -> None:
    save_random(name, tmp_path)
    if name == "deberta":
        save_config(tmp_path, position_biased_input=True)
    refusal(learner(tmp_path, [*TEXTS, [2] + [9] * 60 + [3]], pretrained=False), "lm.max_length", "62")


def save_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


NO_ENCODERS = {
    "a vision model": transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2),
    "of two towers": transformers.CLIPConfig(
        text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 60},
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    ),
    "of speech": transformers.Wav2Vec2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2),
    "heads that do not divide the width": transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=3
    ),
    "an unknown activation": transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, hidden_act="nothing"
    ),
}


@pytest.mark.parametrize("what", list(NO_ENCODERS))
def test_what_is_no_encoder_of_texts(what: str, tmp_path: Path) -> None:
    NO_ENCODERS[what].save_pretrained(tmp_path)
    refusal(learner(tmp_path, pretrained=False), "lm.model", f"{tmp_path}")


@pytest.mark.parametrize("name", ["fnet", *FAMILIES])
def test_a_model_that_sees_the_padding_is_warned_of(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if name == "fnet":
        transformers.FNetConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2).save_pretrained(tmp_path)
    else:
        save_random(name, tmp_path)
    check_lm(cfg, learner(tmp_path, pretrained=name != "fnet"))
    assert ("sees the padding" in caplog.text) == (name == "fnet")
    assert ("lm.model" in caplog.text) == (name == "fnet")


@pytest.mark.parametrize("attention", ["foo", "flash_attention_2", "Eager", "none"])
def test_an_attention_that_there_is_not(attention: str, program: Program) -> None:
    """FlashAttention needs a package that is not installed here."""
    program.refuses("lm.attention", attention, names=["lm.attention", attention])
