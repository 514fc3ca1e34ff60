"""Builds and checks the language model of a configuration: encoder, head, attention, device and precision."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from glem_graphgym.build.graph import load_text_graph_of, open_tokens, readout_for
from glem_graphgym.config import ConfigError
from glem_graphgym.data.tokens import TokenStore
from glem_graphgym.em.checkpoint import random_state, set_random_state
from glem_graphgym.em.e_step import LMLearner, LMSettings, LMTask, encode_in_parts, text_parts
from glem_graphgym.em.fit import Validation, to_device
from glem_graphgym.hardware import Hardware
from glem_graphgym.memory import is_out_of_memory
from glem_graphgym.models.attention import CPU_ATTENTION
from glem_graphgym.models.checks import ModelError
from glem_graphgym.models.pretrained import BITS, prompt_of
from glem_graphgym.models.text_encoder import EncoderConfig, LMHead, TextClassifier, load_text_encoder

CPU_TOKENS, GPU_TOKENS = 4096, 65536  # padded tokens per inference batch; on a CPU, what fits into its cache
PADDING_LIMIT = 0.01  # warn if padding changes an embedding by a larger relative difference
CPU_MICRO_TOKENS, GPU_MICRO_TOKENS = 1024, 16384  # padded tokens per micro-batch of joint training; cf. CPU_TOKENS


def build_lm(config: EncoderConfig, num_classes: int, head_dropout: float) -> TextClassifier:
    encoder = load_text_encoder(config)
    return TextClassifier(encoder, LMHead(encoder.dim, num_classes, head_dropout))


def check_lm(cfg: CfgNode, learner: LMLearner) -> dict[str, Any]:
    """Train on two short texts and encode the longest one, so that a model that cannot is refused before any stage.

    Warns if padding changes the model's embeddings.

    Returns:
        Facts about the model, for reports; see `model_card`.

    Raises:
        ValueError: the model cannot train or encode, or cannot be loaded as configured.
    """
    name = f"lm.model {cfg.lm.model}"
    with random_state_kept(learner.hardware):
        with as_config_error(f"{name} cannot be built", "expected an encoder of texts that transformers knows"):
            task = learner.start()
        _check_ids(name, task)
        if learner.settings.epochs > 0:
            _check_training(name, task)
        with as_config_error(
            f"{name} cannot encode the longest text, of {int(learner.tokens.lengths.max()):,} tokens",
            f"set lm.max_length, now {cfg.lm.max_length}, to what the model takes",
        ):
            task.encode_longest()
        tolerance = PADDING_LIMIT if cfg.lm.base_precision == "32" else 5 * PADDING_LIMIT  # lower precisions round more
        if (difference := task.padding_error()) > tolerance:
            logging.warning(
                f"{name} sees the padding: batched with a longer text, a text's embedding differs by {difference:.0%}; "
                "expected a model that takes attention_mask"
            )
    return model_card(cfg, task)


def model_card(cfg: CfgNode, task: LMTask) -> dict[str, Any]:
    """Facts about the model: name, family, numbers of parameters and trained parameters, prompt, pooling, precision."""
    backbone: Any = task.model.encoder.backbone
    sizes = {parameter: parameter.numel() for parameter in backbone.parameters()}
    quantised = {"8": "8 bits", "4": "4 bits"}
    return {
        "model": cfg.lm.model,
        "family": backbone.config.model_type,
        "parameters": sum(sizes.values()),
        "trained": sum(size for parameter, size in sizes.items() if parameter.requires_grad),
        "pooling": str(readout_for(cfg)),
        "prompt": "{text}".join(prompt_of(cfg.lm.model, cfg.lm.prompt)),
        "precision": task.hardware.precision,
        "base": quantised.get(cfg.lm.base_precision, cfg.lm.base_precision),
        "attention": backbone.config._attn_implementation + (", bidirectional" if cfg.lm.bidirectional else ""),
    }


def _check_ids(name: str, task: LMTask) -> None:
    """Refuse a tokenizer whose ids exceed the rows of the model's embedding table."""
    try:
        table = task.model.encoder.backbone.get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        return
    if not isinstance(table, nn.Embedding):
        return
    tokens = task.tokens
    rows, remedy = table.num_embeddings, "expected the tokenizer that the model was trained with"
    if not 0 <= tokens.pad_id < rows:
        raise ConfigError(
            f"{name}: its tokenizer pads with id {tokens.pad_id}, but its embedding table has {rows:,} rows; {remedy}, "
            "or a pad_token in tokenizer_config.json that is in its vocabulary"
        )
    if tokens.ids_below is None or tokens.ids_below > rows:
        largest = tokens.largest_id()
        if largest >= rows:
            raise ConfigError(
                f"{name}: its tokenizer gives these texts ids up to {largest}, but its embedding table has {rows:,} "
                f"rows; {remedy}"
            )


def _check_training(name: str, task: LMTask) -> None:
    """Refuse a model that fails in a training step; say whether half precision is the cause."""
    full_precision = Hardware(task.hardware.accelerator)
    remedy = "expected a model that gives last_hidden_state for input_ids and attention_mask"
    try:
        task.try_step(task.hardware)
    except Exception as error:
        if task.hardware != full_precision and not is_out_of_memory(error):
            with contextlib.suppress(Exception):
                task.try_step(full_precision)
                remedy = "set lm.precision to 32, in which it can"
        with as_config_error(f"{name} cannot be trained in {task.hardware.precision}", remedy):
            raise


