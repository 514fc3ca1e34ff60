"""docs/extending.md is true: each of its examples is run, by run/main.py and by the README's main."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of all examples; what they register and import is forgotten at the end."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    tables = [GRAPHS, MODES, network_dict, train_dict]
    before, path = [dict(table) for table in tables], sys.path[:]
    yield tmp_path
    sys.path[:] = path
    for module in EXAMPLES:
        sys.modules.pop(module, None)
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


@pytest.mark.parametrize("module", EXAMPLES)
def test_example(
    module: str, folder: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, last_row = EXAMPLES[module]
    options = ["--cfg", f"{config}.yaml", *(word for pair in {**SMALL, "lm.model": tiny_lm}.items() for word in pair)]
    if module == "positions":  # a program, whose file the configuration reads
        monkeypatch.syspath_prepend(folder)
        importlib.import_module(module)
    ended = run_here("main", options, capsys)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads((folder / "results" / config / "0" / "summary.json").read_text())
    assert rows[-1]["method"] == last_row
    board = run_here("leaderboard", ["--dir", f"results/{config}"], capsys)
    assert board.returncode == 0 and "accuracy" in board.stdout, board.stderr


def test_an_example_in_a_main_of_ones_own(folder: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    options = [str(word) for pair in {**SMALL, "lm.model": tiny_lm}.items() for word in pair]
    monkeypatch.setattr(sys, "argv", ["main.py", "--cfg", "appnp.yaml", *options])
    exec(compile(MAIN.replace("import glem_graphgym", "import glem_graphgym\nimport appnp", 1), "main.py", "exec"), {})
    assert json.loads(Path("results/appnp/0/summary.json").read_text())[-1]["method"] == "GLEM-GNN"


def test_a_grid_takes_a_configuration_with_a_plugin(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "depth.txt").write_text("gnn.layers_mp hops [2,5]\n")
    made = run_here("configs_gen", ["--config", "appnp.yaml", "--grid", "depth.txt", "--out_dir", "made"], capsys)
    assert made.returncode == 0, made.stderr
    assert len([*(folder / "made").rglob("*.yaml")]) == 2


def test_a_dataset_that_returns_nothing_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "stdlib_graph.py").open("a") as file:
        file.write('GRAPHS["stdlib"] = lambda cfg: None\n')
    ended = run_here("main", ["--cfg", "stdlib.yaml"], capsys)
    assert (
        ended.returncode == 1 and "dataset.name stdlib: GRAPHS returned NoneType, expected a TextGraph" in ended.stderr
    )


WRONG = {
    "[missing.py]": ["FileNotFoundError", "missing.py"],
    "[no_such_module]": ["ModuleNotFoundError", "no_such_module"],
    "[broken.py]": ["ZeroDivisionError", "broken.py"],
    "[json.py]": ["json.py", "another module", "rename"],
    "$NO_SUCH_FOLDER/appnp.py": ["glem.plugins", "list"],
    "[$NO_SUCH_FOLDER/appnp.py]": ["NO_SUCH_FOLDER"],
}


@pytest.mark.parametrize("value", WRONG)
def test_a_plugin_that_cannot_be_imported_is_named(
    value: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "json.py").write_text("")
    ended = run_here("main", ["--cfg", "appnp.yaml", "glem.plugins", value], capsys)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    for word in ("glem.plugins", *WRONG[value]):
        assert word in ended.stderr
