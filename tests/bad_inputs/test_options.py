"""Bad values of every key: each is refused by name, or is a value that makes sense; and bad command lines."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch_geometric.graphgym.config import assert_cfg, cfg, set_cfg
from yacs.config import CfgNode

from glem_graphgym.config import ConfigError, Key, all_keys, check_config, load_config
from glem_graphgym.config.keys import STOCK_BOUNDS
from tests.bad_inputs.conftest import Program, load_program
from tests.checks import refused

NUMBERS = [
    *("0", "1", "-1", "2", "0.5", "-0.5", "1.5", "-2", "-2e-4", "2e-4", "1e3", "1e30", "-1e30", "9" * 30, "9" * 5000),
    *(".inf", "-.inf", "inf", "-inf", "nan", ".nan", "NaN", "Infinity", "1e999", "-1e999"),
]
OTHERS = [
    *("true", "False", "yes", "null", "~", "None", "many", "1,5", "1 2", "1e", "12:30", "010", "2024-05-01", "$", "'"),
    *("[]", "[1]", "[a, b]", "[[1]]", "[0.5, 0.2, 0.3]", "[1, .nan]", "[1, .inf]", "[-1, -2]", "[0.8,0.1", "[1, true]"),
    *("{}", "{a: 1}", "{a", "@home", "a: b", "- 1", "!!python/object:os.system x", "*a", "\t", "1 # 2", "[null, 1]"),
]
BAD = [*NUMBERS, *OTHERS]
IN_FILES = ["", "~", "-0.5", ".inf", "9" * 30, "true", "12:30", "2024-05-01", "[[1]]", "[a, b]", "{a: 1}", "{a", "@x"]
IN_FILES += ["[1, ~]"]


def every_key() -> list[str]:
    fresh = CfgNode()
    set_cfg(fresh)
    names = []
    for name, value in fresh.items():
        names += [f"{name}.{key}" for key in value] if isinstance(value, CfgNode) else [name]
    return [name for name in names if name != "run_dir" and not name.startswith("share.")]


def value_of(name: str) -> Any:
    group, _, key = name.rpartition(".")
    return cfg[group][key] if group else cfg[key]


def makes_sense(name: str, default: Any, value: Any) -> bool:
    """What no accepted value of any key may be."""
    if name.startswith("e_step."):
        return value is None or (type(value) in (int, float) and -1 <= value <= 2**31)
    items = value if isinstance(value, list) else [value]
    if isinstance(default, list) != isinstance(value, list):
        return False
    if any(isinstance(item, float) and not math.isfinite(item) for item in items):
        return False
    if isinstance(default, bool | str):
        return type(value) is type(default) or (value is None and name == "optim.scheduler")
    if isinstance(default, int | float):
        return (value is None and name == "devices") or (type(value) is type(default) and abs(value) <= 1e12)
    return all(not isinstance(item, bool | list | dict) and item is not None for item in items)


def check_refused_or_sensible(file: Path, options: list[str], name: str, default: Any, names: Sequence[str]) -> None:
    """Load a configuration that sets a key: refused in one line with one of ``names``, or the value makes sense."""
    try:
        load_config(cfg, file, options)
    except ConfigError as error:
        message = str(error)
        assert any(part in message for part in names), message
        assert "\n" not in message and len(message) < 1000
    else:
        assert makes_sense(name, default, value_of(name)), (name, options or file.read_text(), value_of(name))


@pytest.mark.parametrize("name", every_key())
def test_a_value_is_refused_by_name_or_makes_sense(name: str, tmp_path: Path) -> None:
    default, (group, _, key) = value_of(name), name.rpartition(".")
    file = tmp_path / "own.yaml"
    file.write_text("seed: 1\n")
    for text in BAD:
        check_refused_or_sensible(file, [name, text], name, default, [key])
    for text in IN_FILES:
        file.write_text(f"{group}:\n  {key}: {text}\n" if group else f"{key}: {text}\n")
        check_refused_or_sensible(file, [], name, default, [name, "own.yaml"])


@pytest.mark.parametrize("name", every_key())
def test_the_same_where_a_program_sets_it(name: str) -> None:
    """As a main of one's own can: no reading of text has seen the value."""
    values: list[Any] = [math.nan, math.inf, -math.inf, -7, 10**400, 1e300, True, None, {}, (1, "x")]
    values += ["x", "", [], [1], ["x"], [[1]]]
    for value in values:
        set_cfg(cfg)
        assert_cfg(cfg)
        group, _, key = name.rpartition(".")
        (cfg[group] if group else cfg)[key] = value
        message = ""
        try:
            check_config(cfg)
        except ConfigError as error:
            message = str(error)
        assert (name in message) if message else not isinstance(value, float | dict)
    set_cfg(cfg)


