"""What a run imports, imported by the process of which `started` forks."""

import gc

from transformers.models.bert import modeling_bert

import glem_graphgym
from glem_graphgym.build import prediction, run
from glem_graphgym.report import aggregate, reliability, stats

__all__ = ["aggregate", "glem_graphgym", "modeling_bert", "prediction", "reliability", "run", "stats"]
gc.collect()
gc.freeze()  # forks need not go through it, nor copy it
