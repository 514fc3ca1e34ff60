"""Memory and files that adapters save when a Qwen3 of 60 M parameters with random weights is fine-tuned.

For each of `WAYS`, ``run/main.py`` fine-tunes it on the gold labels of a small generated graph. Memory is the peak of
the whole process during the stage, compared with the dry run's prediction.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch_geometric.graphgym.config import cfg, set_cfg

from benchmarks.measure import Row
from benchmarks.scale import RUN, make_tiny_lm, watched
from glem_graphgym.config import load_config
from glem_graphgym.files import read_json
from glem_graphgym.plan.preflight import measure

CONFIG = RUN.parent / "configs_gg" / "synthetic.yaml"
SIZES: dict[str, Any] = {
    "vocab_size": 32_000, "hidden_size": 512, "num_hidden_layers": 14, "intermediate_size": 1536,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "pad_token_id": 0,
}  # fmt: skip
LORA = {"lm.lora_rank": 16}
WAYS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "LoRA": LORA,
    "LoRA, base in bf16": {**LORA, "lm.base_precision": "bf16"},
    "LoRA, base in bf16, recomputed": {**LORA, "lm.base_precision": "bf16", "lm.gradient_checkpointing": True},
}
OPTIONS = {
    "train.mode": "glem_lm", "dataset.synthetic_nodes": 100, "dataset.tag_split": [0.4, 0.2, 0.4], "lm.epochs": 1,
    "lm.batch_size": 8, "lm.max_length": 64, "lm.pooling": "auto", "accelerator": "cpu",
}  # fmt: skip


def adapters(repeats: int, accelerator: str) -> Iterator[Row]:
    """Peak and predicted memory and size of a stage's weights, in MB, for each of `WAYS`, run once on the CPU."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lm = make_qwen3(folder / "lm")
        for index, (way, way_options) in enumerate(WAYS.items()):
            run = {**OPTIONS, **way_options, "lm.model": lm, "dataset.dir": folder, "out_dir": folder / str(index)}
            settings = [str(word) for pair in run.items() for word in pair]
            set_cfg(cfg)
            load_config(cfg, CONFIG, settings)
            predicted = measure(cfg, folder / "dry" / "0", 0)
            watched([sys.executable, str(RUN / "main.py"), "--cfg", str(CONFIG), *settings], folder)
            (file,) = (folder / str(index)).rglob("stage.json")
            stage = read_json(file)
            cost = predicted["costs"]["lm_gold"]
            program = predicted["program_mb"]
            yield Row(f"{way}: peak beside the program's {program:.0f} MB", stage["peak_memory_mb"] - program, "MB")
            yield Row(f"{way}: the same, foreseen", cost["resident_mb"] - cost["mapped_mb"] - program, "MB")
            size = file.with_name("weights.safetensors").stat().st_size / 2**20
            yield Row(f"{way}: weights of a stage, {stage['params']:,} parameters in all", size, "MB")


def make_qwen3(folder: Path) -> Path:
    """Make a folder of a Qwen3 of `SIZES` with random weights, and a tokenizer for the generated texts."""
    from transformers import Qwen3Config, Qwen3Model

    make_tiny_lm(folder)
    torch.manual_seed(0)
    Qwen3Model(Qwen3Config(**SIZES)).save_pretrained(folder)
    return folder
