"""Stock GraphGym is left as it is: the same numbers with our plugin imported as without, and through our program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch_geometric.graphgym.register import loader_dict

from glem_graphgym.build.run_folder import RunError
from glem_graphgym.report.leaderboard import read_boards
from tests.bad_inputs.conftest import load_program, logging_taken_back

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "val", "test")

# A dataset of a format of its own, as any plugin of GraphGym registers one.
TINY_LOADER = """
import torch
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.graphgym.register import register_loader


class Tiny(InMemoryDataset):
    def __init__(self, classes):
        super().__init__(None)
        draw = torch.Generator().manual_seed(0)
        y = torch.randint(classes, (120,), generator=draw)
        x = torch.randn(120, 6, generator=draw) + 0.7 * torch.nn.functional.one_hot(y, 6)
        edge_index = torch.randint(120, (2, 500), generator=draw)
        part = torch.randint(3, (120,), generator=draw)
        masks = {name: part == number for number, name in enumerate(("train_mask", "val_mask", "test_mask"))}
        self.data, self.slices = self.collate([Data(x=x, y=y, edge_index=edge_index, **masks)])


@register_loader("tiny_stock")
def load(format, name, dataset_dir):
    return Tiny(int(name[-1])) if format == "Tiny" else None
"""

# GraphGym's own main.py, without its command line.
STOCK_MAIN = """
import sys, types
mode, *files = sys.argv[1:]
if mode == "with_plugin":
    import glem_graphgym
import tiny_loader
import torch
from torch_geometric import seed_everything
from torch_geometric.graphgym.config import cfg, dump_cfg, load_cfg, set_cfg, set_out_dir, set_run_dir
from torch_geometric.graphgym.logger import set_printing
from torch_geometric.graphgym.model_builder import create_model
from torch_geometric.graphgym.train import GraphGymDataModule, train
from torch_geometric.graphgym.utils.comp_budget import params_count
from torch_geometric.graphgym.utils.device import auto_select_device

assert ("glem_graphgym" in sys.modules) == (mode == "with_plugin")
for file in files:
    set_cfg(cfg)
    load_cfg(cfg, types.SimpleNamespace(cfg_file=file, opts=["out_dir", mode]))
    set_out_dir(cfg.out_dir, file)
    dump_cfg(cfg)
    torch.set_num_threads(cfg.num_threads)
    set_run_dir(cfg.out_dir)
    set_printing()
    seed_everything(cfg.seed)
    auto_select_device()
    datamodule = GraphGymDataModule()
    model = create_model()
    cfg.params = params_count(model)
    train(model, datamodule, logger=True, trainer_config={"logger": False})
"""

STOCK_YAML = """
out_dir: results
seed: 3
num_threads: 1
accelerator: cpu
metric_best: accuracy
tensorboard_agg: False
dataset:
  format: Tiny
  name: classes{classes}
  task: node
  task_type: classification
train:
  batch_size: 1
  enable_ckpt: False
model:
  type: gnn
  loss_fun: cross_entropy
gnn:
  layers_pre_mp: 1
  layers_mp: 2
  layers_post_mp: 1
  layer_type: {layer}
  stage_type: skipsum
  dim_inner: 16
  dropout: 0.3
  batchnorm: True
optim:
  optimizer: adam
  base_lr: 0.01
  max_epoch: 5
  scheduler: cos
"""

TEXT_GRAPH_YAML = """
num_threads: 1
accelerator: cpu
metric_best: accuracy
tensorboard_agg: False
print: file
dataset:
  format: TAG
  name: synthetic
  dir: datasets
  tag_split: [0.3, 0.2, 0.3]
  synthetic_nodes: 120
  synthetic_features: 8
train:
  mode: standard
  batch_size: 1
  enable_ckpt: False
model:
  type: glem_gcn
  loss_fun: cross_entropy
gnn:
  layers_mp: 2
  dim_inner: 16
optim:
  optimizer: adam
  base_lr: 0.01
  max_epoch: 3
glem:
  node_features: raw
"""

CONFIGS = {"three": {"classes": 3, "layer": "gcnconv"}, "two": {"classes": 2, "layer": "generalconv"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two configurations, GraphGym's main, and the loader."""
    folder = tmp_path_factory.mktemp("stock")
    (folder / "tiny_loader.py").write_text(TINY_LOADER)
    (folder / "stock_main.py").write_text(STOCK_MAIN)
    for name, values in CONFIGS.items():
        (folder / f"{name}.yaml").write_text(STOCK_YAML.format(**values))
    return folder


