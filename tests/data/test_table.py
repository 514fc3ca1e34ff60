"""A user's own tables of nodes and edges: what irregularities become, and that nothing is lost."""

from __future__ import annotations

import csv
import gzip
import io
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glem_graphgym.data import from_tables, table
from glem_graphgym.data.text_graph import DataError, TextGraph
from tests.data import own_tables
from tests.data.own_tables import labels_of, load_table

NODES = """\
id,text,label,split
a,first text,cats,train
b,"second, with a comma",dogs,train
c,third,cats,valid
d,fourth,dogs,test
e,fifth,,
f,sixth,cats,
"""
PARTS = ["train", "valid", "test"]
EDGES = "source,target\na,b\nb,c\nd,a\ne,f\n"


def write(folder: Path, nodes: str | bytes = NODES, edges: str | bytes = EDGES) -> Path:
    return own_tables.write(folder, nodes, edges)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return write(tmp_path / "pets")


def load(folder: Path, **options: Any) -> TextGraph:
    return load_table(folder, folder.parent / "cache", **options)


def edges_of(graph: TextGraph) -> set[frozenset[str]]:
    """Edges as pairs of ids."""
    assert graph.node_ids is not None
    return {frozenset((graph.node_ids[a], graph.node_ids[b])) for a, b in graph.edge_index().T}


def split_of(graph: TextGraph) -> dict[str, list[str]]:
    """Ids of each split, in node order."""
    assert graph.node_ids is not None
    return {part: [graph.node_ids[node] for node in nodes] for part, nodes in graph.split.items()}


def test_tables_become_a_graph(pets: Path) -> None:
    graph = load(pets)
    assert graph.name == "pets"
    assert graph.node_ids == ["a", "b", "c", "d", "e", "f"]
    assert list(graph.texts)[1:3] == ["second, with a comma", "third"]
    assert graph.class_names == ["cats", "dogs"]
    assert graph.label.tolist() == [0, 1, 0, 1, -1, 0]
    assert split_of(graph) == {"train": ["a", "b"], "valid": ["c"], "test": ["d"]}
    assert edges_of(graph) == {frozenset(pair) for pair in ("ab", "bc", "da", "ef")}
    assert graph.features is None
    assert graph.origin["unlabelled"] == 1
    assert graph.origin["empty_texts"] == graph.origin["self_loops"] == graph.origin["repeated_edges"] == 0


def test_snapshot_is_used_until_content_or_options_change(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = pets.parent / "cache"

    def snapshots() -> int:
        return len(list(cache.glob("table-*")))

    first = load(pets)
    with monkeypatch.context() as patch:
        patch.setattr(from_tables, "graph_of", lambda *args: pytest.fail("the snapshot was not used"))
        assert load(pets).fingerprint() == first.fingerprint()
    assert snapshots() == 1
    write(pets, edges=EDGES + "c,d\n")
    assert load(pets).num_edges == first.num_edges + 1
    write(pets, nodes=NODES.replace("fifth", "other"))
    assert load(pets).texts[4] == "other"
    load(pets, seed=1)
    load(pets, shares=(0.2, 0.2, 0.6))
    assert snapshots() == 5


def test_further_columns_are_features_in_order(pets: Path) -> None:
    rows = [line + f",{0.25 * i},{i % 2 == 0},{-i}" for i, line in enumerate(NODES.splitlines()[1:])]
    write(pets, "\n".join(["id,text,label,split,z,flag,a", *rows]))
    graph = load(pets)
    assert graph.features is not None
    assert graph.features.dtype == np.float32
    np.testing.assert_array_equal(graph.features[[0, 3]], [[0, 1, 0], [0.75, 0, -3]])
    assert graph.origin["feature_columns"] == ["z", "flag", "a"]


def test_columns_are_found_by_name_whatever_their_order(pets: Path) -> None:
    reordered = pd.read_csv(pets / "nodes.csv", dtype=str)[["split", "label", "text", "id"]]
    before = load(pets)
    reordered.to_csv(pets / "nodes.csv", index=False)
    assert load(pets).fingerprint() == before.fingerprint()


# Labels and classes


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "-2"], ["-2", "9", "10"]),
        (["1.0", "9", "10.0"], ["1", "9", "10"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["b", "B", "a"], ["B", "a", "b"]),
        (["1.5", "10", "2"], ["1.5", "10", "2"]),
        (["NA", "null", "nan"], ["NA", "nan", "null"]),
    ],
)
def test_order_of_classes(pets: Path, labels: list[str], classes: list[str]) -> None:
    rows = [f"{i},text,{label},{part}" for i, (label, part) in enumerate(zip(labels, PARTS, strict=True))]
    write(pets, "\n".join(["id,text,label,split", *rows]), "source,target\n0,1\n")
    graph = load(pets)
    assert graph.class_names == classes
    assert labels_of(graph) == [label.removesuffix(".0") for label in labels]


