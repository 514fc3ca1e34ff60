"""The language model: tokenising, E-step training, inference, attention implementations, and PyG's GLEM."""

from __future__ import annotations

import copy
import itertools
import tempfile
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.measure import Row, flops, medians, now, row_of, seconds_of
from glem_graphgym.build.choices import faster_attention, faster_precision
from glem_graphgym.build.language_model import CPU_TOKENS, GPU_TOKENS
from glem_graphgym.data.frozen import load_frozen
from glem_graphgym.data.text_graph import Texts
from glem_graphgym.data.tokens import TokenStore, open_token_store
from glem_graphgym.em.e_step import LMLearner, LMSettings
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.attention import CPU_ATTENTION
from glem_graphgym.models.deberta import use_fast_attention
from glem_graphgym.models.dropout import use_cheap_dropout
from glem_graphgym.models.hub import model_folder
from glem_graphgym.models.pretrained import load_tokenizer
from glem_graphgym.models.text_encoder import EncoderConfig, LMHead, TextClassifier, load_text_encoder

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
CLASSES = 58
PEER, PEER_BATCH, PEER_LENGTH = "PyG's GLEM", 32, 512


@cache
def short_texts() -> Texts:
    """The Debian graph's texts."""
    return load_frozen("debian", Path("datasets")).texts


@cache
def long_texts() -> Texts:
    """Ten short texts joined: about 200 tokens, the length of an abstract."""
    texts = short_texts()
    return Texts.of([" ".join(texts[i : i + 10]) for i in range(0, 40_000, 10)])


@cache
def tokens_of(length: str) -> TokenStore:
    texts = short_texts() if length == "short" else long_texts()
    return open_token_store(texts, load_tokenizer(MODEL), 512, Path(tempfile.mkdtemp()))


