"""Pooling of a text's token states into its embedding, by ``lm.pooling`` and a sentence-transformers folder."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glem_graphgym.models.checks import ModelError
from glem_graphgym.models.pretrained import (
    find_model,
    is_causal,
    load_config,
    read_json_of,
    read_modules,
    read_tokenizer_config,
)

POOLINGS = ("mean", "cls", "last")
# Names in sentence-transformers: those since version 6, and the flags before it.
MODES = {
    **{"cls": "cls", "mean": "mean", "lasttoken": "last"},
    **{"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"},
}
TRANSFORMERS = ("Transformer", "BERT", "RoBERTa", "DistilBERT", "ALBERT", "XLNet", "CamemBERT", "XLMRoBERTa")
CLS_LAST = ("xlnet",)  # model types whose CLS token is the last of a text
LEFT_OUT = ("Normalize", "Dropout")  # no weights; the layers after the embedding have a scale and dropout of their own


@dataclass(frozen=True)
class Readout:
    """The function from a text's token states to its embedding.

    Attributes:
        pooling: ``mean`` of the text's tokens, ``cls`` (the first one) or ``last``.
        dense: folders of the Dense modules that follow, in order; ``left_out``: modules that are not applied.
        source: origin of the pooling (key, file or rule), for the log; ``warning``: a message to the user, if any.
    """

    pooling: str
    dense: tuple[Path, ...] = ()
    source: str = ""
    left_out: tuple[str, ...] = ()
    warning: str = ""

    def __str__(self) -> str:
        """Short name, such as ``mean`` or ``mean + 2_Dense``."""
        return " + ".join([self.pooling, *(folder.name for folder in self.dense)])

    def log(self, model: str) -> None:
        left_out = f"; {', '.join(self.left_out)} of its modules.json left out" if self.left_out else ""
        logging.info(f"lm.model {model}: a text's embedding is {self} ({self.source}){left_out}")
        if self.warning:
            logging.warning(self.warning)


def readout_of(model: str, pooling: str, bidirectional: bool = False) -> Readout:
    """The readout of ``model`` under ``lm.pooling`` (mean, cls, last, or auto).

    ``auto`` follows modules.json of a sentence-transformers folder, Dense modules included; without that file it is
    ``last`` for causal models and ``mean`` for others. An explicit pooling overrides modules.json: if they differ, a
    warning says so, and the Dense modules, trained on the folder's pooling, are left out.

    Args:
        bidirectional: whether a causal model attends in both directions, so that each token sees the whole text.

    Raises:
        ValueError: the model cannot be found, its modules are not supported, ``cls`` would pool a token that is not its
            CLS token or sees none of the text, or ``bidirectional`` is set for a model that is not causal.
    """
    if pooling not in ("auto", *POOLINGS):
        raise ModelError(f"lm.pooling is '{pooling}', expected one of: auto, {', '.join(POOLINGS)}")
    folder, modules = read_modules(find_model(model))
    config = load_config(model)
    causal = is_causal(config)
    if bidirectional and not causal:
        raise ModelError(
            f"lm.bidirectional is True, but lm.model {model} (model type '{config.model_type}') attends in both "
            "directions as it is; expected False, or a causal model"
        )
    causal = causal and not bidirectional
    if not modules:
        if pooling == "auto":
            pooling, source = ("last", "a causal model") if causal else ("mean", "the model says none")
            return Readout(pooling, source=source)
        readout = Readout(pooling, source="lm.pooling")
    else:
        readout = _modules_readout(model, folder, modules, pooling)
    if readout.pooling == "cls":
        mistake = (
            f"lm.pooling is 'cls' ({readout.source}), but the first token of {model} (model type '{config.model_type}')"
        )
        if causal:
            raise ModelError(
                f"{mistake} has seen nothing of its text, as in every causal model; expected last, or mean"
            )
        if config.model_type in CLS_LAST and readout.source == "lm.pooling":
            raise ModelError(f"{mistake} is a word: it puts its CLS token last; expected last, or mean")
    return readout


def _modules_readout(model: str, folder: Path, modules: list[dict[str, Any]], pooling: str) -> Readout:
    file = folder / "modules.json"
    try:
        described = _described_readout(folder, modules)
    except _UnsupportedError as error:
        if pooling == "auto":
            raise ModelError(
                f"lm.model '{model}': {file} asks for {error}, which is not supported; set lm.pooling to mean, "
                "cls or last to take the transformer alone"
            ) from error
        warning = f"lm.pooling is '{pooling}', but {file} asks for {error}: what follows the transformer is left out"
        return Readout(pooling, source="lm.pooling", warning=warning)
    if pooling in ("auto", described.pooling):
        return described
    return Readout(
        pooling,
        source="lm.pooling",
        left_out=(*(folder.name for folder in described.dense), *described.left_out),
        warning=f"lm.pooling is '{pooling}', but {file} says that lm.model {model} was trained with '{described}'",
    )


class _UnsupportedError(Exception):
    """Something in modules.json that is not supported; the message says what."""


def _described_readout(folder: Path, modules: list[dict[str, Any]]) -> Readout:
    """The readout that modules.json describes."""
    pooling, dense, left_out = "", [], []
    for index, module in enumerate(modules):
        origin, _, name = module["type"].rpartition(".")
        path = folder / module["path"]
        if origin.split(".")[0] != "sentence_transformers":
            raise _UnsupportedError(f"'{module['type']}', code of its own, which is never run")
        if index == 0 and name in TRANSFORMERS:
            continue
        if name == "Pooling" and not pooling:
            pooling = _pooling_of(_settings(path), path)
        elif name == "Dense" and pooling:
            _check_dense(_settings(path), path)
            dense.append(path)
        elif name in LEFT_OUT and pooling:
            left_out.append(path.name if module["path"] else name)
        else:
            raise _UnsupportedError(f"'{module['type']}' as module {index}")
    if not pooling:
        raise _UnsupportedError("no Pooling module")
    return Readout(pooling, tuple(dense), "modules.json", tuple(left_out))


def _settings(folder: Path) -> dict[str, Any]:
    """Content of config.json of a Pooling or Dense module; other modules may have none."""
    values: dict[str, Any] = read_json_of(folder / "config.json", None, dict)
    return values


def _pooling_of(settings: dict[str, Any], folder: Path) -> str:
    mode = settings.get("pooling_mode")
    if mode is None:
        flags = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value]
        modes = flags or ["mean"]
    else:
        modes = [mode] if isinstance(mode, str) else list(mode)
    if len(modes) != 1 or modes[0] not in MODES:
        raise _UnsupportedError(f"pooling {' and '.join(map(str, modes))} ({folder / 'config.json'})")
    return MODES[modes[0]]


# ---- end token ----------------------------------------------------------------------------------------------------


def with_end_token(tokenizer: Any, model: str, readout: Readout) -> Any:
    """Let ``tokenizer`` end every text, truncated or not, in its end token, if ``model`` needs it; returns it.

    The last token of a causal model represents the text. Most encoders' tokenizers put a special token there. Others
    get their end token appended if tokenizer_config.json says ``add_eos_token``, which transformers 5 does not read, or
    if the last token is pooled without a modules.json that says so: such models were made to generate, not to encode.
    """
    backend, end = getattr(tokenizer, "backend_tokenizer", None), tokenizer.eos_token
    if backend is None or end is None or any(backend.encode("a").special_tokens_mask[-1:]):
        return tokenizer
    adds_end_token = read_tokenizer_config(model).get("add_eos_token") is True
    if adds_end_token or (readout.pooling == "last" and readout.source != "modules.json"):
        _append_token(backend, end, tokenizer.eos_token_id)
        logging.info(f"lm.model {model}: every text ends in {end}")
    return tokenizer


def _append_token(backend: Any, token: str, number: int) -> None:
    """Let a tokenizer of the library tokenizers append ``token`` to a text, after its other special tokens."""
    from tokenizers import processors

    processor = json.loads(backend.post_processor.__getstate__()) if backend.post_processor else None
    steps = (
        processor["processors"] if processor and processor["type"] == "Sequence" else [processor] if processor else []
    )
    if all(step["type"] != "TemplateProcessing" for step in steps):
        steps.append(json.loads(processors.TemplateProcessing().__getstate__()))  # a template of the text alone
    template = next(step for step in reversed(steps) if step["type"] == "TemplateProcessing")
    template["single"].append({"SpecialToken": {"id": token, "type_id": 0}})
    template["special_tokens"][token] = {"id": token, "ids": [number], "tokens": [token]}
    sequence = processors.Sequence([])
    sequence.__setstate__(json.dumps({"type": "Sequence", "processors": steps}).encode())
    backend.post_processor = sequence


# ---- Dense --------------------------------------------------------------------------------------------------------


def load_dense(folder: Path, pretrained: bool) -> nn.Sequential:
    """A Dense module of sentence-transformers from its folder, with random weights unless ``pretrained``."""
    settings = _settings(folder)
    width, columns = int(settings["in_features"]), int(settings["out_features"])
    linear = nn.Linear(width, columns, bias=bool(settings.get("bias", True)))
    dense = nn.Sequential(OrderedDict(linear=linear, activation=_activation(settings)()))
    if not pretrained:
        return dense
    safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    file = safe if safe.is_file() else pickled
    try:
        if file is safe:
            from safetensors.torch import load_file

            weights = load_file(file)
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
        dense.load_state_dict({name: value.float() for name, value in weights.items()})
    except Exception as error:  # reading a user's file can fail in any way
        text = " ".join(str(error).split())[:200]
        raise ModelError(f"lm.model: {file} does not hold the weights that its config.json asks for: {text}") from error
    return dense


def width_after(folders: tuple[Path, ...], hidden: int) -> int:
    """Width of an embedding after the Dense modules in ``folders``, from token states of width ``hidden``."""
    return int(_settings(folders[-1])["out_features"]) if folders else hidden


def _check_dense(settings: dict[str, Any], folder: Path) -> None:
    sizes = [settings.get("in_features"), settings.get("out_features")]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ModelError(f"lm.model: {folder / 'config.json'} has in_features and out_features {sizes}, expected sizes")
    names = [settings.get(key) or "sentence_embedding" for key in ("module_input_name", "module_output_name")]
    if names != ["sentence_embedding"] * 2 or settings.get("use_residual"):
        raise _UnsupportedError(f"a Dense module on {names[0]}, or with a residual ({folder / 'config.json'})")
    _activation(settings)


def _activation(settings: dict[str, Any]) -> type[nn.Module]:
    """The activation of torch.nn that the settings name; nothing is imported for it."""
    path = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = path.rpartition(".")[2]
    if not path.startswith("torch.nn.") or name not in (*nn.modules.activation.__all__, "Identity"):
        raise _UnsupportedError(f"the activation '{path}'")
    activation: type[nn.Module] = getattr(nn, name)
    return activation