@contextlib.contextmanager
def as_config_error(problem: str, remedy: str, named: type[Exception] = ModelError) -> Iterator[None]:
    """A block whose errors, of foreign code, become a ConfigError of one line.

    Errors of type ``named``, which name the key at fault themselves, and out-of-memory errors pass.
    """
    try:
        yield
    except (ConfigError, named):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        lines = [type(error).__name__, *str(error).splitlines()[:1]]
        raise ConfigError(f"{problem}: {': '.join(lines)}; {remedy}") from error


@contextlib.contextmanager
def random_state_kept(hardware: Hardware) -> Iterator[None]:
    """Context that restores the random state on exit."""
    if hardware.accelerator == "cuda":
        torch.cuda.init()
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def encoder_config(cfg: CfgNode, hardware: Hardware, **changes: Any) -> EncoderConfig:
    """The encoder that ``lm.*`` describes, with ``changes`` of its attributes."""
    lm, attention = cfg.lm, cfg.lm.attention
    if lm.base_precision in BITS and hardware.accelerator != "cuda":
        raise ConfigError(
            f"lm.base_precision is {lm.base_precision}, but bitsandbytes quantises for GPUs alone, and this run "
            f"computes on {hardware.accelerator}; expected bf16 or 32"
        )
    if attention == "auto":  # not measured: ours on a CPU, transformers' own choice on a GPU
        attention = CPU_ATTENTION if hardware.accelerator == "cpu" else None
    settings = {field.name: lm[field.name] for field in fields(EncoderConfig) if field.name in lm}
    settings |= {"attention": attention, "lora_targets": tuple(lm.lora_targets)}
    return EncoderConfig(**{**settings, **changes})


def infer_tokens(cfg: CfgNode, hardware: Hardware) -> int:
    return cfg.lm.infer_tokens or (CPU_TOKENS if hardware.accelerator == "cpu" else GPU_TOKENS)


def micro_batch_tokens(cfg: CfgNode, hardware: Hardware) -> int:
    return cfg.lm.micro_batch_tokens or (CPU_MICRO_TOKENS if hardware.accelerator == "cpu" else GPU_MICRO_TOKENS)


class TextEmbeddings(nn.Module):
    """Node encoder for GraphGym's own training: ``batch.n_id``, node ids (n,) -> text embeddings (n, H).

    Texts are encoded in micro-batches of ``lm.infer_tokens`` padded tokens. With gradients, if there are several, each
    is recomputed in the backward pass: a whole graph's texts need the memory of one, and about a third more time.

    The texts are those that ``dataset.*`` describes, in the cache that the loader has filled, for ``lm.model``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        if cfg.dataset.format != "TAG":
            raise ValueError(
                f"dataset.format is '{cfg.dataset.format}', but a text encoder needs texts; expected 'TAG'"
            )
        hardware = hardware_for(cfg, "32")
        config = encoder_config(cfg, hardware)
        self.tokens = open_tokens(cfg, load_text_graph_of(cfg, quiet=True))
        self.budget = infer_tokens(cfg, hardware)
        self.encoder = load_text_encoder(config)
        readout_for(cfg).log(cfg.lm.model)

    def forward(self, nodes: Tensor) -> Tensor:
        texts = text_parts(self.tokens, nodes.cpu().numpy(), self.budget)
        return encode_in_parts(self.encoder, to_device(texts, nodes.device), recompute_from=2)


def hardware_for(cfg: CfgNode, precision: str) -> Hardware:
    """Device and precision; ``auto`` is bf16 if the hardware has it, else float32 on a CPU and float16 on a GPU."""
    accelerator = cfg.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator not in ("cpu", "cuda") or (accelerator == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"accelerator is '{accelerator}', expected auto, cpu, or cuda where torch sees a GPU")
    if precision == "auto":
        if accelerator == "cuda":
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "16"
        else:
            has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            precision = "bf16" if has_bf16 else "32"
    names = {"32": "32-true", "tf32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
    return Hardware(accelerator, names[precision], tf32=precision == "tf32" and accelerator == "cuda")


def gnn_hardware(cfg: CfgNode) -> Hardware:
    """Device and precision of the M-step; on a GPU ``gnn.precision: auto`` is TensorFloat-32.

    The published GNNs were trained in float32. On a GPU their time goes into products with the graph, which bf16 would
    halve at the price of rounding; TF32 keeps float32's memory and range, and rounds only in matrix products.
    """
    hardware = hardware_for(cfg, "32")
    is_auto = cfg.gnn.precision == "auto" and hardware.accelerator == "cuda"
    return hardware_for(cfg, "tf32" if is_auto else cfg.gnn.precision)


def lm_hardware(cfg: CfgNode) -> Hardware:
    """Device, precision and strategy of the language model."""
    return replace(hardware_for(cfg, cfg.lm.precision), strategy=cfg.lm.strategy)


def untuned_lm(cfg: CfgNode, tokens: TokenStore) -> LMLearner:
    """The pretrained LM, ready to predict; its embeddings are meaningful, its logits are not."""
    hardware = lm_hardware(cfg)
    # No bottleneck: untrained, it would be a random projection.
    config = encoder_config(cfg, hardware, shrink_dim=0, dropout=-1.0, attention_dropout=-1.0)
    no_validation = Validation(np.empty(0, dtype=np.int64), lambda logits: 0.0)
    settings = LMSettings(infer_tokens=infer_tokens(cfg, hardware))
    return LMLearner(tokens, lambda: build_lm(config, 1, 0.0), settings, no_validation, hardware)
