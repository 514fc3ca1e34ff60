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
def configure_run(tmp_path: Path, tiny_lm: Path) -> Callable[..., Path]:
    """Loads the configuration of a small run under ``tmp_path``, with options as on the command line; its folder."""
    file = tmp_path / "small_run.yaml"
    file.write_text(
        f"""
num_threads: 1
dataset: {{format: TAG, name: synthetic, dir: {tmp_path}/datasets, tag_split: [0.3, 0.2, 0.4],
  synthetic_nodes: 100, synthetic_classes: 3, synthetic_degree: 5.0, synthetic_words: 4}}
lm: {{model: {tiny_lm}, max_length: 16, precision: 32, epochs: 1, batch_size: 8, lr: 4.0e-3}}
model: {{type: glem_sage}}
gnn: {{dim_inner: 8, layers_mp: 2, layers_post_mp: 1, dropout: 0.2}}
optim: {{optimizer: adamw, scheduler: none, max_epoch: 6}}
train: {{mode: glem, eval_period: 1}}
"""
    )

    def load(*options: object, run: str = "run") -> Path:
        load_config(cfg, file, [str(option) for option in options])
        cfg.run_dir = str(tmp_path / run)
        Path(cfg.run_dir).mkdir(parents=True, exist_ok=True)
        return Path(cfg.run_dir)

    return load


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