class Clocked(TokenStore):
    """Records when each batch was requested, which gives the speed of the real training loop."""

    def __init__(self, store: TokenStore) -> None:
        super().__init__(store.ids, store.offsets, store.pad_id)
        self.request_times: list[float] = []

    def pad(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.request_times.append(time.perf_counter())
        return super().pad(nodes)


@cache
def hardware_of(device: str) -> Hardware:
    """The device, with the precision that ``auto`` chooses on it."""
    slow = device == "cpu" and faster_precision() == "32"
    return Hardware(device, "32-true" if slow else "bf16-mixed")


@cache
def auto_attention(device: str) -> str | None:
    return faster_attention(12, 32, hardware_of(device).dtype, dropout=0.1) if device == "cpu" else None


def tokenising(repeats: int, device: str) -> Iterator[Row]:
    """Texts per second into a token store on disk; the bound is the tokenizer alone, without storing its output."""
    texts, tokenizer = short_texts(), load_tokenizer(MODEL)
    text_list = list(texts)

    def store() -> TokenStore:
        with tempfile.TemporaryDirectory() as folder:
            return open_token_store(texts, tokenizer, 512, Path(folder))

    def library() -> None:
        for start in range(0, len(text_list), 16_384):
            tokenizer.backend_tokenizer.encode_batch_fast(text_list[start : start + 16_384])

    seconds = seconds_of({"ours": store, "library": library}, min(repeats, 3))
    rates = {name: [len(text_list) / s for s in seconds_per_run] for name, seconds_per_run in seconds.items()}
    bound = float(np.median(rates["library"]))
    yield row_of("short texts", rates["ours"], "texts/s", bound=bound)
    token_store = tokens_of("short")
    on_disk = token_store.ids.nbytes + token_store.offsets.nbytes
    padded = PEER_LENGTH * 3 * 8.0  # ids, mask and types of each text, as int64
    quantity = f"bytes per text on disk, {token_store.lengths.mean():.1f} tokens on average"
    yield Row(quantity, on_disk / len(token_store), "bytes", rival=padded, rival_name=PEER)
    excess = (on_disk - 8 * (len(token_store) + 1)) / len(token_store.ids)
    yield Row("bytes per token, besides 8 per text", excess, "bytes")


def classifier(attention: str | None) -> TextClassifier:
    torch.manual_seed(0)
    encoder = load_text_encoder(EncoderConfig(MODEL, attention=attention))
    return TextClassifier(encoder, LMHead(encoder.dim, CLASSES, 0.1))


def bound_of(model: TextClassifier, lengths: np.ndarray, passes: int, device: str) -> float:
    """Texts per second if only matrix products took time; ``passes``: cost in forward passes (training = 3)."""
    config: Any = model.encoder.backbone.config
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embeddings" not in name)
    attention = 4 * config.num_hidden_layers * config.hidden_size * (lengths.astype(float) ** 2).mean()
    return flops(hardware_of(device).dtype, device) / (passes * (2 * matrices * lengths.mean() + attention))


def learner_of(store: TokenStore, device: str, batch_size: int = 32, epochs: int = 1) -> LMLearner:
    no_validation, on_cpu = Validation(np.arange(8), lambda logits: 0.0), device == "cpu"
    settings = LMSettings(epochs=epochs, batch_size=batch_size, infer_tokens=CPU_TOKENS if on_cpu else GPU_TOKENS)
    build = partial(classifier, auto_attention(device))
    return LMLearner(store, build, settings, no_validation, hardware_of(device))


def e_step(repeats: int, device: str) -> Iterator[Row]:
    """Texts per second of E-step training by `LMLearner.fit`: half gold, half pseudo-labels, everything included."""
    for length, size, steps in (("short", 32, 50), ("short", 64, 25), ("long", 32, 10)):
        store = Clocked(tokens_of(length))
        learner = learner_of(store, device, size, epochs=repeats + 1)  # the first is the warm-up
        count = size * steps
        nodes = np.random.default_rng(0).permutation(len(store))[:count]
        gold = Gold(nodes[: count // 2], np.zeros(count // 2, dtype=np.int64), CLASSES)
        pseudo = np.sort(nodes[count // 2 :])
        logits = np.random.default_rng(1).normal(size=(len(store), CLASSES)).astype(np.float16)
        task, _ = learner.fit(StepTargets(gold, PseudoLabels(logits, pseudo, gold), 0.8, 1.0), "e_step")
        # Per epoch: its batches, then one of validation.
        epochs = np.split(np.asarray(store.request_times), repeats + 1)
        rates = [count / (epoch[steps] - epoch[0]) for epoch in epochs[1:]]
        bound = bound_of(task.model, store.lengths[nodes], 3, device)
        quantity = f"training, {store.lengths[nodes].mean():.0f} tokens on average, batches of {size}"
        yield row_of(quantity, rates, "texts/s", bound=bound)


def inference(repeats: int, device: str) -> Iterator[Row]:
    """Texts per second of `LMLearner.predict`: logits and embeddings of texts into arrays."""
    for length, count in (("short", 8000), ("long", 1000)):
        all_tokens = tokens_of(length)
        store = TokenStore(all_tokens.ids, all_tokens.offsets[: count + 1], all_tokens.pad_id)
        task = learner_of(store, device).start()
        logits, embeddings = (np.zeros((count, width), dtype=np.float16) for width in (CLASSES, task.embedding_dim))
        seconds = seconds_of({"": partial(task.predict, logits, embeddings)}, min(repeats, 5))[""]
        bound = bound_of(task.model, store.lengths, 1, device)
        quantity = f"inference, {store.lengths.mean():.0f} tokens on average"
        yield row_of(quantity, [count / s for s in seconds], "texts/s", bound=bound)


def peer(repeats: int, device: str) -> Iterator[Row]:
    """The same model and texts with `torch_geometric.llm.models.GLEM`, which pads every text to 512 tokens.

    In bf16 weights, its default, and in float32; batches of 32 as in its example. One repetition: a batch takes long.
    """
    from torch_geometric.llm.models import GLEM
    from torch_geometric.nn.models import GraphSAGE

    gnn = GraphSAGE(8, 8, 1, CLASSES)
    for dtype in (torch.bfloat16, torch.float32):
        rival = GLEM(str(model_folder(MODEL)), gnn, CLASSES, lm_dtype=dtype, lm_use_lora=False, device=device)
        rival.lm.to(device)
        optimizer = torch.optim.AdamW(rival.lm.parameters(), lr=2e-5)
        batch = _peer_batch()

        def train(rival: Any = rival, optimizer: Any = optimizer, batch: Any = batch) -> None:
            rival.train_lm(_Loader([batch]), optimizer, 0, verbose=False)

        def infer(rival: Any = rival, batch: Any = batch) -> None:
            rival.inference("lm", _Loader([batch]))

        for name, run in (("training", train), ("inference", infer)):
            start = now()
            run()
            rate = PEER_BATCH / (now() - start)
            kind = str(dtype).removeprefix("torch.")
            yield Row(f"{PEER}, {name}, any length, {kind}", rate, "texts/s")


class _Loader(list):
    """A list of batches with the ``dataset`` that PyG's GLEM asks its loader for."""

    @property
    def dataset(self) -> Any:
        return SimpleNamespace(indices=torch.arange(PEER_BATCH))


def _peer_batch() -> dict[str, Any]:
    texts, tokenizer = short_texts(), load_tokenizer(MODEL)
    encoded = tokenizer(texts[:PEER_BATCH], padding="max_length", truncation=True, max_length=PEER_LENGTH)
    names = ("input_ids", "token_type_ids", "attention_mask")
    return {
        "input": {name: torch.tensor(encoded[name]) for name in names if name in encoded},
        "labels": torch.zeros(PEER_BATCH, dtype=torch.long),
        "is_gold": torch.ones(PEER_BATCH, dtype=torch.bool),
        "n_id": torch.arange(PEER_BATCH),
    }


def attention(repeats: int, device: str) -> Iterator[Row]:
    """The attention that ``lm.attention auto`` chooses against transformers' others, by text length."""
    names = (CPU_ATTENTION, "eager", "sdpa") if device == "cpu" else ("sdpa", "eager")
    models = {name: classifier(name).to(device) for name in names}
    adam_options: dict[str, Any] = {"lr": 1e-6, "weight_decay": 0.0, "fused": True}
    optimizers = {name: torch.optim.AdamW(model.parameters(), **adam_options) for name, model in models.items()}
    for length in (21, 64, 200, 512):
        for training in (True, False):
            size = max(4, (1344 if training else 4096) // length)  # about as many tokens per batch at every length
            ids = torch.randint(1000, 20000, (size, length), device=device)
            step = _train if training else _infer
            runs = {name: partial(step, model, optimizers[name], ids) for name, model in models.items()}
            rates = {name: size / seconds for name, seconds in medians(runs, repeats).items()}
            best = max(names[1:], key=lambda name: rates[name])
            quantity = f"{'training' if training else 'inference'}, {length} tokens, batch {size}"
            yield Row(quantity, rates[names[0]], "texts/s", rival=rates[best], rival_name=best)


def _train(model: TextClassifier, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> None:
    model.train()
    target = torch.full((len(ids), CLASSES), 1 / CLASSES, device=ids.device)
    with hardware_of(ids.device.type).autocast():
        logits, _ = model(ids, torch.ones_like(ids))
    glem_loss(logits, target, torch.ones(len(ids), dtype=torch.bool, device=ids.device), 0.5).backward()
    optimizer.step()
    optimizer.zero_grad()


def _infer(model: TextClassifier, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> None:
    model.eval()
    with torch.inference_mode(), hardware_of(ids.device.type).autocast():
        model(ids, torch.ones_like(ids))


def deberta(repeats: int, device: str) -> Iterator[Row]:
    """Our attention of DeBERTa against transformers' (one layer of the base size, float32; bf16 on a GPU)."""
    import transformers

    sizes: dict[str, Any] = {"num_hidden_layers": 1, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    bucketed: dict[str, Any] = {"share_att_key": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm"}
    for name, config in (
        ("v1", transformers.DebertaConfig(**sizes)),
        ("v3", transformers.DebertaV2Config(**sizes, **bucketed, hidden_size=768, num_attention_heads=12)),
    ):
        rival = transformers.AutoModel.from_config(config).to(device)
        fast = copy.deepcopy(rival)
        use_fast_attention(fast)
        for model in (rival, fast):
            use_cheap_dropout(model)
        for length, training in itertools.product((21, 200, 512), (True, False)):
            size = max(2, (65536 if device == "cuda" else 1024) // length)
            ids = torch.randint(1000, 20000, (size, length), device=device)
            runs = {key: partial(_states, model, ids, training) for key, model in (("ours", fast), ("eager", rival))}
            rates = {key: size / seconds for key, seconds in medians(runs, repeats).items()}
            quantity = f"{name}, {'training' if training else 'inference'}, {length} tokens, batch {size}"
            yield Row(quantity, rates["ours"], "texts/s", rival=rates["eager"], rival_name="eager")


def _states(model: nn.Module, ids: torch.Tensor, training: bool) -> None:
    model.train(training)
    half = torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.is_cuda)
    with torch.set_grad_enabled(training), half:
        states = model(ids, torch.ones_like(ids)).last_hidden_state
    if training:
        states.float().square().mean().backward()
