"""OGB's evaluators as GraphGym metrics (``custom_metrics: ['ogb_accuracy']``)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import register_metric

from glem_graphgym.build.graph import accuracy_of


@register_metric("ogb_accuracy")
def ogb_accuracy_metric(true: list[Tensor], pred: list[Tensor], task_type: str) -> float:
    """Accuracy by the OGB evaluator of ``dataset.name`` (``ogbn_arxiv`` or ``ogbn-arxiv``), as a Python float.

    Set ``metric_best: ogb_accuracy`` too: a custom metric replaces GraphGym's own.
    """
    y, scores = torch.cat(true), torch.cat(pred)
    classes = (scores > cfg.model.thresh).long() if scores.ndim == 1 else scores.argmax(-1)
    return accuracy_of(cfg.dataset.name.replace("_", "-"))(y.numpy(), classes.numpy())
