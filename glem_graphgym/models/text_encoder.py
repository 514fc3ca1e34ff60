"""The text encoder: a pretrained transformer, pooled to one embedding per text."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glem_graphgym.models.attention import probe_batch, sdpa_lengths, states_of, use_cpu_attention
from glem_graphgym.models.autograd import leaves_of
from glem_graphgym.models.checks import ModelError
from glem_graphgym.models.dropout import Dropout, use_cheap_dropout
from glem_graphgym.models.families import fit_family
from glem_graphgym.models.pooling import load_dense, readout_of
from glem_graphgym.models.pretrained import DTYPES, load_backbone, load_config

# The names of the two kinds of dropout in Hugging Face configurations. The one dropout of T5 and XLNet, which acts on
# attention too, counts as hidden.
HIDDEN_DROPOUT = (
    *("hidden_dropout_prob", "hidden_dropout", "dropout", "dropout_rate", "resid_pdrop", "resid_dropout"),
    *("embedding_dropout", "embd_pdrop", "embed_dropout", "mlp_dropout", "activation_dropout"),
)
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop", "attn_dropout")


@dataclass(frozen=True)
class EncoderConfig:
    """Settings of a text encoder: those of the keys ``lm.*`` of the same names (docs/config.md), except:

    Attributes:
        attention: an implementation of transformers, None for its default, or a name of `cpu_attention`, in place of
            which models that do not support it use eager.
        keys: prefix of the config keys of ``dropout`` and ``attention_dropout``, for messages.
    """

    model: str
    pooling: str = "auto"
    bidirectional: bool = False
    shrink_dim: int = 0
    dropout: float = -1.0
    attention_dropout: float = -1.0
    attention: str | None = None
    gradient_checkpointing: bool = False
    freeze_layers: int = 0
    lora_rank: int = 0
    lora_alpha: float = 0.0
    lora_dropout: float = 0.1
    lora_targets: tuple[str, ...] = ("all-linear",)
    lora_variant: str = "lora"
    base_precision: str = "32"
    pretrained: bool = True
    keys: str = "lm."


def in_float32(tensor: Tensor) -> torch.autocast:
    """Turn autocast off on the device of ``tensor``, for computations once per text, whose cost is negligible."""
    return torch.autocast(tensor.device.type, enabled=False)


class TextEncoder(nn.Module):
    """Transformer, pooling and optional bottleneck: the embedding h_n of a text s_n.

    `apply` does not descend into it, because GraphGym's networks end their constructor in ``self.apply(init_weights)``,
    which would replace the pretrained weights of every linear layer. Texts are padded on the right; pooling ``last``
    supports either side. ``dense``: the modules that a sentence-transformers folder applies to the pooled state.

    With ``base_is_stored``, frozen weights equal those in the pretrained model's files: `state_dict` leaves them out,
    so that checkpoints and copies grow only with what is trained, and `load_state_dict` does not need them.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pooling: str,
        shrink_dim: int = 0,
        dense: Sequence[Any] = (),
        base_is_stored: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        hidden = int(backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]
        for module in dense:
            if module.linear.in_features != hidden:
                raise ModelError(
                    f"lm.model: a Dense module takes {module.linear.in_features} columns, but is given {hidden}; "
                    "expected the modules of this model"
                )
            hidden = module.linear.out_features
        self.dense = nn.Sequential(*dense)
        self.shrink = nn.Linear(hidden, shrink_dim) if shrink_dim > 0 else nn.Identity()
        self.dim = shrink_dim if shrink_dim > 0 else hidden
        if base_is_stored:
            self.register_state_dict_post_hook(_leave_out_frozen)
            self.register_load_state_dict_pre_hook(_fill_in_frozen)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:  # (B, L), (B, L) -> float32 (B, H)
        states = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, L, H)
        with in_float32(states):
            if self.pooling == "cls":
                pooled = states[:, 0].float()
            elif self.pooling == "last":
                last = mask.shape[1] - 1 - mask.flip(1).argmax(1)  # (B,)
                index = last[:, None, None].expand(-1, 1, states.shape[2])
                pooled = states.gather(1, index).squeeze(1).float() * mask.amax(1, keepdim=True)
            else:
                weight = mask.unsqueeze(-1).to(states.dtype)
                pooled = (states * weight).sum(1, dtype=torch.float32) / mask.sum(1, keepdim=True).clamp(min=1)
            return self.shrink(self.dense(pooled))

    def apply(self, fn: Callable[[nn.Module], None]) -> TextEncoder:
        fn(self)
        return self


