"""OGB's evaluators as GraphGym metrics (``custom_metrics: ['ogb_accuracy']``), and the score of our train modes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import register_metric

Accuracy = Callable[[np.ndarray, np.ndarray], float]  # (true classes (n,), predicted classes (n,)) -> share 0-1


def accuracy_of(dataset: str) -> Accuracy:
    """OGB's evaluator for ``ogbn-*`` graphs, the same share of right classes elsewhere."""
    if dataset.startswith("ogbn-"):
        from glem_graphgym.data.ogb import ogb_accuracy

        return ogb_accuracy(dataset)
    return lambda true, predicted: float((true == predicted).mean())


@register_metric("ogb_accuracy")
def ogb_accuracy_metric(true: list[Tensor], pred: list[Tensor], task_type: str) -> float:
    """Accuracy by the OGB evaluator of ``dataset.name`` (``ogbn_arxiv`` and ``ogbn-arxiv`` alike); a Python float.

    Set ``metric_best: ogb_accuracy`` with it: a custom metric takes the place of GraphGym's own.
    """
    y, scores = torch.cat(true), torch.cat(pred)
    classes = (scores > cfg.model.thresh).long() if scores.ndim == 1 else scores.argmax(-1)
    return accuracy_of(cfg.dataset.name.replace("_", "-"))(y.numpy(), classes.numpy())
