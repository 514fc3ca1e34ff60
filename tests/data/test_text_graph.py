from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glem_graphgym.data.text_graph import (
    DataError,
    TextGraph,
    Texts,
    csr_from_edges,
    load_text_graph,
    save_text_graph,
    snapshot,
)

# ---- texts --------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_texts_read_like_the_list_they_were_made_of(strings: list[str]) -> None:
    texts = Texts.of(strings)
    assert list(texts) == strings
    assert len(texts) == len(strings)
    assert texts[:] == strings
    assert texts[::-2] == strings[::-2]
    assert [texts[-1 - i] for i in range(len(strings))] == strings[::-1]


def test_a_text_index_out_of_range_is_an_error() -> None:
    texts = Texts.of(["a", "b"])
    for index in (2, -3):
        with pytest.raises(IndexError):
            texts[index]


def test_lone_surrogates_do_not_stop_a_dataset() -> None:
    assert list(Texts.of(["a\ud800b"])) == ["a?b"]


def test_texts_of_texts_are_the_same_object() -> None:
    texts = Texts.of(["a"])
    assert Texts.of(texts) is texts


def test_fingerprint_of_texts_tells_where_one_ends() -> None:
    several = [["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["", "abc"]]
    assert len({Texts.of(texts).fingerprint() for texts in several}) == len(several)
    assert Texts.of(["ab", "c"]).fingerprint() == Texts.of(("ab", "c")).fingerprint()


# ---- edges --------------------------------------------------------------------------------------------------------


@st.composite
def edge_lists(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    n = draw(st.integers(1, 12))
    node = st.integers(0, n - 1)
    return n, draw(st.lists(st.tuples(node, node), max_size=40))


@settings(max_examples=200, deadline=None)
@given(edge_lists())
def test_csr_equals_a_set_of_pairs(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    n, edges = drawn
    pairs = {pair for a, b in edges if a != b for pair in ((a, b), (b, a))}
    rowptr, col = csr_from_edges(np.array([a for a, _ in edges]), np.array([b for _, b in edges]), n)
    assert (rowptr.dtype, col.dtype) == (np.int64, np.int32)
    rows = [col[rowptr[i] : rowptr[i + 1]].tolist() for i in range(n)]
    assert rows == [sorted(b for a, b in pairs if a == i) for i in range(n)]


def test_csr_of_many_nodes_does_not_overflow() -> None:
    n = 3_000_000  # n² exceeds 32 bits by far
    rowptr, col = csr_from_edges(np.array([0, n - 1]), np.array([n - 1, n - 2]), n)
    assert col.tolist() == [n - 1, n - 1, 0, n - 2]
    assert np.flatnonzero(np.diff(rowptr)).tolist() == [0, n - 2, n - 1]


@pytest.mark.parametrize(("source", "target"), [([0, 5], [1, 2]), ([0, 1], [1, -1])])
def test_csr_refuses_nodes_out_of_range(source: list[int], target: list[int]) -> None:
    with pytest.raises(DataError, match="expected 0 to 4"):
        csr_from_edges(np.array(source), np.array(target), 5)


# ---- the graph and its invariants ---------------------------------------------------------------------------------


def parts(**changes: Any) -> dict[str, Any]:
    """A sound graph of 6 nodes, a path 0-1-2-3-4 and node 5 alone, with ``changes``."""
    rowptr, col = csr_from_edges(np.arange(4), np.arange(1, 5), 6)
    sound = {
        "name": "six",
        "texts": Texts.of(["zero", "one", "", "three ü", "four", "five"]),
        "rowptr": rowptr,
        "col": col,
        "label": np.array([0, 1, 2, 0, 1, -1]),
        "split": {"train": np.array([0, 1]), "valid": np.array([2]), "test": np.array([3, 4])},
        "class_names": ["a", "b", "c"],
        "features": np.arange(12, dtype=np.float32).reshape(6, 2),
        "node_ids": list("uvwxyz"),
        "origin": {"file": "six.csv", "repaired": 0},
    }
    return {**sound, **changes}


def with_split(**changes: Any) -> dict[str, Any]:
    return {"split": {**parts()["split"], **changes}}


def test_a_sound_graph_counts_itself() -> None:
    graph = TextGraph(**parts())
    assert (graph.num_nodes, graph.num_edges, graph.num_classes) == (6, 4, 3)
    assert graph.rows().tolist() == [0, 1, 1, 2, 2, 3, 3, 4]
    assert graph.edge_index().tolist() == [[0, 1, 1, 2, 2, 3, 3, 4], [1, 0, 2, 1, 3, 2, 4, 3]]


ROWPTR, COL = parts()["rowptr"], parts()["col"]


def moved(array: np.ndarray, index: int, value: int) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


BROKEN = {
    "5 texts for 6 nodes": {"texts": Texts.of(list("abcde"))},
    r"row pointers must be int64 and run from 0 to 8": {"rowptr": ROWPTR.astype(np.int32)},
    r"row pointers must be int64 and run from 0 to 8 ": {"rowptr": moved(ROWPTR, 0, 1)},
    r"row pointers must be int64 and run from 0 to 7": {"col": COL[:-1]},
    "row pointers must not decrease": {"rowptr": moved(ROWPTR, 2, 9)},
    "edges name nodes 0 to 6, expected 0 to 5": {"col": moved(COL, 7, 6)},
    "edges name nodes -1 to 4, expected 0 to 5": {"col": moved(COL, 0, -1)},
    "neighbours must be sorted": {"col": COL[[0, 2, 1, 3, 4, 5, 6, 7]]},
    "neighbours must be sorted and free of duplicates": {"col": moved(COL, 2, 0)},
    "1 self-loops": {"col": moved(COL, 0, 0)},
    "not symmetric": {"col": moved(COL, 7, 2)},
    r"labels are int32 \(6,\), expected int64": {"label": parts()["label"].astype(np.int32)},
    r"labels are int64 \(5,\), expected int64 \(6,\)": {"label": parts()["label"][:5]},
    "1 classes; at least 2": {"class_names": ["a"]},
    "labels run from -1 to 2, expected -1 to 1": {"class_names": ["a", "b"]},
    "labels run from -2 to 2, expected -1 to 2": {"label": moved(parts()["label"], 5, -2)},
    r"splits are \['test', 'train'\]": {"split": {"train": np.array([0]), "test": np.array([1])}},
    "'train' must be a strictly increasing int64": with_split(train=np.array([1, 0])),
    "'valid' must be a strictly increasing int64": with_split(valid=np.array([2, 2])),
    "'test' must be a strictly increasing int64": with_split(test=np.array([3, 4], dtype=np.int32)),
    "'test' must be a strictly increasing int64 ": with_split(test=np.array([[3, 4]])),
    "'valid' is empty": with_split(valid=np.empty(0, dtype=np.int64)),
    "'test' names node 6, expected 0 to 5": with_split(test=np.array([3, 6])),
    "'train' names node -1, expected 0 to 5": with_split(train=np.array([-1, 1])),
    "'test' holds unlabelled nodes": with_split(test=np.array([3, 5])),
    "2 nodes are in more than one split": with_split(valid=np.array([0, 2, 3])),
    r"features have shape \(5, 2\)": {"features": np.zeros((5, 2), np.float32)},
    r"features have shape \(6,\)": {"features": np.zeros(6, np.float32)},
    "type int64, expected floats": {"features": np.zeros((6, 2), np.int64)},
    "2 node ids for 6 nodes": {"node_ids": ["a", "b"]},
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_invariant_is_named(message: str) -> None:
    with pytest.raises(DataError, match=f"^six: .*{message.strip()}"):
        TextGraph(**parts(**BROKEN[message]))


@pytest.mark.parametrize(
    "change",
    [
        {"texts": Texts.of(["zero", "one", "", "three", "four", "five"])},
        dict(zip(("rowptr", "col"), csr_from_edges(np.arange(4), np.array([1, 2, 3, 5]), 6), strict=True)),
        {"label": moved(parts()["label"], 5, 2)},
        with_split(train=np.array([0])),
        {"class_names": ["a", "b", "d"]},
        {"features": np.ones((6, 2), np.float32)},
        {"features": None},
    ],
)
def test_fingerprint_changes_with_whatever_a_result_can_depend_on(change: dict[str, Any]) -> None:
    assert TextGraph(**parts(**change)).fingerprint() != TextGraph(**parts()).fingerprint()


def test_fingerprint_does_not_depend_on_where_the_graph_came_from() -> None:
    assert TextGraph(**parts(origin={"file": "elsewhere"})).fingerprint() == TextGraph(**parts()).fingerprint()


# ---- snapshots ----------------------------------------------------------------------------------------------------


def same(a: TextGraph, b: TextGraph) -> bool:
    arrays = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("rowptr", "col", "label"))
    splits = all(np.array_equal(a.split[part], b.split[part]) for part in ("train", "valid", "test"))
    rest = all(getattr(a, name) == getattr(b, name) for name in ("name", "class_names", "node_ids", "origin"))
    features = (a.features is None) == (b.features is None) and (
        a.features is None or b.features is None or np.array_equal(a.features, b.features)
    )
    return arrays and splits and rest and features and list(a.texts) == list(b.texts)


@pytest.mark.parametrize(
    "changes",
    [{}, {"features": None, "node_ids": None}, {"texts": Texts.of([""] * 6)}],
    ids=["full", "bare", "textless"],
)
def test_snapshot_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    graph = TextGraph(**parts(**changes))
    save_text_graph(graph, tmp_path)
    back = load_text_graph(tmp_path)
    assert same(back, graph)
    assert back.fingerprint() == graph.fingerprint()
    assert back.features is None or isinstance(back.features, np.memmap)


def test_a_snapshot_is_built_once_and_frozen(tmp_path: Path) -> None:
    first = snapshot(tmp_path / "six", lambda: TextGraph(**parts()))

    def never() -> TextGraph:
        raise AssertionError("built again")

    assert same(snapshot(tmp_path / "six", never), first)


def test_a_build_that_fails_leaves_no_snapshot(tmp_path: Path) -> None:
    def fail() -> TextGraph:
        raise DataError("no such file")

    with pytest.raises(DataError, match="no such file"):
        snapshot(tmp_path / "six", fail)
    assert not (tmp_path / "six").exists()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


FILES = (
    "text",
    "text_offsets",
    "rowptr",
    "col",
    "label",
    "split_train",
    "split_valid",
    "split_test",
    "features",
)


@pytest.mark.parametrize("damage", [Path.unlink, cut, empty, flip])
@pytest.mark.parametrize("name", [*(f"{file}.npy" for file in FILES), "graph.json"])
def test_a_damaged_snapshot_is_an_error_that_names_the_folder(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "six"
    snapshot(folder, lambda: TextGraph(**parts()))
    if name == "graph.json" and damage is flip:
        (folder / name).write_text((folder / name).read_text().replace('"c"', '"d"'))
    else:
        damage(folder / name)
    with pytest.raises(DataError) as error:
        load_text_graph(folder)
    assert str(folder) in str(error.value)
    assert "delete the folder to have it remade" in str(error.value)