def test_class_outside_training_is_kept_and_reported(pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(pets, NODES.replace("d,fourth,dogs", "d,fourth,newts").replace("sixth,cats", "sixth,axolotls"))
    graph = load(pets)
    assert graph.class_names == ["axolotls", "cats", "dogs", "newts"]
    assert labels_of(graph) == ["cats", "dogs", "cats", "newts", None, "axolotls"]
    assert graph.origin["classes_without_training"] == ["axolotls", "newts"]
    assert "cannot be predicted: axolotls, newts" in caplog.text


# Ids


def test_ids_of_csv_stay_as_written(pets: Path) -> None:
    write(
        pets, NODES.replace("a,", "007,", 1).replace("b,", "7,", 1).replace("c,", "NA,", 1), "source,target\n007,NA\n"
    )
    graph = load(pets)
    assert graph.node_ids is not None
    assert graph.node_ids[:3] == ["007", "7", "NA"]
    assert edges_of(graph) == {frozenset(("007", "NA"))}


@pytest.mark.parametrize("kind", ["int64", "float64", "str", "object", "bytes"])
def test_ids_of_parquet_of_any_type_match_those_of_the_edges(tmp_path: Path, kind: str) -> None:
    ids = np.array([b"30", b"1", b"2"], dtype=object) if kind == "bytes" else np.array([30, 1, 2]).astype(kind)
    if kind in ("str", "object"):
        ids = np.array(["30", "1", "2"], dtype=object)
    columns = {"id": ids, "text": ["x", "y", None], "label": [2.0, 10.0, 2.0], "split": PARTS}
    (tmp_path / "g").mkdir()
    pd.DataFrame(columns).to_parquet(tmp_path / "g/nodes.parquet")
    pd.DataFrame({"source": [1.0, 30.0], "target": [2.0, 1.0]}).to_parquet(tmp_path / "g/edges.parquet")
    graph = load(tmp_path / "g")
    assert graph.node_ids == ["30", "1", "2"]
    assert graph.class_names == ["2", "10"]
    assert list(graph.texts) == ["x", "y", ""]
    assert edges_of(graph) == {frozenset("12"), frozenset(("30", "1"))}


# Texts


def test_half_of_a_surrogate_pair_in_json_becomes_a_question_mark(pets: Path) -> None:
    (pets / "nodes.csv").unlink()
    rows = [f'{{"id": "{i}", "text": "\\ud83d{i}", "label": "\\uD83D{i % 2}"}}\n' for i in range(9)]
    (pets / "nodes.jsonl").write_text("".join(rows))
    (pets / "edges.csv").write_text("source,target\n0,1\n")
    graph = load(pets, shares=(0.4, 0.3, 0.3))
    assert (graph.texts[8], graph.class_names) == ("?8", ["?0", "?1"])


def test_empty_texts_stay_and_are_counted(pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(pets, NODES.replace("third", "").replace("fourth", '"  "').replace("fifth", "NA"))
    graph = load(pets)
    assert list(graph.texts)[2:5] == ["", "  ", "NA"]
    assert graph.origin["empty_texts"] == 2
    assert "pets: 2 of 6 texts are empty" in caplog.text


# Splits


def without_split(rows: Sequence[tuple[str, str]]) -> str:
    """Nodes of the given (id, label)."""
    return "\n".join(["id,text,label", *(f"{name},text of {name},{label}" for name, label in rows)]) + "\n"


def test_random_split_depends_on_the_seed_and_on_no_other_column(pets: Path) -> None:
    rows = [(f"n{i}", "xy"[i % 2]) for i in range(40)]
    write(pets, without_split(rows), "source,target\nn0,n1\n")
    first, again = load(pets), load(pets, seed=1)
    assert split_of(first) != split_of(again)
    write(pets, without_split([(name, "pqr"[i % 3]) for i, (name, _) in enumerate(rows)]), "source,target\n")
    assert split_of(load(pets)) == split_of(first)


def test_random_split_that_leaves_a_part_empty_is_refused(pets: Path) -> None:
    write(pets, without_split([("a", "x"), ("b", "y"), ("c", "x"), ("d", "")]))
    with pytest.raises(DataError, match=r"of 3 labelled nodes leave \['train'\] without one"):
        load(pets)


@pytest.mark.parametrize(
    "shares", [(0.5, 0.5), (0.5, 0.5, 0), (0.5, 0.4, 0.2), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)]
)
def test_shares_are_checked_before_anything_is_read(tmp_path: Path, shares: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="expected three positive numbers"):
        load(tmp_path / "absent", shares=shares)


# Edges


def test_self_loops_and_repeated_edges_are_dropped_and_counted(pets: Path) -> None:
    before = load(pets)
    write(pets, edges=EDGES + "a,a\nb,a\na,b\nf,f\n")
    graph = load(pets)
    assert edges_of(graph) == edges_of(before)
    assert (graph.origin["edges"], graph.origin["self_loops"], graph.origin["repeated_edges"]) == (4, 2, 2)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("header", ["", "source\ttarget\n", "source\ttarget\tweight\n"])
@pytest.mark.parametrize("ending", [".txt", ".tsv"])
def test_lines_of_edges_end_as_on_any_system(pets: Path, ending: str, header: str, end: str) -> None:
    expected = edges_of(load(pets))
    (pets / "edges.csv").unlink()
    weight = "\t1" * ("weight" in header)
    lines = header * (ending == ".tsv") + "".join(f"{a}\t{b}{weight}\n" for a, b in expected)
    (pets / f"edges{ending}").write_bytes(lines.replace("\n", end).encode())
    assert edges_of(load(pets)) == expected


def test_graph_without_edges_is_allowed_with_a_warning(pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(pets, edges="source,target\n")
    assert load(pets).num_edges == 0
    assert "the graph has no edges" in caplog.text


def test_other_columns_of_edges_are_ignored_with_a_warning(pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(pets, edges="weight,source,target\n0.5,a,b\n,c,d\n")
    graph = load(pets)
    assert edges_of(graph) == {frozenset("ab"), frozenset("cd")}
    assert "ignored: weight" in caplog.text


# Files and columns


@pytest.mark.parametrize("stem", ["nodes", "edges"])
def test_missing_file_is_named(pets: Path, stem: str) -> None:
    (pets / f"{stem}.csv").unlink()
    with pytest.raises(
        DataError, match=rf"pets holds 0 of the files \['{stem}\.csv', '{stem}\.csv\.gz', '{stem}\.parquet'"
    ):
        load(pets)


def test_tables_of_other_names_are_listed_with_a_remedy(pets: Path) -> None:
    (pets / "nodes.csv").rename(pets / "animals.csv")
    with pytest.raises(DataError, match=r"there are \['animals.csv', 'edges.csv'\]: rename .* run/convert\.py <nodes>"):
        load(pets)


def test_parquet_without_pyarrow_names_the_extra(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pd.read_csv(pets / "nodes.csv").to_parquet(pets / "nodes.parquet")
    (pets / "nodes.csv").unlink()
    for engine in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(DataError, match=r"nodes\.parquet: .* needs pyarrow.*glem-graphgym\[parquet\]"):
        load(pets)


# Properties


@dataclass(frozen=True)
class Tables:
    """A random pair of tables: nodes as (id, text, label, split), edges as pairs of ids."""

    nodes: list[tuple[str, str, str, str]]
    edges: list[tuple[str, str]]

    def write(self, folder: Path, ending: str) -> Path:
        folder.mkdir()
        for stem, header, rows in (
            ("nodes", ("id", "text", "label", "split"), self.nodes),
            ("edges", ("source", "target"), self.edges),
        ):
            path = folder / f"{stem}{ending}"
            if ending == ".parquet":
                pd.DataFrame(rows, columns=header, dtype=object).replace({"": None}).to_parquet(path)
                continue
            lines = io.StringIO(newline="")
            delimiter = "\t" if ending == ".tsv" else ","
            csv.writer(lines, quoting=csv.QUOTE_ALL, delimiter=delimiter).writerows([header, *rows])
            content = lines.getvalue().encode()
            path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
        return folder


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@st.composite
def tables(draw: st.DrawFn) -> Tables:
    ids = draw(st.lists(WORDS.filter(bool), min_size=4, max_size=12, unique=True))
    words = WORDS.filter(lambda word: word.strip() and word.strip()[0] not in "+-0123456789")  # no numbers
    classes = draw(st.lists(words, min_size=2, max_size=4, unique=True))
    labels = classes[:2] + [draw(st.sampled_from([*classes, ""])) for _ in ids[2:]]
    labels[2] = labels[2] or classes[0]
    choices = st.sampled_from(["", "train", "valid", "val", "validation", "test"])
    splits = PARTS + [draw(choices) if label else "" for label in labels[3:]]
    texts = [draw(WORDS) for _ in ids]
    end = st.sampled_from(ids)
    return Tables(list(zip(ids, texts, labels, splits, strict=True)), draw(st.lists(st.tuples(end, end), max_size=20)))


@settings(max_examples=40, deadline=None)
@given(tables(), st.sampled_from(table.ENDINGS))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, drawn: Tables, ending: str) -> None:
    graph = load(drawn.write(tmp_path_factory.mktemp("t") / "g", ending))
    ids, texts, labels, splits = zip(*drawn.nodes, strict=True)
    assert graph.node_ids == list(ids)
    assert list(graph.texts) == list(texts)
    assert labels_of(graph) == [label or None for label in labels]
    assert set(graph.class_names) == set(labels) - {""}
    merged = {"val": "valid", "validation": "valid"}
    assert split_of(graph) == {
        part: [name for name, split in zip(ids, splits, strict=True) if merged.get(split, split) == part]
        for part in PARTS
    }
    proper = [frozenset(pair) for pair in drawn.edges if pair[0] != pair[1]]
    assert edges_of(graph) == set(proper)
    assert graph.origin["self_loops"] == len(drawn.edges) - len(proper)
    assert graph.origin["repeated_edges"] == len(proper) - len(set(proper))


@settings(max_examples=15, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_order_of_rows_changes_nothing_but_the_order_of_nodes(
    tmp_path_factory: pytest.TempPathFactory, drawn: Tables, rng: random.Random
) -> None:
    root = tmp_path_factory.mktemp("t")
    shuffled = replace(drawn, nodes=rng.sample(drawn.nodes, len(drawn.nodes)))
    shuffled = replace(shuffled, edges=[rng.choice(((a, b), (b, a))) for a, b in drawn.edges])
    one, two = (load(t.write(root / str(i), ".csv")) for i, t in enumerate((drawn, shuffled)))
    assert one.class_names == two.class_names
    assert edges_of(one) == edges_of(two)
    assert {part: set(ids) for part, ids in split_of(one).items()} == {
        part: set(ids) for part, ids in split_of(two).items()
    }
    of_one = dict(zip(one.node_ids or [], zip(one.texts, labels_of(one), strict=True), strict=True))
    of_two = dict(zip(two.node_ids or [], zip(two.texts, labels_of(two), strict=True), strict=True))
    assert of_one == of_two


@settings(max_examples=15, deadline=None)
@given(
    st.integers(20, 80),
    st.sampled_from([(0.1, 0.1, 0.8), (0.34, 0.33, 0.33), (0.6, 0.2, 0.2), (0.05, 0.9, 0.05)]),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_random_split_has_its_shares_and_ignores_the_order_of_rows(
    tmp_path_factory: pytest.TempPathFactory, n: int, shares: tuple[float, ...], seed: int, rng: random.Random
) -> None:
    root = tmp_path_factory.mktemp("t")
    rows = [(f"id {i}", "" if i % 7 == 6 else "xy"[i % 2]) for i in range(n)]
    graph = load(write(root / "a", without_split(rows), "source,target\n"), shares=shares, seed=seed)
    split = split_of(graph)
    labelled = {name for name, label in rows if label}
    assert set().union(*split.values()) == labelled
    assert sum(map(len, split.values())) == len(labelled)
    for part, share in zip(PARTS, shares, strict=True):
        assert abs(len(split[part]) - share * len(labelled)) <= 1
    permuted = write(root / "b", without_split(rng.sample(rows, n)), "source,target\n")
    again = split_of(load(permuted, shares=shares, seed=seed))
    assert {part: set(ids) for part, ids in again.items()} == {part: set(ids) for part, ids in split.items()}


def test_texts_that_are_mostly_copies_are_reported(pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = pd.read_csv(pets / "nodes.csv", dtype=str, keep_default_na=False)
    nodes.assign(text="a pet").to_csv(pets / "nodes.csv", index=False)
    assert load(pets).origin["repeated_texts"] == len(nodes) - 1
    assert f"{len(nodes) - 1} of {len(nodes)} texts repeat" in caplog.text
