"""Every layout of tables is read, and is refused in one line where it is broken.

All tables are the same graph of 24 nodes, so all give the same fingerprint, and a run on one stands for all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.graph import load_text_graph_of
from glem_graphgym.config import load_config
from glem_graphgym.data.from_tables import TableOptions
from glem_graphgym.data.registry import PUBLISHED_GRAPHS
from glem_graphgym.data.wikics import WIKICS
from tests.bad_inputs.conftest import Program
from tests.checks import refused
from tests.data.own_tables import load_table

COUNT = 24
KINDS = ("cats", "dogs", "newts")
SPLIT = "[0.3, 0.3, 0.4]"
GRAPH = pd.DataFrame(
    {"title": [f"The {KINDS[i % 3]}" for i in range(COUNT)], "body": [f"no. {i}" for i in range(COUNT)]}
)
TEXTS = [f"The {KINDS[i % 3]}: no. {i}" for i in range(COUNT)]
LABELS = [KINDS[i % 3] for i in range(COUNT)]
EDGES = np.array([(i, j) for i in range(COUNT) for j in (i + 1, i + 3) if j < COUNT])
LISTS = [[int(j) for a, j in EDGES if a == i] for i in range(COUNT)]
NODES = pd.DataFrame({"text": TEXTS, "label": LABELS})
PAIR = GRAPH.assign(venue=LABELS)
TITLE_AND_BODY = ("dataset.tag_text", "{title}: {body}")


def csv(path: Path, table: pd.DataFrame, **how: Any) -> Path:
    table.to_csv(path, index=False, **how)
    return path


def json_lines(path: Path, table: pd.DataFrame) -> Path:
    table.to_json(path, orient="records", lines=True)
    return path


def parquet(path: Path, table: pd.DataFrame) -> Path:
    table.to_parquet(path)
    return path


def with_edges(folder: Path, nodes: pd.DataFrame, name: str, write: Callable[[Path], object]) -> Path:
    csv(folder / "nodes.csv", nodes)
    write(folder / name)
    return folder


def lines(separator: str, header: str = "") -> Callable[[Path], object]:
    return lambda path: path.write_text(header + "".join(f"{a}{separator}{b}\n" for a, b in EDGES))


def sparse(path: Path) -> None:
    scipy.sparse.save_npz(path, scipy.sparse.coo_array((np.ones(len(EDGES)), tuple(EDGES.T)), (COUNT, COUNT)).tocsr())


def wikics(folder: Path) -> Path:
    """WikiCS: two splits with one test set, articles by their tokens, links as they stand in an article."""
    masks = [[[i % 4 == (part + by) % 3 for i in range(COUNT)] for by in range(2)] for part in range(3)]
    data = {
        **{"features": [[i, 0.5] for i in range(COUNT)], "labels": [i % 3 for i in range(COUNT)], "links": LISTS},
        **dict(zip(("train_masks", "stopping_masks", "val_masks"), masks, strict=True)),
        "test_mask": [i % 4 == 3 for i in range(COUNT)],
    }
    articles = [
        {"id": f"{7 * i}", "title": text, "label": LABELS[i], "tokens": ["no.", f"{i}"], "outlinks": ["0"]}
        for i, text in enumerate(GRAPH["title"])
    ]
    (folder / "data.json").write_text(json.dumps(data))
    names = {f"{i}": name for i, name in enumerate(KINDS)}
    (folder / "metadata.json").write_text(json.dumps({"labels": names, "nodes": articles}))
    return folder


class Layout(NamedTuple):
    """A miniature, with the keys that read it; and what breaks it, with what its message must name."""

    write: Callable[[Path], Path]
    keys: Sequence[str] = ()
    damage: Sequence[tuple[str, str, str]] = ()  # file, what is replaced there, by what
    names: Sequence[str] = ()
    name: str = "table"


LAYOUTS = {
    "three columns": Layout(
        lambda folder: csv(
            folder / "pets.csv", NODES.assign(neighbours=[" ".join(map(str, found)) for found in LISTS])
        ),
        damage=[("pets.csv", "neighbours", "friends")],
        names=["pets.csv", "0 columns of neighbours", "[neighbours=<its name>]"],
    ),
    "CS-TAG": Layout(
        lambda folder: csv(
            folder / "Pets.csv",
            NODES.assign(category=LABELS, node_id=range(COUNT), neighbour=LISTS)[
                ["category", "text", "label", "node_id", "neighbour"]
            ].assign(label=[i % 3 for i in range(COUNT)]),
        ),
        ["dataset.tag_columns", "[id=node_id, label=category]"],
        [("Pets.csv", "[1, 3]", "[1, 33]")],
        ["Pets.csv: column 'neighbour'", "33"],
    ),
    "a list in JSON lines": Layout(
        lambda folder: json_lines(folder / "pets.jsonl", PAIR.assign(neighbor_ids=LISTS, year=None)),
        [*TITLE_AND_BODY, "dataset.tag_columns", "[label=venue]"],
        [("pets.jsonl", '"title":"The newts","body":"no. 5"', '"title":"The newts","body":"no. 5')],
        ["pets.jsonl, line 6", "JSON"],
    ),
    "a list in Parquet": Layout(
        lambda folder: parquet(folder / "pets.parquet", PAIR.assign(links=LISTS)),
        [*TITLE_AND_BODY, "dataset.tag_columns", "[label=venue, neighbours=links]"],
        [("pets.parquet", "venue", "genre")],
        ["dataset.tag_columns (label=venue)", "pets.parquet", "'genre'"],
    ),
    "tabs": Layout(
        lambda folder: csv(
            folder / "pets.tsv", PAIR.assign(adj=[json.dumps([f"{j}" for j in row]) for row in LISTS]), sep="\t"
        ),
        [*TITLE_AND_BODY, "dataset.tag_columns", "[label=venue]"],
        [("pets.tsv", "The newts\tno. 5", "The newts\tno.\t5")],
        ["pets.tsv, line 7", "a tab in a text"],
    ),
    "columns of other names": Layout(
        lambda folder: with_edges(folder, PAIR.assign(node_id=range(COUNT)), "edges.csv", lines(",", "from,to\n")),
        [*TITLE_AND_BODY, "dataset.tag_columns", "[id=node_id, label=venue, source=from, target=to]"],
        [("edges.csv", "from", "von")],
        ["dataset.tag_columns (source=from)", "edges.csv", "'von'"],
    ),
    "edges.txt": Layout(
        lambda folder: with_edges(folder, NODES, "edges.txt", lines(" ", "# FromNodeId ToNodeId\n")),
        damage=[("edges.txt", "\n5 6\n", "\n5\n")],
        names=["edges.txt, line 12", "'5'"],
    ),
    "edges.tsv": Layout(
        lambda folder: with_edges(folder, NODES, "edges.tsv", lines("\t")),
        damage=[("edges.tsv", "\n5\t6\n", "\n5\tn6\n")],
        names=["edges.tsv", "n6"],
    ),
    "edges.tsv with a header": Layout(
        lambda folder: with_edges(folder, NODES, "edges.tsv", lines("\t0.5\t", "source\tweight\ttarget\n")),
        damage=[("edges.tsv", "\n5\t0.5\t6\n", "\n5\t6\n")],
        names=["edges.tsv, line 12", "2 fields"],
    ),
    "a matrix of SciPy": Layout(
        lambda folder: with_edges(folder, NODES, "edges.npz", sparse),
        damage=[("nodes.csv", "The newts: no. 23,newts\n", "")],
        names=["edges.npz", "a matrix (24, 24), but there are 23 nodes"],
    ),
    "edge_index": Layout(
        lambda folder: with_edges(folder, NODES, "edges.npz", lambda path: np.savez(path, edge_index=EDGES.T)),
        damage=[("edges.npz", "edge_index", "edges_list")],
        names=["edges.npz"],
    ),
    "WikiCS": Layout(
        wikics,
        damage=[("metadata.json", '"nodes": [{"id": "0"', '"nodes": [{"id": "0"}, {"id": "0"')],
        names=["metadata.json: 'nodes' has 25 entries, expected one for each of 24 labels"],
        name="wikics",
    ),
}


def write(layout: Layout, program: Program) -> list[object]:
    """The miniature in a folder of its own; keys that read it."""
    (program.folder / "data").mkdir()
    source = layout.write(program.folder / "data")
    return ["dataset.name", layout.name, "dataset.tag_source", source, "dataset.tag_split", SPLIT, *layout.keys]


@pytest.fixture(autouse=True)
def small_wikics(monkeypatch: pytest.MonkeyPatch) -> None:
    """The miniature is all that WikiCS must hold."""
    small = replace(PUBLISHED_GRAPHS["wikics"], nodes=COUNT, classes=3, edges=len(EDGES), splits=2)
    monkeypatch.setitem(PUBLISHED_GRAPHS, "wikics", small)


@pytest.fixture(scope="module")
def fingerprint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("expected")
    source = LAYOUTS["three columns"].write(folder)
    return load_table(source, folder / "cache", shares=(0.3, 0.3, 0.4)).fingerprint()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_as_the_same_graph(name: str, program: Program, fingerprint: str) -> None:
    load_config(cfg, program.config, [str(option) for option in write(LAYOUTS[name], program)])
    same = load_text_graph_of(cfg).fingerprint() == fingerprint
    assert same == (LAYOUTS[name].name == "table")  # WikiCS has splits and features


@pytest.mark.parametrize("name", ["three columns", "WikiCS"])
def test_a_layout_goes_from_its_files_to_the_table_of_glem(name: str, program: Program) -> None:
    program.accepts(*write(LAYOUTS[name], program), says=["GLEM-LM", "GLEM-GNN"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_broken_one_is_refused_in_one_line(name: str, program: Program) -> None:
    layout = LAYOUTS[name]
    options = write(layout, program)
    for file, old, new in layout.damage:
        path = program.folder / "data" / file
        content = path.read_bytes()
        assert old.encode() in content
        path.write_bytes(content.replace(old.encode(), new.encode()))
    program.refuses(*options, names=layout.names)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("data.json", '"links"', '"edges"', "data.json has no ['links']"),
        ("data.json", '"links": [[1, 3]', '"links": [["one"]', "data.json is not as its authors publish it"),
        ("data.json", '"features": [[0, 0.5]', '"features": [[0]', "data.json is not as its authors publish it"),
        ("data.json", '"test_mask": [', '"test_mask": [true, ', "'test_mask' has 25 entries"),
        ("data.json", "{", "[{", "data.json is no JSON"),
        ("data.json", '"test_mask": [', '"test_mask": 1, "test": [', "metadata.json is not as its authors publish it"),
        ("metadata.json", '"labels": {', '"labels": 3, "names": {', "metadata.json is not as its authors publish it"),
        ("metadata.json", '"tokens"', '"words"', "dataset.tag_text ('{title}: {tokens}') names the column 'tokens'"),
    ],
)
def test_what_is_wrong_with_wikics_is_named(file: str, old: str, new: str, message: str, tmp_path: Path) -> None:
    path = wikics(tmp_path) / file
    path.write_text(path.read_text().replace(old, new))
    refused(lambda: WIKICS.read(WIKICS.find(tmp_path), TableOptions()), message)