@pytest.fixture(scope="module")
def stock(folder: Path) -> Path:
    """The folder after GraphGym's own main ran there, once without our plugin and once with it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for mode in ("without_plugin", "with_plugin"):
        command = [sys.executable, "stock_main.py", mode, *(f"{name}.yaml" for name in CONFIGS)]
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def tiny_loader(folder: Path) -> Iterator[None]:
    """The loader registered in this process too."""
    exec(compile(TINY_LOADER, "tiny_loader.py", "exec"), {"__name__": "tiny_loader"})
    yield
    del loader_dict["tiny_stock"]


@pytest.fixture
def same_logging() -> Iterator[None]:
    with logging_taken_back():
        yield


def rows(file: Path) -> list[dict[str, float]]:
    """Rows of a stats file without what is measured."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("time_iter", "eta")} for row in lines]


@pytest.mark.parametrize("config", CONFIGS)
def test_the_plugin_changes_no_number_of_stock_graphgym(config: str, stock: Path) -> None:
    for split in SPLITS:
        without = rows(stock / "without_plugin" / config / "3" / split / "stats.json")
        assert rows(stock / "with_plugin" / config / "3" / split / "stats.json") == without
        # GraphGym's validation has Lightning's sanity check before its 5 epochs.
        assert len(without) == {"train": 5, "val": 6, "test": 1}[split]
    losses = [row["loss"] for row in rows(stock / "without_plugin" / config / "3" / "train" / "stats.json")]
    assert len(set(losses)) == 5  # it trains


@pytest.mark.parametrize("config", CONFIGS)
def test_standard_mode_is_stock_graphgym(
    config: str, stock: Path, tiny_loader: None, same_logging: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through run/main.py, in this process: the same rows, and validation without the untrained model's."""
    monkeypatch.chdir(stock)
    assert load_program("main").main(["--cfg", f"{config}.yaml", "out_dir", "ours"]) == 0
    about = json.loads((stock / "ours" / config / "3" / "run.json").read_text())
    assert "fingerprint" not in about and about["seconds"] > 0  # not a text graph, so its content is not known
    for split in SPLITS:
        expected = rows(stock / "without_plugin" / config / "3" / split / "stats.json")
        found = rows(stock / "ours" / config / "3" / split / "stats.json")
        assert found == (expected[1:] if split == "val" else expected)
    assert [row["epoch"] for row in found] == [5]
    # The aggregate takes the epoch of the best validation, for test the one row that there is.
    val = rows(stock / "ours" / config / "3" / "val" / "stats.json")
    best = max(row["accuracy"] for row in val)
    assert json.loads((stock / "ours" / config / "agg" / "val" / "best.json").read_text())["accuracy"] == best
    test = json.loads((stock / "ours" / config / "agg" / "test" / "best.json").read_text())
    assert test["accuracy"] == found[0]["accuracy"]


def test_a_stock_run_on_a_text_graph_notes_graph_cost_and_versions(
    tmp_path: Path, same_logging: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the leaderboard can rank it with our own train modes on the same graph."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gcn.yaml").write_text(TEXT_GRAPH_YAML)
    for number in range(2):
        start = time.perf_counter()
        assert load_program("main").main(["--cfg", "gcn.yaml", "out_dir", "stock"]) == 0
        seconds = time.perf_counter() - start
        about = json.loads((tmp_path / "stock" / "gcn" / "0" / "run.json").read_text())
        if number == 0:
            first = about
            assert 0 < about["seconds"] < seconds
    assert about == first  # a finished run is left as it is
    assert 100 < about["peak_memory_mb"] < 100_000  # at least torch itself, and less than the machine has
    assert set(about["versions"]) == {"ogb", "torch", "torch_geometric", "transformers"}
    assert about["finished"] is True and "em_iterations" not in about
    (stock,) = read_boards([tmp_path / "stock"])
    assert load_program("main").main(["--cfg", "gcn.yaml", "out_dir", "ours", "train.mode", "glem_gnn"]) == 0
    (together,) = read_boards([tmp_path / "stock", tmp_path / "ours"])
    assert together.fingerprint == about["fingerprint"]
    assert {row.method for row in together.rows} == {"GraphGym", "GNN"}
    assert (stock.rows[0].seconds, stock.rows[0].peak_memory_mb) == (about["seconds"], about["peak_memory_mb"])
    with pytest.raises(RunError, match="another version of synthetic"):
        load_program("main").main(["--cfg", "gcn.yaml", "out_dir", "stock", "dataset.tag_seed", "5"])


def test_the_same_names_in_two_classes_and_three(stock: Path) -> None:
    """Stock keys are untouched: two classes have GraphGym's binary scores, three have accuracy alone."""
    two = rows(stock / "with_plugin" / "two" / "3" / "val" / "stats.json")[0]
    three = rows(stock / "with_plugin" / "three" / "3" / "val" / "stats.json")[0]
    assert set(two) - set(three) == {"precision", "recall", "f1", "auc"}