KINDS = {name: key.kind or type(key.default) for name, key in all_keys().items() if key.default != []}
NUMERIC = [key for name, key in all_keys().items() if KINDS.get(name) in (int, float)]


@pytest.mark.parametrize("key", NUMERIC, ids=lambda key: key.name)
def test_every_number_has_bounds(key: Key) -> None:
    """Below the least value, and above the largest, it is refused; -1 only where it stands for something."""
    assert key.low is not None
    key.check(key.default)
    is_float = KINDS[key.name] is float
    beyond = [key.low - 1 if key.low - 1 != -1 or not key.or_minus_one else -2, 2**33, 1e13]
    beyond += [] if key.below is None else [key.below]
    beyond += [-0.5, -2e-4, -2] if key.or_minus_one else [-1]
    for value in beyond:
        number = value if is_float else int(value) if value == int(value) else None
        if number is None or (number == 2**33 and is_float and key.high is None):
            continue
        with pytest.raises(ConfigError, match=key.name):
            key.check(float(number) if is_float else number)


def test_bounds_of_graphgyms_numbers_name_keys_that_it_has() -> None:
    assert set(STOCK_BOUNDS) <= set(every_key())


# A key, values that make no sense for it, and what the message names beside the key.
NONSENSE: list[tuple[str, list[str], list[str]]] = [
    ("gnn.fan_out", ["[5, true]"], []),
    ("optim.steps", ["[30, sixty]", "[30, 60.5]", "[-30]"], []),
    ("train.neighbor_sizes", ["[10, -2]"], []),
    ("dataset.tag_split", ["[0.8,0.1", "[0.8, 0.1]", "[0.8, 0.1, 0.2]", "[1, 0, 0]", "[0.8, 0.1, x]"], []),
    ("dataset.tag_split", ["0.8, 0.1, 0.1"], []),
    ("dataset.dir", [""], []),
    ("lm.model", [""], []),
    ("out_dir", [""], []),
    ("seed", ["1.0"], []),
    ("accelerator", ["gpu"], []),
    ("metric_best", ["acuracy", ""], ["accuracy"]),
    ("metric_best", ["f1"], ["macro_f1"]),
    ("metric_best", ["[accuracy]"], []),
    ("cfg_dest", ["", ".", "/tmp/config.yaml", "../config.yaml", "a/../../config.yaml"], ["config.yaml"]),
    ("cfg_dest", ["agg", "0", "summary.json"], ["config.yaml"]),
]


@pytest.mark.parametrize(
    ("name", "value", "said"), [(name, one, said) for name, values, said in NONSENSE for one in values]
)
def test_nonsense_is_refused_before_anything_is_loaded(name: str, value: str, said: list[str], tmp_path: Path) -> None:
    file = tmp_path / "glem.yaml"
    file.write_text("dataset: {format: TAG, name: synthetic}\ntrain: {mode: glem}\nmodel: {type: glem_sage}\n")
    load_config(cfg, file)
    refused(lambda: load_config(cfg, file, [name, value]), name, *said, error=ConfigError)


