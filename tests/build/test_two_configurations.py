"""Two configurations are built and trained in turns in one process, and neither sees anything of the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch_geometric.graphgym.config import cfg as global_cfg
from yacs.config import CfgNode

from glem_graphgym.build.graph import load_text_graph_of
from glem_graphgym.build.run import build_run
from glem_graphgym.config import load_config
from glem_graphgym.em.run import Run

BASE = """
accelerator: cpu
num_threads: 1
dataset: {{format: TAG, name: synthetic, dir: {folder}/datasets, tag_split: [0.3, 0.2, 0.4], synthetic_nodes: 90,
  synthetic_classes: 3, synthetic_words: 4}}
lm: {{model: {tiny_lm}, max_length: 12, precision: 32, epochs: 1, batch_size: 8, lr: 4.0e-3}}
gnn: {{dim_inner: 8, layers_mp: 2, dropout: 0.2}}
optim: {{optimizer: adam, base_lr: 0.01, max_epoch: 4}}
train: {{mode: glem_cascade, eval_period: 1}}
"""
# Networks of GraphGym read the global configuration when they are built, and again in every forward pass.
STOCK = {
    "one": "model.type gnn gnn.layer_type sageconv gnn.stage_type skipconcat gnn.layers_pre_mp 1 gnn.dim_inner 8",
    "other": "model.type gnn gnn.layer_type gcnconv gnn.stage_type stack gnn.dim_inner 16 gnn.l2norm False",
}
OURS = {
    "one": "model.type glem_gcn gnn.dim_inner 8 gnn.input_norm standardise glem.label_input True",
    "other": "model.type glem_gamlp gnn.hops 2 gnn.dim_inner 16 lm.pooling cls optim.optimizer sgd",
}


def configured(name: str, options: str, folder: Path, tiny_lm: Path) -> CfgNode:
    file = folder / "base.yaml"
    file.write_text(BASE.format(folder=folder, tiny_lm=tiny_lm))
    cfg = CfgNode()
    load_config(cfg, file, options.split())
    cfg.run_dir = str(folder / name)
    return cfg


def built(cfg: CfgNode) -> Run:
    return build_run(cfg, load_text_graph_of(cfg))


@pytest.mark.parametrize("pair", [OURS, STOCK], ids=["ours", "GraphGym's"])
def test_they_are_trained_in_turns_as_each_is_alone(
    pair: dict[str, str], tmp_path: Path, tiny_lm: Path, fresh_config: None
) -> None:
    alone = {}
    for name, options in pair.items():
        run = built(configured(f"{name} alone", options, tmp_path, tiny_lm))
        alone[name] = run.fit_gnn_on_gold(run.fit_lm_on_gold()).logits
    before = str(global_cfg)
    runs = [built(configured(name, options, tmp_path, tiny_lm)) for name, options in pair.items()]
    lms = [run.fit_lm_on_gold() for run in runs]
    for name, run, lm in zip(pair, runs, lms, strict=True):
        np.testing.assert_array_equal(run.fit_gnn_on_gold(lm).logits, alone[name])
    assert not np.array_equal(alone["one"], alone["other"])
    assert str(global_cfg) == before
