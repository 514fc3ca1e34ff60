"""Scores of predictions, shares 0-1 on every split: their keys, their names in reports, and warnings about them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

METRIC = "accuracy"  # the metric that selects, unless ``metric_best`` names another; the only score of older runs
METRICS = {METRIC: "accuracy", "macro_f1": "macro-F1", "balanced_accuracy": "balanced accuracy", "auc": "ROC-AUC"}

BLIND = "blind.json"  # {"since": time, "unblinded": time or null}; see `report.blind`
MARGIN = 0.02  # share by which a student may be worse than its teacher
COLLAPSED = 0.5  # share of the gold labels' effective number of classes below which pseudo-labels have collapsed
# Model that a step trains -> the step, the model in words, and the keys to change if it learns too little.
STEPS = {
    "LM": ("E-step", "language model", "e_step.epochs, e_step.lr, glem.lm_pseudo_ratio, glem.alpha"),
    "GNN": ("M-step", "GNN", "optim.max_epoch, optim.base_lr, glem.gnn_pseudo_ratio, glem.beta"),
}


def hides_test(folder: Path) -> bool:
    """Whether output hides the test scores of the runs in ``folder``: it, or a folder above it, is blind."""
    return blind_folder(folder) is not None


def blind_folder(folder: Path) -> Path | None:
    """The folder with `BLIND` that hides the test scores of the runs in ``folder``; None if they may be shown."""
    folder = folder.resolve()
    for parent in (folder, *folder.parents):
        if (parent / BLIND).exists():
            with suppress(OSError, ValueError, TypeError, LookupError):  # a damaged file hides them
                if json.loads((parent / BLIND).read_text(encoding="utf-8"))["unblinded"] is not None:
                    return None
            return parent
    return None


def margin_of(teacher: float, nodes: int) -> float:
    """The share by which a student may be worse than its teacher: `MARGIN` or, if larger, two standard errors."""
    return max(MARGIN, 2 * math.sqrt(teacher * (1 - teacher) / nodes))


def warnings_of(model: str, iteration: int, diagnostics: Mapping[str, float]) -> list[str]:
    """Warnings about the step of an EM iteration that trained ``model``, from its diagnostics, with keys to change."""
    warnings = []
    gain, margin = diagnostics.get("gain_valid", 0.0), diagnostics.get("gain_margin", 0.0)
    if gain < -margin:
        step, student, keys = STEPS[model]
        warnings.append(
            f"{step} {iteration}: the {student} is {-100 * gain:.1f} points worse on validation than its teacher "
            f"(margin {100 * margin:.1f}); train it longer or on more pseudo-labels: {keys}"
        )
    pseudo, gold = diagnostics.get("pseudo_classes", math.inf), diagnostics.get("gold_classes", 0.0)
    if pseudo < COLLAPSED * gold:
        warnings.append(
            f"{STEPS[model][0]} {iteration}: its pseudo-labels collapse into {pseudo:.1f} classes, of {gold:.1f} among "
            "gold labels (effective numbers); keep more of them, soften them, or balance the classes: glem.confidence, "
            "glem.temperature, glem.class_weights"
        )
    return warnings
