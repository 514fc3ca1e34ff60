"""GraphGym's own way in: ``load_cfg`` checks nothing of ours, so whatever builds a run does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch_geometric.graphgym.config import cfg, load_cfg
from torch_geometric.graphgym.loader import create_loader
from torch_geometric.graphgym.register import train_dict

from glem_graphgym.config import ConfigError
from glem_graphgym.modes import MODES
from tests.bad_inputs.conftest import WORKING
from tests.checks import refused


@pytest.fixture
def own_main(tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which GraphGym's ``load_cfg`` has a configuration that works."""
    monkeypatch.chdir(tmp_path)
    text = WORKING.replace("precision: 32", "precision: auto")  # which yacs reads as a number, whatever its quotes
    (tmp_path / "own.yaml").write_text(text.format(folder=tmp_path, tiny_lm=tiny_lm))
    return tmp_path


# What a mode wants beyond the working configuration.
OWN_KEYS = {"glem_gnn": ["glem.node_features", "static"], "glem_joint": ["gnn.fan_out", "[2,2]"]}


def load(folder: Path, *options: object) -> None:
    load_cfg(cfg, SimpleNamespace(cfg_file=str(folder / "own.yaml"), opts=[str(option) for option in options]))
    cfg.run_dir = str(folder / "results" / "own" / "0")


WRONG = {
    ("glem.alpha", 7.0): ["glem.alpha"],
    ("glem.order", "gnnfirst"): ["glem.order", "gnn_first"],
    ("e_step.lr", -2e-4): ["e_step.lr"],
    ("glem.beta", "1e999"): ["glem.beta"],
    ("lm.epochs", -1): ["lm.epochs"],
    ("lm.precision", "half"): ["lm.precision"],
    ("gnn.dropout", 1.5): ["gnn.dropout"],
    ("gnn.layers_mp", -1): ["gnn.layers_mp"],
    ("dataset.tag_split", "[0.5,0.5,0.5]"): ["dataset.tag_split"],
    ("dataset.dir", "'$NOT_SET/x'"): ["dataset.dir", "NOT_SET"],
    ("metric_best", "acc"): ["metric_best"],
    ("optim.steps", "['a']"): ["optim.steps"],
    ("seed", -3): ["seed"],
    ("dataset.format", "PyG"): ["dataset.format"],
    ("devices", 2): ["devices is 2", "python -m glem_graphgym"],
}


@pytest.mark.parametrize("options", WRONG, ids=lambda options: f"{options[0]} {options[1]}")
def test_what_is_wrong_is_refused_when_a_mode_is_called(options: tuple[str, object], own_main: Path) -> None:
    load(own_main, *options)
    refused(train_dict["glem"], *WRONG[options], error=ConfigError)
    assert not (own_main / "results").exists()


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    ],
    ids=["torchrun", "srun"],
)
def test_several_processes_that_nobody_connects(
    variables: dict[str, str], own_main: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would do the whole run, in one folder."""
    load(own_main)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="2 processes were started"):
        train_dict["glem"]()


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_that_is_not_the_one_configured(mode: str, own_main: Path) -> None:
    load(own_main, "train.mode", "standard")
    with pytest.raises(ConfigError, match=rf"train\.mode is 'standard', but .*{mode}"):
        train_dict[mode]()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sampler", ["full_batch", "neighbor"])
def test_graphgyms_own_training_refuses_a_mode_of_ours(mode: str, sampler: str, own_main: Path) -> None:
    """It would train the GNN alone, and say nothing."""
    load(own_main, "train.mode", mode, "train.sampler", sampler, *OWN_KEYS.get(mode, []))
    names = ("train.mode", f"'{mode}'", "standard", "train_dict")
    refused(lambda: next(iter(create_loader()[0])), *names, error=ConfigError)


@pytest.mark.parametrize("mode", MODES)
def test_another_format_with_a_mode_of_ours(mode: str, own_main: Path) -> None:
    load(own_main, "train.mode", mode, "dataset.format", "PyG")
    with pytest.raises(ConfigError, match=r"dataset\.format"):
        create_loader()


def test_graphgyms_own_training_is_checked_too(own_main: Path) -> None:
    load(own_main, "train.mode", "standard", "glem.node_features", "static", "glem.alpha", 7.0)
    with pytest.raises(ConfigError, match=r"glem\.alpha"):
        create_loader()


def test_what_is_right_is_built(own_main: Path) -> None:
    load(own_main, "train.mode", "standard", "dataset.synthetic_features", 3, "glem.node_features", "raw")
    assert len(create_loader()) == 3
