"""The package out of a wheel, used in a folder of its own: its programs, and mains as GraphGym's users have them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.bad_inputs.conftest import WORKING
from tests.end_to_end.test_stock_graphgym import TEXT_GRAPH_YAML

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

BEGIN = """
import sys
import glem_graphgym
from torch_geometric.graphgym.cmd_args import parse_args
from torch_geometric.graphgym.config import cfg, dump_cfg, load_cfg, set_out_dir, set_run_dir
from torch_geometric.graphgym.model_builder import create_model
from torch_geometric.graphgym.utils.agg_runs import agg_runs
from torch_geometric.graphgym.utils.comp_budget import params_count

assert glem_graphgym.__file__.startswith({site!r}), glem_graphgym.__file__
args = parse_args()
load_cfg(cfg, args)
set_out_dir(cfg.out_dir, args.cfg_file)
dump_cfg(cfg)
set_run_dir(cfg.out_dir)
"""
MAINS = {
    # As that of PyG, whose training knows no train mode.
    "pyg": """
from torch_geometric.graphgym.train import GraphGymDataModule, train
datamodule = GraphGymDataModule()
model = create_model()
cfg.params = params_count(model)
train(model, datamodule, logger=True, trainer_config={"logger": False})
""",
    # As those of GraphGym and GraphGPS, which make everything first and hand it to the train mode.
    "graphgps": """
from torch_geometric.graphgym.loader import create_loader
from torch_geometric.graphgym.logger import create_logger
from torch_geometric.graphgym.optim import create_optimizer, create_scheduler
from torch_geometric.graphgym.register import train_dict
loaders, loggers, model = create_loader(), create_logger(), create_model()
optimizer = create_optimizer(model.parameters(), cfg.optim)
scheduler = create_scheduler(optimizer, cfg.optim)
train_dict[cfg.train.mode](loggers, loaders, model, optimizer, scheduler)
""",
}
END = "agg_runs(cfg.out_dir, cfg.metric_best)\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what it is made of."""
    source = tmp_path_factory.mktemp("source")
    for name in ("glem_graphgym", "configs_gg", "run"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*_grid_*"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run([*command, "--wheel-dir", "made"], cwd=source, check=True, timeout=300)
    (made,) = (source / "made").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed in."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def python(site: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python in ``folder`` with the wheel's package."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_wheel_holds_the_package_its_programs_and_configurations(site: Path) -> None:
    wanted = files(ROOT / "glem_graphgym")
    wanted |= {f"{folder}/{name}" for folder in ("run", "configs_gg") for name in files(ROOT / folder)}
    of_a_clone = {f"run/{name}.sh" for name in ("demo", "setup", "test")}
    assert files(site / "glem_graphgym") == wanted - of_a_clone


def files(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    return {name for name in found if "__pycache__" not in name and "_grid_" not in name}


def test_programs_and_configurations_by_name(site: Path, tmp_path: Path, tiny_lm: Path) -> None:
    small = ["dataset.synthetic_nodes", 200, "lm.model", tiny_lm, "lm.epochs", 1, "optim.max_epoch", 2]
    run = python(site, tmp_path, "-m", "glem_graphgym", "--cfg", "synthetic", *small)
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "results/synthetic/0/summary.json").read_text())
    _, *shown = shlex.split(run.stdout.splitlines()[-1].removeprefix("To see and compare them: "))
    assert shown == ["-m", "glem_graphgym", "leaderboard", "--dir", "results/synthetic"]
    board = python(site, tmp_path, "-u", *shown)
    assert board.returncode == 0, board.stderr
    assert "GLEM (SAGE) · GNN" in board.stdout
    wrong = python(site, tmp_path, "-m", "glem_graphgym", "leaderbord")
    assert wrong.returncode == 1
    assert "'leaderbord'" in wrong.stderr and "leaderboard" in wrong.stderr and "run_batch" in wrong.stderr


@pytest.mark.parametrize(("main", "mode"), [("pyg", "standard"), ("pyg", "glem"), ("graphgps", "glem")])
def test_mains_of_graphgym(main: str, mode: str, site: Path, tmp_path: Path, tiny_lm: Path) -> None:
    """An import is all that they need."""
    glem = WORKING.replace("precision: 32", "precision: auto").format(folder=tmp_path, tiny_lm=tiny_lm)
    (tmp_path / "own.yaml").write_text(glem if mode == "glem" else f"out_dir: results\n{TEXT_GRAPH_YAML}")
    (tmp_path / "main.py").write_text(BEGIN.format(site=str(site)) + MAINS[main] + END)
    run = python(site, tmp_path, "main.py", "--cfg", "own.yaml")
    results = tmp_path / "results" / "own"
    if (main, mode) == ("pyg", "glem"):
        assert run.returncode != 0
        assert "ConfigError: train.mode is 'glem'" in run.stderr and "train_dict['glem']" in run.stderr
        return
    assert run.returncode == 0, run.stderr
    assert 0 < json.loads((results / "agg" / "val" / "best.json").read_text())["accuracy"] <= 1
    assert (results / "0" / "summary.json").exists() == (mode == "glem")
