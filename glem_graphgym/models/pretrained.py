"""A pretrained model of Hugging Face: its configuration, its weights and its tokenizer, checked against one another.

Code in a model's folder is never run: neither Python files that its configuration names nor pickles in its weights.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glem_graphgym.models.checks import ModelError
from glem_graphgym.models.hub import model_folder

# Parts that wrappers add to the names of a model's weights: DataParallel, Lightning, torch.compile, FSDP,
# sentence-transformers, and classes that hold the model in an attribute.
WRAPPERS = {
    *("0", "_checkpoint_wrapped_module", "_forward_module", "_fsdp_wrapped_module", "_orig_mod", "auto_model"),
    *("backbone", "base_model", "bert_model", "encoder", "language_model", "lm", "lm_model", "model", "module"),
    *("net", "network", "text_encoder", "text_model", "transformer"),
}
NAMED = 3  # number of weights that a message names
# Keys of the configurations with which Google published BERT, before model_type existed.
BERT_KEYS = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "type_vocab_size"}
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
DTYPES = {"32": torch.float32, **dict.fromkeys(("bf16", "8", "4"), torch.bfloat16)}  # of weights that are not quantised
BITS = ("8", "4")
PROBE = "The naïve Fox-12 jumped over 3,456 lazy dogs; GraphGym's e-mail@example.org costs $7.50 (50%)."


@dataclass(frozen=True)
class ModelFiles:
    """Locations of the files of ``lm.model``.

    Attributes:
        model: ``lm.model``, as the user named it.
        folder: the folder of ``model``, which holds modules.json if it is one of sentence-transformers.
        transformer: folder of config.json and the weights: ``folder``, one below it, or that of ``base``.
        adapter: folder of a peft adapter for these weights; None without one.
        base: files of the model that the adapter was trained on; None if the adapter's folder holds its weights too.
    """

    model: str
    folder: Path
    transformer: Path
    adapter: Path | None = None
    base: ModelFiles | None = None

    def decisive(self) -> list[Path]:
        """All files that embeddings depend on."""
        files = _globbed(self.transformer, "config.json", "*.safetensors", "pytorch_model*.bin", "tokenizer.json")
        if not (self.transformer / "tokenizer.json").exists():
            files += _globbed(self.transformer, *VOCABULARIES)
        if self.adapter:
            files += _globbed(self.adapter, "adapter_*")
        for folder in (self.folder / module["path"] for module in read_modules(self)[1] if module["path"]):
            files += [folder / "config.json", *_globbed(folder, "*model*.*")]
        files.append(self.folder / "modules.json")
        files += self.base.decisive() if self.base else []
        return [file for file in dict.fromkeys(files) if file.is_file()]


def _globbed(folder: Path, *names: str) -> list[Path]:
    return sorted(file for name in names for file in folder.glob(name))


def find_model(model: str, inside: Path | None = None, adapter_folders: tuple[Path, ...] = ()) -> ModelFiles:
    """Locate the files of ``model`` (hub id, folder or packaged model).

    The base model of an adapter is looked for ``inside`` the adapter's folder too; ``adapter_folders``: those of the
    adapters that led here.

    Raises:
        ValueError: there is no such model; an adapter names no base model, or is its own.
    """
    nested = inside / model if inside else None
    folder = nested if nested and nested.is_dir() and not Path(model).is_dir() else model_folder(model)
    transformer = folder
    _, modules = read_modules(ModelFiles(model, folder, folder))
    for path in (*(module["path"] for module in modules[:1]), "0_Transformer"):
        has_config = (transformer / "config.json").exists() or (transformer / "adapter_config.json").exists()
        if path and not has_config and (folder / path).is_dir():
            transformer = folder / path
    if not (transformer / "adapter_config.json").is_file():
        return ModelFiles(model, folder, transformer)
    files = ModelFiles(model, folder, transformer, adapter=transformer)
    if (transformer / "config.json").exists() and _globbed(transformer, "model*.safetensors", "pytorch_model*.bin"):
        return files
    name = read_json_of(transformer / "adapter_config.json", model, dict).get("base_model_name_or_path")
    if not name or folder.resolve() in adapter_folders:
        raise ModelError(
            f"lm.model '{model}' is an adapter of peft, and {transformer / 'adapter_config.json'} names no model "
            f"below it: base_model_name_or_path is {name!r}; set it to that model's folder or hub id"
        )
    try:
        base = find_model(str(name), transformer, (*adapter_folders, folder.resolve()))
        if not (base.transformer / "config.json").is_file():
            raise ModelError(f"{base.transformer} has no config.json")
    except ValueError as error:
        raise ModelError(
            f"lm.model '{model}' is an adapter of peft on base_model_name_or_path '{name}', which was not found; set "
            f"it in {transformer / 'adapter_config.json'} to that model's folder ({error})"
        ) from error
    return ModelFiles(model, folder, base.transformer, adapter=transformer, base=base)


def read_modules(files: ModelFiles) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of modules.json (the model's or its base's) and its modules with ``type`` and ``path``; [] if none."""
    file = files.folder / "modules.json"
    if not file.is_file():
        return read_modules(files.base) if files.base else (files.folder, [])
    modules = read_json_of(file, files.model, list)
    for module in modules:
        path = module.get("path") if isinstance(module, dict) else None
        if not isinstance(path, str) or not isinstance(module.get("type"), str):
            raise ModelError(f"lm.model '{files.model}': {file} is damaged: expected a type and a path, found {module}")
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ModelError(f"lm.model '{files.model}': {file} leads out of the folder: path '{path}'")
    return files.folder, modules


