"""Every family of models that ``lm.model`` may name encodes, trains and is adapted through our own code."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from glem_graphgym.em.e_step import LMSettings, lm_optimizer
from glem_graphgym.em.optim import decay_groups, use_sparse_gradients
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.attention import CPU_ATTENTION
from glem_graphgym.models.text_encoder import EncoderConfig, LMHead, TextClassifier, TextEncoder, load_text_encoder
from tests.models.families import FAMILIES, IDS, MASK, save_random

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Roundings to half precision in a layer, forward and back: the inputs and results of ten or so products, attention
# weights and activations. Each is an error of up to the type's unit roundoff, and independent errors add as squares do.
ROUNDINGS = 32

Folder = Callable[[str], Path]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            save_random(name, made[name])
        return made[name]

    return folder


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest, folder_of: Folder) -> EncoderConfig:
    return EncoderConfig(str(folder_of(request.param)), pooling="mean", attention=CPU_ATTENTION)


def far(a: Tensor, b: Tensor) -> float:
    """Relative distance of two tensors."""
    return float(((a.float() - b.float()).norm() / b.norm()).detach())


def tolerance(encoder: TextEncoder, dtype: torch.dtype) -> float:
    """Bound of `far` between half precision and float32."""
    config: Any = encoder.backbone.config
    return (ROUNDINGS * config.num_hidden_layers) ** 0.5 * torch.finfo(dtype).eps / 2


# ---- padding and attention ----------------------------------------------------------------------------------------


def test_a_text_is_embedded_alike_alone_and_in_a_batch_by_every_attention(family: EncoderConfig) -> None:
    embedded = {}
    for attention in (CPU_ATTENTION, "eager", None):
        encoder = load_text_encoder(replace(family, attention=attention)).eval()
        for encoder.pooling in ("mean", "cls"):
            with torch.no_grad():
                together = embedded[attention, encoder.pooling] = encoder(IDS, MASK)
                for row, length in enumerate(MASK.sum(1).tolist()):
                    alone = encoder(IDS[row : row + 1, :length], MASK[row : row + 1, :length])
                    assert far(alone, together[row : row + 1]) < 1e-5
        assert far(encoder(IDS, torch.ones_like(MASK))[1], together[1]) > 1e-3 or encoder.pooling == "cls"
    for (_, pooling), embedding in embedded.items():
        assert far(embedding, embedded["eager", pooling]) < 1e-5


def test_which_families_take_the_attention_for_cpus(folder_of: Folder) -> None:
    own = set()
    for name in FAMILIES:
        encoder = load_text_encoder(EncoderConfig(str(folder_of(name)), pooling="mean", attention=CPU_ATTENTION))
        if encoder.backbone.config._attn_implementation != CPU_ATTENTION:  # type: ignore[union-attr]
            own.add(name)
    others = {"convbert", "rembert", "xlnet", "longformer", "big_bird", "t5", "bart", "gemma2"}
    assert own == {"deberta", "deberta-v2", "deberta-v3", "mpnet", *others}


# ---- half precision -----------------------------------------------------------------------------------------------


def outcome(encoder: TextEncoder, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Embeddings, and all gradients of a loss as one vector."""
    encoder.zero_grad()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        embedding = encoder(IDS, MASK)
    target = torch.linspace(-1, 1, embedding.shape[1])
    (embedding.float() - target).square().mean().backward()
    grads = [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
    return embedding.detach(), torch.cat(grads)


def test_half_precision_encodes_and_trains_as_float32_up_to_rounding(family: EncoderConfig) -> None:
    encoder = load_text_encoder(family).eval()
    embedding, gradient = outcome(encoder)
    for dtype in HALVES.values():
        half_embedding, half_gradient = outcome(encoder, dtype)
        assert 0 < far(half_embedding, embedding) < tolerance(encoder, dtype)
        assert 0 < far(half_gradient, gradient) < tolerance(encoder, dtype)


def test_the_tolerance_sees_a_bias_that_is_left_out(folder_of: Folder) -> None:
    config = EncoderConfig(str(folder_of("deberta")), pooling="mean")
    encoder = load_text_encoder(config).eval()
    embedding, gradient = outcome(encoder)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("q_bias"):
                parameter.zero_()
    half_embedding, half_gradient = outcome(encoder, torch.float16)
    assert far(half_embedding, embedding) > tolerance(encoder, torch.float16)
    assert far(half_gradient, gradient) > tolerance(encoder, torch.float16)


# ---- training, as an E-step does it ------------------------------------------------------------------------------

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
# Weights that a family has and an encoding does not use.
UNUSED = {"xlnet": ("mask_emb", "r_s_bias", "seg_embed"), "longformer": ("_global.",)}
NO_CHECKPOINTING = {"albert", "mpnet", "xlnet"}
NO_FREEZING = {"albert"}
NO_HIDDEN_DROPOUT = {"eurobert", "qwen3", "llama", "mistral", "gemma", "gemma2", "gemma3"}
NO_ATTENTION_DROPOUT = {"xlnet", "t5"}
LORA = [0, pytest.param(2, marks=pytest.mark.skipif(find_spec("peft") is None, reason="the extra 'lora' is missing"))]


def train(config: EncoderConfig, precision: str, steps: int = 4) -> tuple[TextClassifier, set[str]]:
    """A classifier after some steps of the E-step's optimizer, checked to have learned; names of what has moved."""
    torch.manual_seed(0)
    hardware, encoder = Hardware("cpu", precision), load_text_encoder(config)
    model = TextClassifier(encoder, LMHead(encoder.dim, 3))
    if not hardware.scales_gradients:
        use_sparse_gradients(model, least_rows=1)
    settings = LMSettings(epochs=1, lr=5e-3, warmup_epochs=0)
    optimizer = lm_optimizer(decay_groups(model, 0.01), settings, hardware, 100)[0]
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=hardware.scales_gradients)
    before = {name: value.clone() for name, value in model.named_parameters()}

    def loss() -> Tensor:
        with hardware.autocast():
            return nn.functional.cross_entropy(model(IDS, MASK)[0].float(), torch.arange(3))

    first = float(loss().detach())
    for _ in range(steps):
        optimizer.zero_grad()
        scaler.scale(loss()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert float(loss().detach()) < first
    return model, {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


def name_of(config: EncoderConfig) -> str:
    return next(name for name in sorted(FAMILIES, key=len, reverse=True) if Path(config.model).name.startswith(name))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_weight_is_trained(family: EncoderConfig, precision: str) -> None:
    model, moved = train(replace(family, **still(family)), precision)
    unused = UNUSED.get(name_of(family), ())
    assert moved == {name for name, _ in model.named_parameters() if not any(part in name for part in unused)}


@pytest.mark.parametrize("lora_rank", LORA)
@pytest.mark.parametrize("freeze_layers", [0, 1])
def test_adapters_and_freezing(family: EncoderConfig, lora_rank: int, freeze_layers: int) -> None:
    config = replace(family, lora_rank=lora_rank, freeze_layers=freeze_layers, **still(family))
    if freeze_layers and name_of(family) in NO_FREEZING:
        with pytest.raises(ValueError, match=r"^lm\.freeze_layers is 1, but "):
            load_text_encoder(config)
        return
    for precision in PRECISIONS:
        model, moved = train(config, precision)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert moved == {name for name in trained if not any(part in name for part in UNUSED.get(name_of(family), ()))}
        if lora_rank:
            assert {name for name in moved if "lora_" not in name} == {"head.linear.weight", "head.linear.bias"}
        if freeze_layers:
            lowest, *upper = layers_of(model.encoder.backbone)
            outputs: list[Any] = []
            lowest.register_forward_hook(lambda *call, into=outputs: into.append(call[-1]))
            model(IDS, MASK)
            output = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
            assert not output.requires_grad  # so no layer below keeps activations either
            assert not any(p.requires_grad for p in lowest.parameters())
            assert any(p.requires_grad for layer in upper for p in layer.parameters())


def layers_of(backbone: nn.Module) -> nn.ModuleList:
    names = ("encoder.layer", "layers", "layer", "transformer.layer", "block", "h")
    inner = backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone
    modules = dict(inner.named_modules())  # type: ignore[union-attr, operator]
    return next(modules[name] for name in names if name in modules)  # type: ignore[return-value]


def still(config: EncoderConfig) -> dict[str, float]:
    """The dropouts that a family has, off."""
    name = name_of(config)
    kinds = {"dropout": name not in NO_HIDDEN_DROPOUT, "attention_dropout": name not in NO_ATTENTION_DROPOUT}
    return {kind: 0.0 for kind, has in kinds.items() if has}


@pytest.mark.parametrize("lora_rank", LORA)
def test_checkpointing_recomputes_and_gives_the_same_gradients(family: EncoderConfig, lora_rank: int) -> None:
    config = replace(family, lora_rank=lora_rank)
    saving = replace(config, gradient_checkpointing=True)
    if name_of(family) in NO_CHECKPOINTING:
        with pytest.raises(ValueError, match=r"^lm\.gradient_checkpointing is True, but "):
            load_text_encoder(saving)
        return
    for dtype in (None, *HALVES.values()):
        outcomes = []
        for each in (config, saving):
            torch.manual_seed(0)
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)
                encoder, calls = load_text_encoder(each), []
            layers_of(encoder.backbone)[0].register_forward_pre_hook(lambda *_, into=calls: into.append(1))
            inside = next(m for m in layers_of(encoder.backbone)[0].modules() if isinstance(m, nn.Linear | Conv1D))
            inside.register_forward_pre_hook(lambda *_, into=calls: into.append(1))
            torch.manual_seed(1)  # dropout is drawn again when a layer is computed again
            outcomes.append((*outcome(encoder, dtype), len(calls)))
        (embedding, gradient, calls_plain), (same_embedding, same_gradient, calls_saving) = outcomes
        assert torch.equal(embedding, same_embedding)
        assert torch.equal(gradient, same_gradient)
        assert calls_saving > calls_plain


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout"])
def test_each_dropout_acts_in_training_alone(family: EncoderConfig, kind: str) -> None:
    off = still(family)
    if kind not in off:
        with pytest.raises(ValueError, match=rf"^lm\.{kind} is 0\.5, but model type .* set it to -1"):
            load_text_encoder(replace(family, **{kind: 0.5}))  # type: ignore[arg-type]
        return
    silent = load_text_encoder(replace(family, **off))  # type: ignore[arg-type]
    assert silent.training
    assert torch.equal(silent(IDS, MASK), silent(IDS, MASK))
    encoder = load_text_encoder(replace(family, **{**off, kind: 0.5}))  # type: ignore[arg-type]
    assert not torch.equal(encoder(IDS, MASK), encoder(IDS, MASK))
    encoder.eval()
    assert torch.equal(encoder(IDS, MASK), encoder(IDS, MASK))
    assert torch.equal(encoder(IDS, MASK), silent.eval()(IDS, MASK))