def _frozen(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    named = encoder.named_parameters(prefix.removesuffix("."), remove_duplicate=False)
    return {name: value.detach() for name, value in named if not value.requires_grad}


def _leave_out_frozen(encoder: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in _frozen(encoder, prefix):
        module = name.rpartition(".")[0]
        quantised = (f"{name}.", f"{module}.SCB", f"{module}.weight_format")  # what bitsandbytes stores with a weight
        for key in [key for key in state if key == name or key.startswith(quantised)]:
            del state[key]


def _fill_in_frozen(encoder: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, value in _frozen(encoder, prefix).items():
        state.setdefault(name, value)  # checkpoints of older versions hold them all


def load_text_encoder(config: EncoderConfig) -> TextEncoder:
    """Build a text encoder and load its pretrained weights; ValueError if model and settings do not fit."""
    import transformers

    # Ours replaces eager afterwards: not every model supports it, but all that do support eager too.
    uses_cpu_attention = sdpa_lengths(config.attention) is not None
    attention = "eager" if uses_cpu_attention else config.attention
    readout = readout_of(config.model, config.pooling, config.bidirectional)
    hf_config = load_config(config.model)
    if config.bidirectional:
        hf_config.is_causal = False  # transformers then replaces the causal mask by the padding mask
    _set_dropout(hf_config, HIDDEN_DROPOUT, config.dropout, f"{config.keys}dropout")
    _set_dropout(hf_config, ATTENTION_DROPOUT, config.attention_dropout, f"{config.keys}attention_dropout")
    if config.pretrained:
        backbone = load_backbone(config.model, hf_config, attention, config.base_precision)
    else:
        dtype = DTYPES[config.base_precision]
        backbone = transformers.AutoModel.from_config(hf_config, attn_implementation=attention, dtype=dtype)
    backbone = fit_family(backbone)
    if config.base_precision == "bf16":
        for parameter in backbone.parameters():  # DeBERTa and XLNet make some in float32, whatever is asked for
            parameter.data = parameter.data.to(torch.bfloat16)  # and no buffers: positions of RoPE need float32
    if config.bidirectional:
        _check_bidirectional(backbone)
    if uses_cpu_attention:
        use_cpu_attention(backbone, config.attention or "")
    # from_pretrained returns evaluation mode and Lightning keeps it: without dropout and gradient checkpointing.
    backbone.train()
    # A pooler that is never read would add parameters without gradient.
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    if config.gradient_checkpointing:
        if not backbone.supports_gradient_checkpointing:
            raise ModelError(
                f"lm.gradient_checkpointing is True, but model type '{hf_config.model_type}' cannot; set it to "
                "False, and raise lm.grad_accumulation to save memory"
            )
        # The older name, the only one before transformers 5.23, warns from then on.
        enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if config.lora_rank > 0:
        backbone = _with_lora(backbone, config)
    if config.freeze_layers > 0:
        _freeze(backbone, config.freeze_layers)
    use_cheap_dropout(backbone)
    dense = [load_dense(folder, config.pretrained) for folder in readout.dense]
    if config.lora_rank > 0:
        for module in dense:
            module.requires_grad_(False)
    return TextEncoder(backbone, readout.pooling, config.shrink_dim, dense, base_is_stored=config.pretrained)


def _set_dropout(hf_config: Any, names: tuple[str, ...], value: float, key: str) -> None:
    if value < 0:
        return
    present = [name for name in names if hasattr(hf_config, name)]
    if not present:
        raise ModelError(f"{key} is {value}, but model type '{hf_config.model_type}' has no such dropout; set it to -1")
    for name in present:
        setattr(hf_config, name, value)


def _check_bidirectional(backbone: Any) -> None:
    """Raise ValueError if the first token does not attend to the second, with or without padding in the batch."""
    ids, mask = probe_batch(backbone.config).values()
    changed_ids = ids.clone()
    changed_ids[:, 1] = ids[:, 2]
    for num_texts in (2, 1):
        first, second = (
            states_of(backbone, tokens[:num_texts], mask[:num_texts])[:, 0] for tokens in (ids, changed_ids)
        )
        if bool((first == second).all(1).any()):
            raise ModelError(
                f"lm.bidirectional is True, but in model type '{backbone.config.model_type}' a token attends to "
                "earlier tokens only, whatever the mask; set it to False"
            )


def transformer_layers(backbone: nn.Module) -> nn.ModuleList | None:
    """The layers of a transformer; None if they share their weights or are not in a list."""
    count: Any = getattr(backbone.config, "num_hidden_layers", 0)
    lists = (module for module in backbone.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    return next(lists, None)


def _freeze(backbone: Any, count: int) -> None:
    """Freeze the first ``count`` layers, all embeddings and whatever else these layers' output depends on."""
    layers = transformer_layers(backbone)
    if layers is None:
        raise ModelError(
            f"lm.freeze_layers is {count}, but the layers of model type '{backbone.config.model_type}' share their "
            "weights, or are not in a list; set it to 0"
        )
    if count > len(layers):
        raise ModelError(
            f"lm.freeze_layers is {count}, but lm.model has {len(layers)} layers; expected at most as many"
        )
    outputs: list[Any] = []
    hook = layers[count - 1].register_forward_hook(lambda *call: outputs.append(call[-1]))
    backbone.eval()(**probe_batch(backbone.config))  # in training mode a layer may be skipped (LayerDrop)
    backbone.train()
    hook.remove()
    output = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    for parameter in leaves_of(output):
        parameter.requires_grad_(False)
    for module in (*layers[:count], *(m for m in backbone.modules() if isinstance(m, nn.Embedding))):
        module.requires_grad_(False)


def _with_lora(backbone: Any, config: EncoderConfig) -> nn.Module:
    rank = config.lora_rank
    full = max(min(weight.shape) for weight in backbone.parameters() if weight.dim() == 2)
    if rank > full:
        raise ModelError(
            f"lm.lora_rank is {rank}, but no layer of lm.model has a rank above {full}; expected at most that"
        )
    try:
        import peft
    except ImportError as error:
        raise ModelError(
            f"lm.lora_rank is {rank}, which needs the extra 'lora': pip install 'glem-graphgym[lora]'"
        ) from error
    logging.getLogger("peft").setLevel(logging.ERROR)
    lora = peft.LoraConfig(
        r=rank,
        lora_alpha=config.lora_alpha or 2 * rank,  # type: ignore[arg-type] # any number will do
        lora_dropout=config.lora_dropout,
        target_modules=_lora_targets(backbone, config.lora_targets),
        use_rslora=config.lora_variant == "rslora",
        use_dora=config.lora_variant == "dora",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a setting for GPT-2 that it corrects by itself
        return peft.get_peft_model(backbone, lora)


def _lora_targets(backbone: Any, targets: Sequence[str]) -> str | list[str]:
    """peft's ``target_modules`` for the linear layers that ``lm.lora_targets`` names."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers

    if "all-linear" in targets:
        return "all-linear"
    linear = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    chosen: list[str] = []
    for target in targets:
        if target == "attention":
            matches = [name for name in linear if re.search("attention|attn", name.lower())]
        else:
            matches = [name for name in linear if f".{name}".endswith(f".{target}")]
        if not matches:
            names = sorted({re.sub(r".*\.\d+\.", "", name) for name in linear})  # without layers' numbers
            raise ModelError(
                f"lm.lora_targets names '{target}', but no linear layer of model type '{backbone.config.model_type}' "
                f"is called that; expected all-linear, attention or some of: {', '.join(names)}"
            )
        chosen += matches
    return chosen


class LMHead(nn.Module):
    """Text embeddings (B, H) -> logits (B, C): dropout of their entries, then a linear map."""

    def __init__(self, dim: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(dim, num_classes)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.linear(self.dropout(embedding))


class TextClassifier(nn.Module):
    """q_θ(y_n | s_n): text encoder and LM head.

    Returns logits (B, C) and text embeddings (B, H) of token ids (B, L) and attention mask (B, L).
    """

    def __init__(self, encoder: TextEncoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.encoder(ids, mask)
        with in_float32(embedding):
            return self.head(embedding), embedding


class JointModel(nn.Module):
    """p_φ(y_n | s_V, A), where φ includes the text encoder: the texts' embeddings are the GNN's node features.

    Input norm is a layer norm here: statistics over nodes would be outdated, as the embeddings change with every step.
    ``gnn`` is called with features (n, H + F) and a graph.
    """

    def __init__(self, encoder: TextEncoder, gnn: nn.Module, norm: bool = True) -> None:
        super().__init__()
        self.encoder, self.gnn = encoder, gnn
        self.norm: nn.Module = nn.LayerNorm(encoder.dim) if norm else nn.Identity()

    def node_features(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """The GNN's input, float32 (n, H + F), from text embeddings (n, H) and further features (n, F)."""
        return torch.cat([self.norm(embeddings.float()), features.float()], dim=1)

    def forward(self, embeddings: Tensor, features: Tensor, adjacency: Any) -> Tensor:
        return self.gnn(self.node_features(embeddings, features), adjacency)