@pytest.mark.parametrize("values", [("0", 0), ("4294967295", 2**32 - 1), ("0x10", 16), ("1_000", 1000), ("+3", 3)])
def test_seeds_that_are_right(values: tuple[str, int], tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(f"seed: {values[0]}\n")
    load_config(cfg, tmp_path / "good.yaml")
    assert cfg.seed == values[1]


def test_metrics_of_graphgyms_own_training(tmp_path: Path) -> None:
    file = tmp_path / "stock.yaml"
    file.write_text("dataset: {task_type: regression}\n")
    with pytest.raises(ConfigError, match="metric_best is 'auto', expected one of: mae, mse, rmse, loss"):
        load_config(cfg, file)
    load_config(cfg, file, ["metric_best", "rmse", "metric_agg", "argmin"])
    load_config(cfg, file, ["metric_best", "auc", "dataset.task_type", "classification"])


# ---- the command line -----------------------------------------------------------------------------------------------


def test_of_an_option_that_is_given_twice_the_last_value_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "good.yaml").write_text("seed: 1\n")
    load_config(cfg, tmp_path / "good.yaml", ["seed", "2", "lm.lr", "0.1", "seed", "3"])
    assert (cfg.seed, cfg.lm.lr) == (3, 0.1)
    assert "seed is given 2 times" in caplog.text and ": 3" in caplog.text and "lm.lr" not in caplog.text


@pytest.mark.parametrize("program_name", ["main", "prepare"])
@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--sede", "3"], "--sede"),
        (["--seed=3"], "--seed"),
        (["seed", "3", "-v"], "-v"),
        (["seed"], "seed"),
        (["seed", "3", "out_dir"], "out_dir"),
        (["--cfg"], "--cfg"),
        (["--cfg", "x" * 300], "--cfg xxx"),
    ],
)
def test_a_command_line_that_is_wrong(options: list[str], name: str, program_name: str, program: Program) -> None:
    status, _, err = program.run(*options, program=program_name)
    assert status in (1, 2) and name in err.splitlines()[-1] and "Traceback" not in err
    assert program.stages() == []


@pytest.mark.parametrize("number", [["0"], ["two"], ["1000000000000"], []])
def test_a_number_of_seeds_that_is_wrong(number: list[str], program: Program) -> None:
    program.refuses("--repeat", *number, names="--repeat", status=2)


def test_the_last_seed_is_one_too(program: Program) -> None:
    program.refuses("seed", 2**32 - 2, "--repeat", 3, names=["seed", "--repeat", str(2**32)])
    program.refuses("seed", 2**32 - 2, "--repeat", 3, "--dry_run", names=["seed", "--repeat", str(2**32)])


def test_flags_may_stand_after_options(program: Program) -> None:
    args = load_program("main").parse_args(["seed", "3", "--cfg", "x.yaml", "e_step.lr", "-2e-4", "--repeat", "2"])
    assert isinstance(args, argparse.Namespace)
    assert (args.opts, args.repeat, args.cfg_file) == (["seed", "3", "e_step.lr", "-2e-4"], 2, Path("x.yaml"))


@pytest.mark.parametrize("option", ["metric_best", "cfg_dest", "round", "optim.steps", "dataset.tag_split"])
def test_before_the_first_stage_and_not_after_the_last(option: str, program: Program) -> None:
    program.refuses(option, "nonsense/..", names=option)


def test_a_variable_in_the_name_of_the_configuration(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDER", str(program.folder))
    program.write(yaml.safe_dump({"lm": {"epochs": -1}}).replace("{", "{{").replace("}", "}}"))
    status, _, err = program.run("--cfg", "$FOLDER/small.yaml")
    assert status == 1 and "lm.epochs" in err
    status, _, err = program.run("--cfg", "$NOT_SET/small.yaml")
    assert status == 2 and "NOT_SET" in err and "--cfg" in err
