"""The settings that ``auto`` stands for on this CPU: measured once, and cached under ``dataset.dir``.

Choices change results bit by bit, so a run keeps those that it began with (``run.json``). GPUs are not measured.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import nn
from yacs.config import CfgNode

from glem_graphgym import processes
from glem_graphgym.build.language_model import hardware_for
from glem_graphgym.config import reads_texts
from glem_graphgym.files import DamagedFileError, fingerprint, read_json, write_json
from glem_graphgym.hardware import processor
from glem_graphgym.models.attention import CPU_ATTENTION, cpu_attention
from glem_graphgym.models.pretrained import load_config

SWITCH = "GLEM_MEASURE"  # 0 in the environment: measure nothing; `auto` then follows the processor's instruction set
GAIN = 1.1  # speed-up that bf16 or sdpa must reach to be chosen, so that noise does not decide
TURNS = 5  # timed runs per candidate, after a warm-up; the fastest counts, as other programs can only slow it down
LENGTHS = (16, 32, 64, 128, 256, 512)  # tokens per text at which attention is timed
TOKENS = {True: 1344, False: 4096}  # per timed batch, in training (True) and in inference
ROWS, WIDTH = 1024, 512  # of the input of the linear layer that precisions are timed on


def choose(cfg: CfgNode, anew: bool = False) -> dict[str, Any]:
    """Key -> measured value, for keys that are ``auto`` in ``cfg``; the same in all processes.

    Args:
        anew: ignore the choices in the run folder, whose content is going to be deleted.
    """
    return processes.broadcast(lambda: _choose(cfg, anew))


def with_choices(cfg: CfgNode, choices: Mapping[str, Any]) -> CfgNode:
    """A copy of ``cfg`` with ``choices`` in place of ``auto``."""
    copy = cfg.clone()
    for name, value in choices.items():
        group, key = name.split(".")
        copy[group][key] = value
    return copy


def _choose(cfg: CfgNode, anew: bool) -> dict[str, Any]:
    run_dir = Path(cfg.run_dir)
    if not anew and any((run_dir / "stages").glob("[0-9]*")):
        with suppress(DamagedFileError):  # reported when the folder is checked
            return dict(read_json(run_dir / "run.json").get("choices", {}))
    if os.environ.get(SWITCH) == "0" or hardware_for(cfg, "32").accelerator != "cpu":
        return {}
    cache, chosen = Path(cfg.dataset.dir) / "choices", dict[str, Any]()
    texts = reads_texts(cfg)
    groups = [group for group in ("lm", "gnn") if cfg[group].precision == "auto" and (texts or group == "gnn")]
    if groups and hardware_for(cfg, "auto").precision != "32-true":
        precision = _cached_choice(cache, "precision", (), faster_precision)
        chosen |= {f"{group}.precision": precision for group in groups}
    if texts and cfg.lm.attention == "auto":
        with suppress(Exception):  # a model that cannot be read is reported when it is built
            model = load_config(cfg.lm.model)
            heads, width = int(model.num_attention_heads), int(model.hidden_size)
            dtype = hardware_for(cfg, chosen.get("lm.precision", cfg.lm.precision)).dtype
            dropout = cfg.lm.attention_dropout
            if dropout < 0:
                dropout = float(getattr(model, "attention_probs_dropout_prob", getattr(model, "attention_dropout", 0)))
            key = (heads, width // heads, str(dtype), dropout)
            chosen["lm.attention"] = _cached_choice(
                cache, "attention", key, lambda: faster_attention(*key[:2], dtype, dropout)
            )
    if chosen:
        logging.info(f"measured on this processor: {', '.join(f'{name} {value}' for name, value in chosen.items())}")
    return chosen


def _cached_choice(cache: Path, name: str, key: Sequence[object], measure: Callable[[], str]) -> str:
    """The choice ``name`` for this processor, number of threads, torch version and ``key``; measured if not cached."""
    conditions = {"processor": [*processor()], "threads": torch.get_num_threads(), "torch": torch.__version__}
    conditions["of"] = [*key]
    file, choice = cache / f"{name}-{fingerprint(conditions)}.json", None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            with suppress(DamagedFileError, KeyError, TypeError):
                return str(read_json(file)["choice"])
            choice = measure()
            write_json(file, {"choice": choice, **conditions})
    except OSError as error:
        logging.info(f"{file} cannot be used ({error.strerror}): {name} is measured in each run")
    return measure() if choice is None else choice


def faster_precision() -> str:
    """``bf16`` or ``32``: the faster precision of a linear layer with float32 input and output, casts included.

    That a processor has bfloat16 instructions does not decide: without AMX an Intel Xeon is twice as fast in float32.
    """
    rows, weight = torch.randn(ROWS, WIDTH), torch.randn(4 * WIDTH, WIDTH)
    bf16_weight = weight.bfloat16()
    with torch.inference_mode():
        seconds = _fastest_seconds(
            {"32": lambda: F.linear(rows, weight), "bf16": lambda: F.linear(rows.bfloat16(), bf16_weight).float()}
        )
    return "bf16" if seconds["bf16"] * GAIN < seconds["32"] else "32"


def faster_attention(heads: int, width: int, dtype: torch.dtype, dropout: float) -> str:
    """`CPU_ATTENTION`, with the text lengths in training and inference from which torch's sdpa is faster, if any.

    Args:
        width: of a head.
        dropout: of the attention weights in training, 0-1.
    """

    def attention(length: int, training: bool, sdpa_from: tuple[int, int]) -> Callable[[], None]:
        """A function: attention on a batch of random texts and, in training, the gradient of its inputs."""
        texts = max(1, TOKENS[training] // length)
        mask = torch.zeros(texts, 1, length, length)
        mask[::2, :, :, -1] = torch.finfo(torch.float32).min
        inputs = torch.randn(3, texts, length, heads, width).to(dtype).requires_grad_(training)
        module, share = nn.Identity().train(training), dropout if training else 0.0

        def run() -> None:
            with torch.set_grad_enabled(training):
                query, key, value = inputs.transpose(2, 3).unbind()
                out, _ = cpu_attention(module, query, key, value, mask, dropout=share, sdpa_from=sdpa_from)
                if training:
                    out.sum().backward()

        return run

    def shortest_of(training: bool) -> int:
        """The shortest of `LENGTHS` such that sdpa is faster there and at all longer ones; 0 if there is none."""
        shortest = 0
        for length in reversed(LENGTHS):
            candidates = {"ours": (0, 0), "sdpa": (1, 1)}
            seconds = _fastest_seconds({name: attention(length, training, s) for name, s in candidates.items()})
            if seconds["sdpa"] * GAIN > seconds["ours"]:
                break
            shortest = length
        return shortest

    training, inference = shortest_of(True), shortest_of(False)
    return f"{CPU_ATTENTION}_{training}_{inference}" if training or inference else CPU_ATTENTION


def _fastest_seconds(candidates: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Candidate -> its fastest time in seconds; candidates are timed in turn."""
    fastest = dict.fromkeys(candidates, float("inf"))
    for turn in range(1 + TURNS):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if turn:
                fastest[name] = min(fastest[name], time.perf_counter() - start)
    return fastest
