"""The configuration and graph of tests that ask what a run needs; a module with other ones defines its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch_geometric.graphgym.config import cfg

from glem_graphgym.config import load_config
from glem_graphgym.data.synthetic import make_synthetic
from glem_graphgym.data.text_graph import TextGraph

NODES = 400


@pytest.fixture
def configure(tmp_path: Path, tiny_lm: Path) -> Callable[..., None]:
    """Loads a configuration of GLEM on the synthetic graph, with options as on the command line."""
    file = tmp_path / "small.yaml"
    file.write_text(
        f"""
accelerator: cpu
dataset: {{format: TAG, name: synthetic, dir: {tmp_path}/datasets, tag_split: [0.3, 0.2, 0.4],
  synthetic_nodes: {NODES}, synthetic_words: 4, synthetic_features: 6}}
lm: {{model: {tiny_lm}, max_length: 12, precision: 32}}
model: {{type: glem_gcn}}
gnn: {{dim_inner: 16, layers_mp: 2}}
train: {{mode: glem}}
"""
    )

    def load(*options: object) -> None:
        load_config(cfg, file, [str(option) for option in options])
        cfg.run_dir = str(tmp_path / "run")

    return load


@pytest.fixture
def graph() -> TextGraph:
    """The graph that the configuration names."""
    return make_synthetic(num_nodes=NODES, feature_dim=6, words_per_text=4)
