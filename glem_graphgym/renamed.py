"""Old names of configuration keys, for error messages and for run folders that were made with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_DROPOUTS = ("dropout", "attention_dropout", "head_dropout")
_E_STEP = ("epochs", "lr", "batch_size", "warmup_epochs", "label_smoothing", *_DROPOUTS)

# Old name -> new name.
RENAMED = {
    **{f"glem.lm_{name}": f"e_step.{name}" for name in _E_STEP},
    "glem.input_norm": "gnn.input_norm",
    "lm.accumulate": "lm.grad_accumulation",
    "lm.part_tokens": "lm.micro_batch_tokens",
    "gnn.stages": "gnn.rlu_rounds",
    "gnn.stage_threshold": "gnn.rlu_threshold",
    "gnn.stage_weight": "gnn.rlu_weight",
    "gnn.consistency": "gnn.scr_weight",
    "gnn.consistency_threshold": "gnn.scr_threshold",
    "gnn.group": "gnn.rev_groups",
}

# Removed key -> the fixed value that replaces it, which was its default.
REMOVED: dict[str, Any] = {
    "dataset.labels_per_source": 5,
    "dataset.min_class_size": 20,
    "lm.clip": 1.0,
    "lm.patience": 0,
    "glem.label_input_rate": 0.5,
    "glem.gnn_redraw": "epoch",
    "glem.cs_correct_layers": 50,
    "glem.cs_smooth_layers": 50,
    "gnn.attend_destination": False,
    "gnn.hop_attention": "recursive",
    "gnn.ema": 0.99,
    "gnn.label_layers": 4,
    "optim.clip": 0.0,
}

# (key, removed value) -> what to do instead.
OLD_VALUES = {
    (
        "train.mode",
        "glem_predict",
    ): "a program now: python run/predict.py with the --cfg and options of the run",
}


def old_names(names: Iterable[str]) -> str:
    """What became of the old keys among ``names``, in words; "" if there are none."""
    hints = []
    for name in dict.fromkeys(names):
        if name in RENAMED:
            hint = " (null for -1)" if name.startswith("glem.lm_") else ""
            hint = " (none, standardise, batch or layer)" if name == "glem.input_norm" else hint
            hints.append(f"{name} is now {RENAMED[name]}{hint}")
        elif name in REMOVED:
            hints.append(f"{name} is no key any more (it is always {REMOVED[name]!r}); leave it out")
    return "; ".join(hints)


def in_new_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run's ``run.json``, ``group.key`` -> value, under their present names.

    A removed key is left out if it had the value that is fixed now, and stays if it had another.
    """
    renamed = {key: value for key, value in settings.items() if key not in REMOVED or value != REMOVED[key]}
    if "glem.input_norm" in renamed:
        outside, inside = renamed.pop("glem.input_norm"), renamed.get("gnn.input_norm")
        renamed["gnn.input_norm"] = "batch" if inside else "standardise" if outside else "none"
    for old, new in RENAMED.items():
        if old in renamed:
            value = renamed.pop(old)
            renamed[new] = None if old.startswith("glem.lm_") and value == -1 else value
    return renamed
