"""Old names of keys: refused with the new ones, and understood in the run folders that were made under them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.run_folder import RunError, check_run_folder, identity_of
from glem_graphgym.config import KEYS, ConfigError, load_config
from glem_graphgym.renamed import REMOVED, RENAMED, in_new_names
from glem_graphgym.report.axes import varied_settings
from glem_graphgym.report.experiments import read_experiments
from tests.report.conftest import save_run

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "run"))

from grid import configs, space  # noqa: E402

NAMES = {key.name: key for key in KEYS}


def test_new_names_are_keys_and_old_ones_are_none() -> None:
    assert set(RENAMED.values()) <= set(NAMES)
    assert not (set(RENAMED) | set(REMOVED)) & set(NAMES)


@pytest.mark.parametrize("old", [*RENAMED, *REMOVED])
def test_an_old_name_is_refused_with_the_new_one(old: str, tmp_path: Path) -> None:
    """Before anything else that is wrong, in a file and on the command line."""
    group, _, key = old.partition(".")
    file = tmp_path / "old.yaml"
    for text, options in (
        (f"nonsense: 1\nseed: x\n{group}: {{{key}: 1, of: 2}}\n", []),
        (f"{old}: 1\nsede: 1\n", []),
        ("seed: 1\n", ["seed", "x", old, "1"]),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError) as error:
            load_config(cfg, file, options)
        message = str(error.value)
        assert message.startswith("command line: " if options else f"{file}: ")
        assert (f"{old} is now {RENAMED[old]}" if old in RENAMED else f"{old} is no key any more") in message
        assert "nonsense" not in message and "\n" not in message


def test_all_old_names_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("glem: {lm_lr: 1e-3, input_norm: True}\ngnn: {group: 2, hop_attention: jk}\n")
    with pytest.raises(ConfigError) as error:
        load_config(cfg, tmp_path / "old.yaml")
    for part in ("glem.lm_lr is now e_step.lr (null for -1)", "gnn.input_norm (none, standardise, batch or layer)",
                 "gnn.group is now gnn.rev_groups", "gnn.hop_attention is no key any more"):  # fmt: skip
        assert part in str(error.value)


@pytest.mark.parametrize("place", ["grid", "base"])
def test_old_names_in_a_grid_and_in_its_base(place: str, tmp_path: Path) -> None:
    base, grid = tmp_path / "base.yaml", tmp_path / "g.txt"
    base.write_text("seed: 1\n" + ("lm: {accumulate: 2}\n" if place == "base" else ""))
    grid.write_text("seed s [1]\n" + ("lm.accumulate a [1,2]\n" if place == "grid" else ""))
    with pytest.raises(space.GridError, match=r"lm\.accumulate is now lm\.grad_accumulation") as error:
        configs.make_configs(str(base), str(grid), space.all_points(space.read_grid(grid)), None)
    assert ("g.txt, line 2" if place == "grid" else "base.yaml") in str(error.value)


OLD: dict[str, Any] = {"glem.lm_epochs": -1, "glem.lm_lr": 0.001, "lm.accumulate": 2, "gnn.stages": 1, "gnn.ema": 0.99}


def test_settings_in_their_new_names() -> None:
    expected = {"e_step.epochs": None, "e_step.lr": 0.001, "lm.grad_accumulation": 2, "gnn.rlu_rounds": 1}
    assert in_new_names(OLD) == expected == in_new_names(expected)
    assert in_new_names({"gnn.ema": 0.9, "seed": 3}) == {"gnn.ema": 0.9, "seed": 3}


@pytest.mark.parametrize(
    ("outside", "inside", "norm"),
    [(True, False, "standardise"), (False, False, "none"), (False, True, "batch"), (True, None, "standardise")],
)
def test_the_two_norms_of_the_input_are_one(outside: bool, inside: bool | None, norm: str) -> None:
    old = {"glem.input_norm": outside} | ({} if inside is None else {"gnn.input_norm": inside})
    assert in_new_names(old) == {"gnn.input_norm": norm}


def in_old_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as a run of an earlier version noted them."""
    old = {new: name for name, new in RENAMED.items() if name != "glem.input_norm"}
    norm = settings["gnn.input_norm"]
    found = {old.get(key, key): value for key, value in settings.items() if key != "gnn.input_norm"}
    found = {key: -1 if value is None and key.startswith("glem.lm_") else value for key, value in found.items()}
    return {**found, **REMOVED, "glem.input_norm": norm == "standardise", "gnn.input_norm": norm == "batch"}


@pytest.mark.parametrize("change", [{}, {"gnn.hop_attention": "jk"}, {"glem.lm_lr": 0.5}, {"glem.input_norm": False}])
def test_a_run_that_was_begun_under_old_names_goes_on(change: dict[str, Any], tmp_path: Path) -> None:
    load_config(cfg, ROOT / "configs_gg" / "synthetic.yaml", ["lm.model", str(tmp_path), "train.mode", "glem_gnn",
                                                              "glem.node_features", "raw"])  # fmt: skip
    now = identity_of(cfg, None)
    before = {**now, "settings": in_old_names(now["settings"]) | change}
    (tmp_path / "0" / "stages" / "00_gnn_gold").mkdir(parents=True)
    (tmp_path / "0" / "run.json").write_text(json.dumps(before))
    if not change:
        check_run_folder(tmp_path / "0", now)
        return
    (old,) = change
    with pytest.raises(RunError, match=RENAMED.get(old, old)):
        check_run_folder(tmp_path / "0", now)


def test_the_leaderboard_reads_runs_of_both_names_as_one_grid(tmp_path: Path) -> None:
    new = {"e_step.lr": None, "e_step.epochs": 2, "gnn.input_norm": "none", "gnn.rev_groups": 2}
    old = {"glem.lm_lr": -1, "glem.lm_epochs": 2, "glem.input_norm": False, "gnn.input_norm": False, "gnn.group": 2}
    old |= {"gnn.ema": 0.99, "glem.alpha": 0.7}
    for seed in (0, 1):
        save_run(tmp_path / "new", seed, settings=new)
        save_run(tmp_path / "old", seed, settings=old if seed else {**new, "glem.alpha": 0.7})  # seeds of both
    experiments, _ = read_experiments([tmp_path])
    assert varied_settings(experiments) == [("glem.alpha",)]
