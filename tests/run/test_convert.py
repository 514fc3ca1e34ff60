"""`run/convert.py` as a user types it: any layout becomes tables that are the same graph, and what was done is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.graph import files_of
from glem_graphgym.config import load_config
from glem_graphgym.data.from_tables import graph_of
from glem_graphgym.data.text_graph import TextGraph
from tests.bad_inputs.conftest import Ended, run_here
from tests.bad_inputs.test_layouts import LAYOUTS, SPLIT
from tests.data import pyg_files

NASTY = [
    "two\nlines",
    "a carriage\rreturn",
    'a "quote", and a comma',
    "",
    "  ",
    "line\u2028separator",
    "\r\n",
    "tab\t",
    "é🐈",
]


def nasty(folder: Path) -> Path:
    """Texts that CSV has to quote and a view of them, ids that are no numbers, a label that is none."""
    rows = [{"id": f"n {i}", "text": text, "label": "ab"[i % 2], "adj": ["n 0"]} for i, text in enumerate(NASTY)]
    rows[-1]["label"] = None
    rows = [{**row, "text:note": f"a note, {i}"} for i, row in enumerate(rows)]
    (folder / "nasty.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "nasty.jsonl"


# Layout -> what writes a miniature of it and returns its source, and the keys that read it.
MINIATURES: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    **{name: (layout.write, [*layout.keys]) for name, layout in LAYOUTS.items()},
    **{name: (getattr(pyg_files, name), []) for name in ("glbench", "cs_tag", "llm_bp_wikics", "tape_arxiv_2023")},
    "nasty": (nasty, []),
    "llm_bp": (pyg_files.llm_bp, ["dataset.tag_valid_share", "0.2"]),
}


def convert(source: Path, *arguments: str, out: Path, capsys: pytest.CaptureFixture[str]) -> Ended:
    return run_here("convert", [source, "--out", out, *arguments], capsys)


def read(yaml: str, folder: Path, keys: Sequence[object] = ()) -> TextGraph:
    """The graph of the files that the lines of a configuration, and keys beside them, name."""
    (folder / "own.yaml").write_text(yaml, encoding="utf-8")
    load_config(cfg, folder / "own.yaml", [*map(str, keys), "dataset.tag_split", "[0.4, 0.3, 0.3]"])
    reader, source, options = files_of(cfg)
    return graph_of(reader.read(reader.find(source), options), options)


@pytest.mark.parametrize("name", MINIATURES)
def test_tables_are_the_same_graph(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, keys = MINIATURES[name]
    (tmp_path / "data").mkdir()
    source = write(tmp_path / "data")
    ended = convert(source, *keys, out=tmp_path / "tables", capsys=capsys)
    assert ended.returncode == 0, ended.stderr
    _, _, yaml = ended.stdout.partition("\n\n")
    layout = LAYOUTS[name].name if name in LAYOUTS else "table" if name == "nasty" else "pyg"
    expected = read("dataset: {format: TAG}", tmp_path, ["dataset.name", layout, "dataset.tag_source", source, *keys])
    graph = read(yaml, tmp_path)
    assert [*graph.texts] == [*expected.texts] and graph.node_ids == expected.node_ids
    assert {view: [*texts] for view, texts in graph.views.items()} == {
        view: [*texts] for view, texts in expected.views.items()
    }
    ours, theirs = ([*graph.class_names, None], [*expected.class_names, None])  # the last one is no label
    assert sorted(graph.class_names) == sorted({theirs[label] for label in expected.label} - {None})
    assert [ours[label] for label in graph.label] == [theirs[label] for label in expected.label]
    for part in expected.split:
        np.testing.assert_array_equal(graph.split[part], expected.split[part])
    for found, wanted in (
        (graph.edge_index(), expected.edge_index()),
        (graph.features, expected.features),
        (graph.splits, expected.splits),
    ):
        assert (found is None) == (wanted is None)
        np.testing.assert_array_equal(found, wanted)


def test_it_says_what_it_took_and_keeps_the_direction_of_edges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = LAYOUTS["CS-TAG"].write(tmp_path)
    ended = convert(source, *LAYOUTS["CS-TAG"].keys, out=tmp_path / "tables", capsys=capsys)
    for line in (
        "read Pets.csv: 24 nodes, 3 classes",
        "  id: node_id",
        "  label: category",
        "  edges: neighbour",
        "  not used: label",
        f"  tag_source: {tmp_path / 'tables'}",
    ):
        assert line in ended.stdout.splitlines()
    edges = (tmp_path / "tables" / "edges.csv").read_text().splitlines()
    source.write_text(source.read_text().replace("[23]", "[23; 0]"))
    convert(source, *LAYOUTS["CS-TAG"].keys, out=tmp_path / "more", capsys=capsys)
    assert {*(tmp_path / "more" / "edges.csv").read_text().splitlines()} - {*edges} == {"22,0"}


def test_files_of_other_names_are_given_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "papers.csv").write_text("key,text,label\na,one,x\nb,two,y\nc,three,x\n")
    (tmp_path / "cites.tsv").write_text("a\tb\nb\tc\n")
    files = [tmp_path / "papers.csv", tmp_path / "cites.tsv"]
    split = ["dataset.tag_split", "[0.4, 0.3, 0.3]"]
    ended = run_here("convert", [*files, "dataset.tag_columns", "[id=key]", *split, "--out", tmp_path / "t"], capsys)
    assert ended.returncode == 0, ended.stderr
    assert "read papers.csv, cites.tsv: 3 nodes, 2 classes" in ended.stdout
    assert (tmp_path / "t" / "edges.csv").read_text() == "source,target\na,b\nb,c\n"


@pytest.mark.parametrize(
    ("names", "lost"), [(["A", "A", "B"], "'A', 'A'"), (["", "A", "B"], "''"), (["NA", "1", "2"], "'NA'")]
)
def test_classes_that_tables_cannot_hold_are_named(
    names: list[str], lost: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(pyg_files.planetoid(label_names=names), tmp_path / "graph.pt")
    ended = convert(tmp_path / "graph.pt", "dataset.tag_split", SPLIT, out=tmp_path / "tables", capsys=capsys)
    assert ended.returncode == 1 and f"nodes.csv does not keep the classes {lost} of" in ended.stderr
    assert not (tmp_path / "tables/nodes.csv").exists()  # nobody trains on another graph


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "dataset.tag_source: absent is neither folder nor file"),
        (["absent", "--name", "wikics"], "absent has no data.json"),
        (["absent", "--name", "cs_tag"], "dataset.name is 'cs_tag', expected one of: "),
        (
            ["absent", "--name", "debian"],
            "dataset.name is 'debian', which is no layout of files; expected one of: table, pyg",
        ),
        (["absent", "dataset.tag_columns", "[txt=a]"], "dataset.tag_columns holds 'txt=a'"),
    ],
)
def test_what_cannot_be_converted_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = run_here("convert", [*arguments, "--out", tmp_path / "tables"], capsys)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ") and message in ended.stderr and ended.stderr.count("\n") == 1


def test_a_folder_with_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = LAYOUTS["three columns"].write(tmp_path)
    ended = convert(source, out=tmp_path, capsys=capsys)
    assert ended.returncode == 1 and "holds files already" in ended.stderr


def test_what_no_table_can_hold_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = nasty(tmp_path)
    source.write_text(source.read_text().replace("tab\\t", "a \\u0000 byte"))
    ended = convert(source, out=tmp_path / "tables", capsys=capsys)
    assert ended.returncode == 1 and "nodes.csv" in ended.stderr and "a NUL byte" in ended.stderr
