"""Bad grids: what is wrong names file and line, and a grid of a million points is no long wait."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from torch_geometric.graphgym.config import cfg

from glem_graphgym.config import load_config
from tests.bad_inputs.conftest import load_program

BASE = "dataset: {format: TAG, name: synthetic}\ntrain: {mode: glem}\nmodel: {type: glem_sage}\n"


def generate(folder: Path, grid: str | bytes, *flags: object, base: str = BASE) -> int:
    """Exit status of configs_gen.py on a grid's text."""
    (folder / "base.yaml").write_text(base)
    (folder / "g.txt").write_bytes(grid.encode() if isinstance(grid, str) else grid)
    arguments = ["--config", folder / "base.yaml", "--grid", folder / "g.txt", "--out_dir", folder / "configs", *flags]
    try:
        return load_program("configs_gen").main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(str(end.code))


WRONG = {
    "infinity": ("seed s [1]\nlm.lr a [1e999]\n", ["line 2", "lm.lr"]),
    "a large seed": ("seed s [1, 4294967296]\n", ["line 1", "seed"]),
    "a number where only -1 means something": ("e_step.lr a [-2e-4]\n", ["line 1", "e_step.lr"]),
    "an alias of two keys": ("seed s [1]\nround s [1]\n", ["line 2", "'s'", "line 1"]),
    "an alias with a slash": ("seed a/b [1]\n", ["line 1", "a/b"]),
    "an alias with a dash": ("seed a-b [1]\n", ["line 1", "a-b"]),
    "an alias with an equals sign": ("seed a=b [1]\n", ["line 1", "a=b"]),
    "no value": ("seed s []\n", ["line 1", "[]"]),
    "no list": ("seed s 1\n", ["line 1"]),
    "no alias": ("seed [1]\n", ["line 1"]),
    "a list over several lines": ("seed s [1,\n 2]\n", ["line 1", "one line"]),
    "a list that is not closed": ("seed s [1, 2\n", ["line 1"]),
    "a word without quotes": ("lm.model m [bert]\n", ["line 1", "quotes"]),
    "a leading zero": ("out_dir o [007]\n", ["line 1", "quotes"]),
    "a call": ("seed s [__import__('os').system('touch marker')]\n", ["line 1"]),
    "a comprehension": ("seed s [x for x in range(3)]\n", ["line 1"]),
    "a dictionary": ("seed s {1: 2}\n", ["line 1"]),
    "a value twice": ("seed s [1, 2, 1]\n", ["line 1", "1"]),
    "deep lists": (f"gnn.fan_out f {'[' * 300}{']' * 300}\n", ["line 1"]),
    "a value that is too long": (f"lm.model m ['{'x' * 300}']\n", ["line 1"]),
    "a name that is empty": ("lm. m [1]\n", ["line 1"]),
    "only comments": ("# seed s [1]\n", ["g.txt"]),
    "nothing": ("", ["g.txt"]),
    "binary": (b"\x80\x04\x95", ["g.txt"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_in_a_grid(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grid, names = WRONG[case]
    assert generate(tmp_path, grid) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err and len(err) < 1500
    for name in ["g.txt", *names]:
        assert name in err
    assert not (tmp_path / "configs").exists() and not (tmp_path / "marker").exists()


BASES = {
    "empty": ("", "empty"),
    "twice": ("seed: 1\nseed: 2\n", "lines 1 and 2"),
    "an unknown key": ("sede: 1\n", "sede"),
    "a tag": ("seed: !!python/object:os.system x\n", "line 1"),
    "a list": ("- 1\n", "key: value"),
}


@pytest.mark.parametrize("case", BASES)
def test_what_is_wrong_in_a_base(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(tmp_path, "seed s [1]\n", base=BASES[case][0]) == 1
    err = capsys.readouterr().err
    assert "base.yaml" in err and BASES[case][1] in err and len(err.splitlines()) == 1


MANY = "".join(
    f"{key} a{i} {list(range(1, 101))}\n" for i, key in enumerate(("seed", "gnn.dim_inner", "optim.max_epoch"))
)


def test_a_million_points_are_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(tmp_path, "seed s [1]\n")  # imports
    start = time.process_time()
    assert generate(tmp_path, MANY) == 1
    assert time.process_time() - start < 1
    err = capsys.readouterr().err
    for name in ("g.txt", "1,000,000", "--sample_num"):
        assert name in err


@pytest.mark.parametrize("powers", [1, 12])
def test_some_of_very_many_points_can_be_drawn(powers: int, tmp_path: Path) -> None:
    keys = ["lm.epochs", "lm.batch_size", "lm.max_length", "glem.em_iterations", "gnn.hops", "gnn.label_hops"]
    keys += ["gnn.layers_mp", "gnn.rlu_rounds", "optim.patience", "lm.evals_per_epoch", "train.ckpt_period"]
    more = "".join(f"{key} b{i} {list(range(3, 103))}\n" for i, key in enumerate(keys[: powers - 1]))
    assert generate(tmp_path, MANY + more, "--sample_num", 3) == 0
    assert len(list((tmp_path / "configs").glob("*/*.yaml"))) == 3
    assert generate(tmp_path, MANY, "--sample_num", 10**7) == 2


def test_texts_stand_as_they_were_typed(tmp_path: Path) -> None:
    assert generate(tmp_path, "lm.model m [2024_05, 1e3, 0x10, True, None, '007', '12:30', 1.50]\n") == 0
    found = set()
    for file in (tmp_path / "configs").glob("*/*.yaml"):
        load_config(cfg, file)
        found.add(cfg.lm.model)
    assert found == {"2024_05", "1e3", "0x10", "True", "None", "007", "12:30", "1.50"}


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    assert generate(tmp_path, b"\xef\xbb\xbfseed s [1]\r\nround r [2]\r\n") == 0
    (file,) = (tmp_path / "configs").glob("*/*.yaml")
    load_config(cfg, file)
    assert (cfg.seed, cfg.round) == (1, 2)


def test_a_search_cannot_move_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "space.txt").write_text("gnn.dropout d [0.1]\nout_dir o ['a', 'b']\n")
    arguments = ["--config", tmp_path / "base.yaml", "--space", tmp_path / "space.txt", "--out_dir", tmp_path / "new"]
    assert load_program("search").main([str(argument) for argument in arguments]) == 1
    assert "space.txt, line 2: out_dir" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_texts_of_the_base_stand_as_they_were_typed(tmp_path: Path) -> None:
    assert generate(tmp_path, "seed s [1]\n", base=BASE + "lm: {model: 2024_05}\nout_dir: 007\n") == 0
    (file,) = (tmp_path / "configs").glob("*/*.yaml")
    load_config(cfg, file)
    assert (cfg.lm.model, cfg.out_dir) == ("2024_05", "007/base_grid_g")
