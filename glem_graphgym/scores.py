"""Scores of predictions, shares 0-1 on every split: their names, and what reports call them."""

from __future__ import annotations

METRIC = "accuracy"  # selects where ``metric_best`` names no other; the only score of older runs
METRICS = {METRIC: "accuracy", "macro_f1": "macro-F1", "balanced_accuracy": "balanced accuracy", "auc": "ROC-AUC"}