def read_json_of(file: Path, model: str | None, kind: type) -> Any:
    """Content of a JSON ``file`` of ``model``, of type ``kind``; a ValueError names lm.model and the file."""
    context = "lm.model" if model is None else f"lm.model '{model}'"
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{context}: {file} is missing; expected a model's folder, with weights") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{context}: {file} cannot be read as JSON ({error}); copy it anew") from error
    if not isinstance(value, kind):
        raise ModelError(f"{context}: {file} holds a {type(value).__name__}, expected a {kind.__name__}")
    return value


# ---- configuration ------------------------------------------------------------------------------------------------


def load_config(model: str) -> Any:
    """The configuration of ``model`` as transformers reads it; ValueError if transformers lacks its architecture."""
    return _config_of(find_model(model))


def _config_of(files: ModelFiles) -> Any:
    import transformers

    file = files.transformer / "config.json"
    values = read_json_of(file, files.model, dict)
    kind = values.get("model_type") or _guessed_type(values)
    if kind is None:
        raise ModelError(
            f"lm.model '{files.model}': {file} has no model_type; add the architecture's, such as \"model_type\": "
            '"bert" or "roberta"'
        )
    if kind not in transformers.CONFIG_MAPPING:
        need = "its folder's own Python, which is never run" if values.get("auto_map") else "a newer version of it"
        raise ModelError(
            f"lm.model '{files.model}': transformers {transformers.__version__} has no model_type '{kind}' ({file}); "
            f"the model needs {need}; expected a model whose architecture transformers has"
        )
    if "model_type" in values:
        load = transformers.AutoConfig.from_pretrained
        config = _call_library(load, files, str(files.transformer), trust_remote_code=False)
        if any(str(name).endswith("EncoderModel") for name in values.get("architectures") or []):
            config.is_encoder_decoder = True  # saved without its decoder (T5EncoderModel); AutoModel builds both
        return config
    return _call_library(transformers.AutoConfig.for_model, files, kind, **values)


