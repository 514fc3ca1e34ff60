"""Export of a text encoder to a sentence-transformers folder, which `readout_of` and `load_text_encoder` can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from glem_graphgym.files import write_json
from glem_graphgym.models.pretrained import find_model, is_causal, load_backbone, load_config, lowercases
from glem_graphgym.models.text_encoder import ATTENTION_DROPOUT, HIDDEN_DROPOUT, TextEncoder

POOLING = {"mean": "mean", "cls": "cls", "last": "lasttoken"}  # lm.pooling -> sentence-transformers' name


def save_text_encoder(
    encoder: TextEncoder, tokenizer: Any, folder: Path, model: str, max_length: int, adapter: bool = False
) -> None:
    """Write ``encoder`` into an existing ``folder``: modules Transformer, Pooling, and Dense for its linear layers.

    Adapters are merged in place, so the encoder must not be used afterwards.

    Args:
        tokenizer: that of ``model``, with a padding token, as the encoder was trained with.
        model: the pretrained model that the encoder was made from, as ``lm.model`` names it.
        max_length: maximum number of tokens per text, special ones included.
        adapter: write only the peft adapters, with ``model`` as their base.

    Raises:
        ValueError: with ``adapter``: there are no adapters, or ``model`` alone would not be their base; without: the
            base is quantised, so that adapters cannot be merged.
    """
    backbone: Any = encoder.backbone
    files, original = find_model(model), load_config(model)
    is_adapted, hidden = hasattr(backbone, "merge_and_unload"), int(backbone.config.hidden_size)
    reasons = {
        "lm.lora_rank is 0, so there is none": not is_adapted,
        f"lm.model '{model}' is an adapter itself": files.adapter is not None,
        "lm.bidirectional is True, which adapters do not store": is_causal(original) and not is_causal(backbone.config),
        f"lm.model '{model}' is an encoder-decoder model, and only its encoder is used": original.is_encoder_decoder,
    }
    if adapter and (obstacles := [reason for reason, is_true in reasons.items() if is_true]):
        raise ValueError(
            f"--adapter asks for adapters alone, but {obstacles[0]}; leave it out, and the whole LM is written"
        )
    if not adapter and getattr(backbone.config, "quantization_config", None):
        raise ValueError(
            "lm.base_precision has quantised the base, into which adapters cannot be merged; export them with --adapter"
        )
    if adapter:
        is_local = Path(model).expanduser().is_dir() or files.transformer != files.folder
        for config in backbone.peft_config.values():
            config.base_model_name_or_path = str(files.transformer.resolve()) if is_local else model
        backbone.save_pretrained(folder, save_embedding_layers=False)
    else:
        exported = backbone.float().merge_and_unload() if is_adapted else backbone
        for name in (*HIDDEN_DROPOUT, *ATTENTION_DROPOUT):  # the run's dropout is a setting of its training
            if hasattr(exported.config, name):
                setattr(exported.config, name, getattr(original, name))
        if original.is_encoder_decoder:  # saved with its decoder: without it the names of weights differ
            trained_encoder, exported = exported, load_backbone(model, original, None)
            exported.get_encoder().load_state_dict(trained_encoder.state_dict())
        exported.save_pretrained(folder)
    tokenizer.padding_side, tokenizer.model_max_length = "right", max_length
    tokenizer.save_pretrained(folder)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": lowercases(files)})
    pooling = {"word_embedding_dimension": hidden, "pooling_mode": POOLING[encoder.pooling]}
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", pooling)
    dense: list[Any] = [(module.linear, module.activation) for module in encoder.dense]
    if isinstance(encoder.shrink, nn.Linear):
        dense.append((encoder.shrink, nn.Identity()))
    for linear, activation in dense:
        path = f"{len(modules)}_Dense"
        save_dense(linear, folder / path, activation)
        modules.append(("Dense", path))
    kinds = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(modules)
    ]
    write_json(folder / "modules.json", kinds)


def save_dense(linear: nn.Linear, folder: Path, activation: nn.Module | None = None, **extra_settings: Any) -> None:
    """Write a linear layer as a Dense module of sentence-transformers; ``extra_settings`` go into its config.json."""
    kind = type(activation or nn.Identity())
    settings = {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": linear.bias is not None,
        "activation_function": f"{kind.__module__}.{kind.__qualname__}",
        **extra_settings,
    }
    folder.mkdir()
    write_json(folder / "config.json", settings)
    save_file({f"linear.{name}": value.contiguous() for name, value in linear.state_dict().items()},
              folder / "model.safetensors")  # fmt: skip
