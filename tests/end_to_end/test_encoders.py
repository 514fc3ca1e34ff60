"""Encoders of today run the whole of GLEM: LoRA on a base in bf16, activations recomputed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.models.families import save_encoder
from tests.small import write_config

pytest.importorskip("peft", reason="the extra 'lora' is missing")
SAVING = {"lm.lora_rank": 2, "lm.base_precision": "bf16", "lm.precision": "bf16", "lm.gradient_checkpointing": True}


@pytest.mark.parametrize("family", ["qwen3", "modernbert", "llama", "deberta", "deberta-v3"])
def test_every_family_runs_the_whole_of_glem(family: str, main: Callable[..., int], tmp_path: Path) -> None:
    lm = save_encoder(family, tmp_path / "lm")
    changes = {**SAVING, "lm.max_length": 24, "glem.keep_weights": "all", "dataset.synthetic_nodes": 80}
    config = write_config(tmp_path / "small.yaml", lm, changes)
    assert main(config) == 0
    run_dir = tmp_path / "results/small/0"
    found = {row["method"]: row["test"] for row in json.loads((run_dir / "summary.json").read_text())}
    assert main(config, program="predict") == 0
    again = json.loads((run_dir / "predictions.json").read_text())  # the base is read from the model's own files
    for name in ("GLEM-LM", "GLEM-GNN"):
        assert again[name]["test"]["accuracy"] == found[name]
    card = json.loads((run_dir / "run.json").read_text())["language_model"]
    assert card["trained"] < card["parameters"] / 4
    assert (card["family"], card["base"], card["precision"]) == (family.replace("-v3", "-v2"), "bf16", "bf16-mixed")
    assert card["pooling"] == ("last" if family in ("qwen3", "llama") else "mean")
    base = sum(file.stat().st_size for file in lm.glob("*.safetensors"))
    for stage in ("00_lm_gold", "02_e_step_1"):
        weights = load_file(run_dir / "stages" / stage / "weights.safetensors")
        assert {name.split(".")[0] for name in weights} == {"encoder", "head"}
        assert all("lora_" in name or name.startswith("head.") for name in weights)
        assert {str(value.dtype) for value in weights.values()} == {"torch.float32"}
        assert sum(value.numel() * 4 for value in weights.values()) < base / 4