def _guessed_type(values: dict[str, Any]) -> str | None:
    """Guess the model type of an old configuration, without one, by its architecture's name or by `BERT_KEYS`."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    names = [str(name) for name in values.get("architectures") or []]
    bases = {base.removesuffix("Model"): kind for kind, base in MODEL_MAPPING_NAMES.items() if isinstance(base, str)}
    for name in names:
        prefixes = [base for base in bases if name.startswith(base)]
        if prefixes:
            return bases[max(prefixes, key=len)]
    return "bert" if not names and values.keys() >= BERT_KEYS else None


def is_causal(config: Any) -> bool:
    """Whether tokens attend to earlier tokens only, so that only the last one sees the whole text."""
    from transformers.models.auto import modeling_auto

    kind = config.model_type
    if config.is_encoder_decoder or getattr(config, "use_bidirectional_attention", None) is True:
        return False
    if getattr(config, "is_causal", None) is False or kind == "xlnet":
        return False
    causal, masked = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return (kind in causal and kind not in masked) or bool(getattr(config, "is_decoder", False))


# ---- weights ------------------------------------------------------------------------------------------------------


def load_backbone(model: str, hf_config: Any, attention: str | None, precision: str = "32") -> Any:
    """The transformer of ``model`` with its pretrained weights, into which its adapter, if any, is merged.

    Args:
        hf_config: its configuration, possibly changed.
        attention: name of an implementation; None = transformers' default.
        precision: of the weights: ``32`` (float32), ``bf16``, or ``8`` or ``4`` bits by bitsandbytes, on a GPU.

    Raises:
        ValueError: the weights cannot be found or read, or do not fit the architecture; says how many do not.
    """
    options: dict[str, Any] = {"config": hf_config, "attn_implementation": attention, "dtype": DTYPES[precision]}
    if precision in BITS:
        options["quantization_config"] = _quantization(precision)
    return _load(find_model(model), options)


def _quantization(precision: str) -> Any:
    import transformers

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"lm.base_precision is {precision}, which needs the extra 'bits': pip install 'glem-graphgym[bits]', "
            "or set it to bf16"
        )
    if precision == "8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[precision],
    )


def _load(files: ModelFiles, options: dict[str, Any]) -> Any:
    if files.base:
        backbone = _load(files.base, options)
    else:
        backbone, misfit = _load_and_compare(files, options, {})
        if misfit.missing and (renaming := _wrapper_renaming(misfit.missing, misfit.unexpected)):
            renamed, renamed_misfit = _load_and_compare(files, options, renaming)
            if len(renamed_misfit.missing) < len(misfit.missing):
                backbone, misfit = renamed, renamed_misfit
        misfit.check(files)
    return _with_adapter(backbone, files) if files.adapter else backbone


class Misfit:
    """Differences between a model's files and its architecture, from transformers' report of loading it.

    Attributes:
        missing: names of weights that the files lack, out of ``total``, without poolers, buffers and tied weights.
        unexpected: names in the files that the architecture lacks, such as a pretraining head's.
        mismatched: (name, shape in the files, shape in the architecture) where the shapes differ.
        left_out: unexpected names that differ from a weight's in a number only: layers beyond the last.
    """

    def __init__(self, model: Any, info: dict[str, Any]) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        absent = set(info["missing_keys"]) - {name for name, *_ in info["mismatched_keys"]}
        present = {id(parameter) for name, parameter in parameters.items() if name not in absent}
        encoder = model.get_encoder() if model.config.is_encoder_decoder else model  # the decoder is not used
        used_parameters = {id(parameter) for parameter in encoder.parameters()}
        weights = [
            name for name, parameter in parameters.items() if id(parameter) in used_parameters and not _is_pooler(name)
        ]
        patterns = {re.sub(r"\.\d+\.", ".#.", name) for name in weights}
        self.total = len(weights)
        self.missing = [name for name in weights if name in absent and id(parameters[name]) not in present]
        self.unexpected = sorted(info["unexpected_keys"])
        self.mismatched = sorted(mismatch for mismatch in info["mismatched_keys"] if mismatch[0] in weights)
        self.left_out = [name for name in self.unexpected if re.sub(r"\.\d+\.", ".#.", name) in patterns]

    def check(self, files: ModelFiles) -> None:
        """Raise ValueError if weights are missing or have other shapes; warn of those left out."""
        prefix = f"lm.model '{files.model}': "
        if self.mismatched:
            name, stored, built = self.mismatched[0]
            raise ModelError(
                f"{prefix}{len(self.mismatched)} of {self.total} weights have another shape in the files than "
                f"config.json asks for, first {name}: {tuple(stored)} instead of {tuple(built)}; expected the "
                "config.json of these weights"
            )
        if self.missing:
            first = ", ".join(self.missing[:NAMED])
            held = f"; it holds {', '.join(self.unexpected[:NAMED])}" if self.unexpected else ""
            raise ModelError(
                f"{prefix}{len(self.missing)} of {self.total} weights are missing in {files.transformer}, first "
                f"{first}{held}; expected all weights of the architecture that config.json names"
            )
        if self.left_out:
            logging.warning(
                f"{prefix}{len(self.left_out)} weights in its files have no place in the architecture that config.json "
                f"describes and are left out, first {self.left_out[0]}; is its number of layers right?"
            )


def _load_and_compare(files: ModelFiles, options: dict[str, Any], renaming: dict[str, str]) -> tuple[Any, Misfit]:
    import transformers

    options = {**options, "trust_remote_code": False, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with tempfile.TemporaryDirectory() as without_adapter:
        source = files.transformer
        if files.adapter:  # transformers would load it unasked, and not say whether it fits
            source = Path(without_adapter)
            for file in files.transformer.iterdir():
                if not file.name.startswith("adapter_"):
                    (source / file.name).symlink_to(file.resolve())
        model, info = _call_library(
            transformers.AutoModel.from_pretrained, files, str(source), key_mapping=renaming or None, **options
        )
    return model, Misfit(model, info)


def _is_pooler(name: str) -> bool:
    return "pooler" in name.split(".")


def _wrapper_renaming(missing: Collection[str], unexpected: Iterable[str]) -> dict[str, str]:
    """Regular expressions that strip wrappers from names of weights; {} if two names would become the same."""
    stripped: dict[str, list[str]] = {}
    for name in unexpected:
        for bare in _without_wrappers(name):
            if bare in missing:
                stripped.setdefault(bare, []).append(name)
                break
    if not stripped or any(len(names) > 1 for names in stripped.values()):
        return {}
    prefixes = {names[0].removesuffix(bare) for bare, names in stripped.items()}
    if len(prefixes) == 1:  # which also strips names that transformers does not report, or converts
        return {f"^{re.escape(prefixes.pop())}": ""}
    return {f"^{re.escape(names[0])}$": bare for bare, names in stripped.items()}


def _without_wrappers(name: str) -> Iterable[str]:
    """``name`` without 0, 1, … leading wrappers, each time also without those between its other parts."""
    parts = name.split(".")
    for count in range(len(parts)):
        if count and parts[count - 1] not in WRAPPERS:
            return
        inner_parts = parts[count:]
        yield ".".join(inner_parts)
        yield ".".join(part for part in inner_parts if part == "module" or not part.startswith("_"))
        yield ".".join(part for part in inner_parts if part != "module" and not part.startswith("_"))


# ---- adapters of peft ---------------------------------------------------------------------------------------------


def _with_adapter(backbone: Any, files: ModelFiles) -> Any:
    """The backbone with the adapter merged into its weights."""
    try:
        import peft
        from peft.utils import load_peft_weights, set_peft_model_state_dict
    except ImportError as error:
        raise ModelError(
            f"lm.model '{files.model}' is an adapter of peft, which needs the extra 'lora': pip install "
            "'glem-graphgym[lora]'"
        ) from error
    assert files.adapter is not None
    folder = str(files.adapter)
    logging.getLogger("peft").setLevel(logging.ERROR)
    config = _call_library(peft.PeftConfig.from_pretrained, files, folder)
    modules = {name.rpartition(".")[2] for name, _ in backbone.named_modules()}
    # An adapter may come with a head and with trained embeddings; only the embeddings belong to the backbone.
    config.modules_to_save = [
        name for name in getattr(config, "modules_to_save", None) or [] if name in modules
    ] or None
    stored = _call_library(load_peft_weights, files, folder, device="cpu")
    backbone_prefix = f"base_model.model.{backbone.base_model_prefix}."
    weights = {name.replace(backbone_prefix, "base_model.model.", 1): value for name, value in stored.items()}
    adapted = _call_library(peft.PeftModel, files, backbone, config)
    if not hasattr(adapted.base_model, "merge_and_unload"):
        raise ModelError(
            f"lm.model '{files.model}': an adapter of type {config.peft_type} cannot be added to the weights; "
            "expected LoRA or a relative of it"
        )
    prefix = adapted.base_model.prefix  # lora_
    expected = [name for name, _ in adapted.named_parameters() if prefix in name and not _is_pooler(name)]
    result = _call_library(set_peft_model_state_dict, files, adapted, weights)
    missing = sorted(set(expected) & set(result.missing_keys))
    unexpected = [name for name in result.unexpected_keys if prefix in name and not _is_pooler(name)]
    if missing or unexpected or not expected:
        raise ModelError(
            f"lm.model '{files.model}': the adapter in {folder} does not fit the model that it is for: {len(missing)} "
            f"of its {len(expected)} weights are missing and {len(unexpected)} have no place, first "
            f"{', '.join((missing + unexpected)[:NAMED])}; check base_model_name_or_path in adapter_config.json"
        )
    return adapted.merge_and_unload()


# ---- prompt and tokenizer -----------------------------------------------------------------------------------------


def prompt_of(model: str, prompt: str) -> tuple[str, str]:
    """Prefix and suffix of each node's text, from ``lm.prompt``: a prefix, a template with ``{text}``, or auto.

    ``auto`` is the default prompt of a sentence-transformers folder; most have none.

    Raises:
        ValueError: a template has other braces; config_sentence_transformers.json is unreadable or lacks the prompt.
    """
    if re.search("[{}]", prompt.replace("{text}", "", 1)):
        raise ModelError(
            f"lm.prompt is '{prompt}', expected a prefix, or a template with one {{text}} and no other braces"
        )
    if prompt != "auto":
        prefix, _, suffix = prompt.partition("{text}")
        return prefix, suffix
    folder, _ = read_modules(find_model(model))
    file = folder / "config_sentence_transformers.json"
    settings = read_json_of(file, model, dict) if file.is_file() else {}
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts") or {}
    if name is None:
        return "", ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise ModelError(
            f"lm.model '{model}': {file} names '{name}' as default prompt, but has none of that name among its "
            f"prompts; set lm.prompt to a text, or to '' for none"
        )
    return prompts[name], ""


def load_tokenizer(model: str, texts: Sequence[str] = (PROBE,)) -> Any:
    """The tokenizer of ``model``; ValueError if it cannot be found or read.

    Transformers builds the class that tokenizer_config.json names, which may not be what tokenizer.json describes. If
    the two tokenise ``texts`` differently, tokenizer.json is used, and a warning says so.
    """
    import transformers
    from tokenizers import normalizers

    files = find_model(model)
    folder = _tokenizer_folder(files)
    if folder is None:
        raise ModelError(
            f"lm.model '{model}': {files.transformer} lacks the files of the tokenizer; expected tokenizer.json, or a "
            "vocabulary (vocab.txt, vocab.json with merges.txt, or *.model)"
        )
    file = folder / "tokenizer.json"
    readable = transformers.utils.is_sentencepiece_available() and transformers.utils.is_protobuf_available()
    if not file.is_file() and not readable and any(folder.glob("*.model")):
        raise ModelError(
            f"lm.model '{model}': its vocabulary {next(folder.glob('*.model'))} is one of SentencePiece; `pip install "
            "sentencepiece protobuf` to read it, or add tokenizer.json"
        )
    load = transformers.AutoTokenizer.from_pretrained
    try:
        tokenizer = _call_library(load, files, str(folder), config=_config_of(files), trust_remote_code=False)
    except ValueError:
        if not file.is_file():
            raise
        tokenizer = None
    if file.is_file():
        tokenizer = _matching_tokenizer(tokenizer, file, files, texts)
    if lowercases(files) and (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        original = [backend.normalizer] if backend.normalizer is not None else []
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *original])
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # as transformers builds it from a damaged vocabulary
        raise ModelError(f"lm.model '{model}': the tokenizer in {folder} has special tokens only; copy it anew")
    return tokenizer


def _tokenizer_folder(files: ModelFiles) -> Path | None:
    folders = [*([files.adapter] if files.adapter and files.base else []), files.transformer, files.folder]
    return next((folder for folder in folders if _globbed(folder, *VOCABULARIES)), None)


def read_tokenizer_config(model: str) -> dict[str, Any]:
    """tokenizer_config.json of ``model``; {} without one."""
    folder = _tokenizer_folder(find_model(model))
    file = folder / "tokenizer_config.json" if folder else Path()
    values: dict[str, Any] = read_json_of(file, model, dict) if file.is_file() else {}
    return values


def lowercases(files: ModelFiles) -> bool:
    """Whether sentence_bert_config.json asks for lowercase texts, whatever the tokenizer does."""
    file = (files.adapter or files.transformer) / "sentence_bert_config.json"
    return file.is_file() and bool(read_json_of(file, files.model, dict).get("do_lower_case"))


def _matching_tokenizer(tokenizer: Any, file: Path, files: ModelFiles, texts: Sequence[str]) -> Any:
    """``tokenizer`` if it tokenises ``texts`` as tokenizer.json does; else, or if it is None, that of the file."""
    import transformers
    from tokenizers import Tokenizer

    file_tokenizer = _call_library(Tokenizer.from_file, files, str(file))
    file_tokenizer.no_truncation()
    file_tokenizer.no_padding()
    texts = list(texts)
    reason = "transformers cannot make the class that its configuration names"
    if tokenizer is not None:
        ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        expected = [encoding.ids for encoding in file_tokenizer.encode_batch(texts, add_special_tokens=False)]
        differing = [i for i in range(len(texts)) if ids[i] != expected[i]]
        if not differing:
            return tokenizer
        index = differing[0]
        reason = (
            f"transformers' {type(tokenizer).__name__} cuts {len(differing)} of {len(texts)} texts in another way, "
            f"such as '{texts[index][:30]}' into {len(ids[index])} tokens instead of {len(expected[index])}"
        )
    logging.warning(f"lm.model '{files.model}': {file.name} is followed, as {reason}")
    wrapped = _call_library(
        transformers.PreTrainedTokenizerFast.from_pretrained, files, str(file.parent), trust_remote_code=False
    )
    # Without tokenizer_config.json only the class names the special tokens.
    vocabulary = file_tokenizer.get_vocab()
    named = {} if tokenizer is None else tokenizer.special_tokens_map
    missing = {key: token for key, token in named.items() if key not in wrapped.special_tokens_map}
    wrapped.add_special_tokens({key: token for key, token in missing.items() if token in vocabulary})
    return wrapped


def _call_library(load: Any, files: ModelFiles, *args: Any, **options: Any) -> Any:
    """Call a library function without progress bars; its errors become a ValueError of one line that names the key."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return load(*args, **options)
    except Exception as error:  # reading a user's files can fail in any way
        text = " ".join(str(error).split()) or repr(error)
        attention = options.get("attn_implementation")
        if attention not in (None, "eager") and "attention" in text.lower().replace("attn_implementation", "attention"):
            raise ModelError(
                f"lm.attention is '{attention}', which does not work here for lm.model '{files.model}'; expected auto, "
                f"eager, sdpa or another one that is installed. The library said: {text:.200}"
            ) from error
        raise ModelError(
            f"lm.model '{files.model}' could not be loaded: expected config.json, tokenizer and weights of one "
            f"model in {files.transformer}. The library said: {text[:300]}"
        ) from error
