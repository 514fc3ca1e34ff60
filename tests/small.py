"""One small configuration, which tests of whole runs change where they need another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

NODES, CLASSES = 160, 3
TEXT = """
metric_best: accuracy
num_threads: 1
tensorboard_agg: False
dataset: {format: TAG, name: synthetic, tag_split: [0.3, 0.2, 0.3], synthetic_nodes: 160, synthetic_classes: 3,
  synthetic_degree: 5.0, synthetic_words: 4, synthetic_text_signal: 0.8, synthetic_structure_signal: 0.8}
lm: {epochs: 1, batch_size: 8, lr: 4.0e-3, max_length: 16, precision: 32}
model: {type: glem_sage}
gnn: {layers_mp: 2, layers_post_mp: 1, dim_inner: 16, dropout: 0.2}
optim: {optimizer: adamw, scheduler: none, max_epoch: 8}
train: {mode: glem, eval_period: 2}
"""


def write_config(file: Path, tiny_lm: Path, changes: Mapping[str, object] | None = None) -> Path:
    """Write the configuration into ``file``; datasets and results go beside it unless ``changes`` (key -> value)."""
    values = yaml.safe_load(TEXT)
    beside = {"out_dir": str(file.parent / "results"), "dataset.dir": str(file.parent / "datasets")}
    for name, value in {**beside, "lm.model": str(tiny_lm), **(changes or {})}.items():
        *group, key = name.split(".")
        (values.setdefault(group[0], {}) if group else values)[key] = value
    file.write_text(yaml.safe_dump(values))
    return file
