"""docs/your_own_data.md is true: each layout that it shows is read with the keys beside it, and the first is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.graph import load_text_graph_of
from glem_graphgym.config import load_config
from tests.bad_inputs.conftest import PREAMBLE, Program

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/your_own_data.md").read_text(encoding="utf-8")
SECTIONS = {text.partition("\n")[0]: text for text in PAGE.split("\n## ")[1:]}
SHOWN = [name for name, text in SECTIONS.items() if "\n```csv" in text or "\n```json" in text]
# Shares that leave no split of ten nodes empty, and what makes a run small.
SHARES = ["dataset.tag_split", "[0.4, 0.3, 0.3]"]
SMALL = ["lm.epochs", "1", "gnn.dim_inner", "8", "optim.max_epoch", "2", "lm.precision", "32"]


def write(section: str, folder: Path) -> str:
    """The files that a section shows, written; its YAML, or that of a folder of tables."""
    files = re.findall(r"\n`([\w.]+)`:\n\n```\w+\n(.*?)```", SECTIONS[section], re.DOTALL)
    for name, content in files:
        (folder / name).write_text(content, encoding="utf-8")
    yaml = re.findall(r"```yaml\n(.*?)```", SECTIONS[section], re.DOTALL)
    return yaml[0] if yaml else "dataset: {format: TAG, name: table, tag_source: .}\n"


@pytest.mark.parametrize("section", SHOWN)
def test_what_it_shows_is_a_graph(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(write(section, tmp_path), encoding="utf-8")
    load_config(cfg, "own.yaml", SHARES)
    graph = load_text_graph_of(cfg)
    assert graph.num_nodes in (9, 10) and graph.num_edges >= 6 and graph.num_classes == 3
    assert graph.texts[0] and graph.features is None


def test_three_columns_and_ten_lines_become_a_finished_run(program: Program) -> None:
    yaml = write("One table, three columns", program.folder)
    assert len(yaml.splitlines()) <= 10
    program.write(yaml.replace("{", "{{").replace("}", "}}") + PREAMBLE.replace("metric_best: accuracy\n", ""))
    program.accepts("lm.model", program.tiny_lm, *SMALL, says=["GLEM-LM", "GLEM-GNN"])
    assert (program.folder / "results/small/0/summary.json").exists()


def test_the_example_runs(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    program.config = ROOT / "configs_gg/table.yaml"
    monkeypatch.chdir(ROOT)
    folders = ["out_dir", program.folder / "results", "dataset.dir", program.folder / "datasets"]
    program.accepts(*folders, "lm.model", program.tiny_lm, *SMALL, says=["36 nodes, 65 undirected", "GLEM-GNN"])
