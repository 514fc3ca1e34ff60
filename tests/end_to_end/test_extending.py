"""docs/extending.md is true: each of its examples is run, from the README's main, in a folder of its own."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import network_dict, train_dict

from glem_graphgym.build.graph import GRAPHS
from glem_graphgym.modes import MODES
from tests.bad_inputs.conftest import run_here

ROOT = Path(__file__).resolve().parents[2]
FILES = dict(re.findall(r"\n`([\w.]+)`:\n\n```\w+\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL))
(MAIN,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
SMALL = {"num_threads": 1, "lm.epochs": 1, "optim.max_epoch": 2, "gnn.dim_inner": 8, "lm.max_length": 32}
# Python file -> its configuration, and the last row of the table.
EXAMPLES = {
    "stdlib_graph": ("stdlib", "GLEM-GNN"),
    "appnp": ("appnp", "GLEM-GNN"),
    "positions": ("positions", "GNN"),
    "lm_teaches": ("lm_teaches", "GLEM-GNN"),
}


def test_every_example_is_run() -> None:
    assert {*FILES} == {f"{module}.py" for module in EXAMPLES} | {f"{name}.yaml" for name, _ in EXAMPLES.values()}


@pytest.mark.parametrize("module", EXAMPLES)
def test_example(
    module: str,
    tmp_path: Path,
    tiny_lm: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    tables = [GRAPHS, MODES, network_dict, train_dict]
    before = [dict(table) for table in tables]
    config, last_row = EXAMPLES[module]
    options = [str(word) for pair in {**SMALL, "lm.model": tiny_lm}.items() for word in pair]
    monkeypatch.setattr(sys, "argv", ["main.py", "--cfg", f"{config}.yaml", *options])
    try:
        if module == "positions":  # a program, whose file the configuration reads
            importlib.import_module(module)
            module = "glem_graphgym"
        exec(compile(MAIN.replace("import glem_graphgym", f"import {module}", 1), "main.py", "exec"), {})
    finally:
        for table, content in zip(tables, before, strict=True):
            table.clear()
            table.update(content)
    run_dir = Path("results") / config / "0"
    rows = json.loads((run_dir / "summary.json").read_text())
    assert rows[-1]["method"] == last_row and cfg.dataset.format == "TAG"
    board = run_here("leaderboard", ["--dir", f"results/{config}"], capsys)
    assert board.returncode == 0 and "accuracy" in board.stdout, board.stderr
