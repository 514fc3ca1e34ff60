from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from glem_graphgym.data import text_graph as module
from glem_graphgym.data import texts as texts_module
from glem_graphgym.data.csr import write_csr
from glem_graphgym.data.text_graph import (
    DataError,
    TextGraph,
    Texts,
    TextsWriter,
    csr_from_edges,
    load_text_graph,
    save_text_graph,
    snapshot,
    snapshot_from_parts,
)
from glem_graphgym.files import fingerprint, read_json, write_json
from tests.checks import cut, emptied, peak_of, refused

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


def test_properties_of_nodes() -> None:
    """A path 0-1-2-3-4 and node 5; labels 0 0 1 1, and two unlabelled."""
    split = {"train": np.array([0]), "valid": np.array([1]), "test": np.array([2, 3])}
    texts = Texts.of(["", "a", "bb", "cc", "äh", "f"])
    graph = TextGraph(**parts(label=np.array([0, 0, 1, 1, -1, -1]), split=split, texts=texts))
    found = graph.properties(np.array([4, 2, 1, 5]))
    assert found["neighbours"].tolist() == [1, 2, 2, 0] and found["text_bytes"].tolist() == [3, 2, 1, 1]
    np.testing.assert_array_equal(found["homophily"], np.array([0, 0.5, 0.5, np.nan], dtype=np.float32))


def test_facts_of_a_graph_are_kept_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the edges between labelled nodes 0-1 and 2-3 join nodes of one class, 1-2 does not."""
    split = {"train": np.array([0, 1]), "valid": np.array([2]), "test": np.array([3])}
    graph = TextGraph(**parts(label=np.array([0, 0, 1, 1, -1, -1]), split=split))
    sizes = {"nodes": 6, "edges": 4, "classes": 3, "train": 2, "valid": 1, "test": 1}
    shares = {"edge_homophily": pytest.approx(2 / 3), "label_rate": pytest.approx(1 / 3)}
    assert graph.facts() == {**sizes, **shares, "empty_texts": pytest.approx(1 / 6)}
    assert replace(graph, label=np.array([0, 1, 0, 1, -1, -1])).edge_homophily() == 0
    lonely = replace(graph, rowptr=np.zeros(7, dtype=np.int64), col=COL[:0])
    assert lonely.edge_homophily() is None
    frozen = snapshot(tmp_path / "six", lambda: graph)
    monkeypatch.delattr(module, "entry_blocks")  # it is not computed again
    assert frozen.facts() == graph.facts()


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


def test_fingerprint_is_that_of_earlier_releases() -> None:
    """Written down: stages and token stores are found by it."""
    assert TextGraph(**parts()).fingerprint() == "07055c5b163a4ffd"
    assert TextGraph(**parts(features=None)).fingerprint() == "a437213fd0062c1c"


def test_fingerprint_is_computed_once_and_anew_for_what_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = TextGraph(**parts())
    before = graph.fingerprint()
    other = replace(graph, class_names=["a", "b", "d"])
    assert other.fingerprint() != before
    assert replace(other, class_names=graph.class_names).fingerprint() == before
    no_fingerprints(monkeypatch)
    assert graph.fingerprint() == before


def no_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    def samples_only(*parts: object) -> str:
        return fingerprint(*parts) if len(parts) <= 3 else pytest.fail("computed again")

    monkeypatch.setattr(module, "fingerprint", samples_only)
    monkeypatch.setattr(texts_module, "fingerprint", lambda *_: pytest.fail("computed again"))


def test_what_was_replaced_is_checked() -> None:
    for edges_checked in (False, True):
        graph = TextGraph(**parts(edges_checked=edges_checked))
        with pytest.raises(DataError, match="not symmetric"):
            replace(graph, col=moved(COL, 7, 2))


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


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


FILES = [f"{stem}{end}" for stem in ("text", "node_id") for end in ("", "_offsets")]
FILES += ["rowptr", "col", "label", "split_train", "split_valid", "split_test", "features"]


@pytest.fixture(params=["checked as a whole", "checked by samples"])
def either_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the snapshot is taken for a large one: samples of such small files hold every byte."""
    large = request.param == "checked by samples"
    if large:
        monkeypatch.setattr(module, "SAMPLED_BYTES", 0)
    return large


@pytest.mark.parametrize("damage", [Path.unlink, cut, emptied, flip])
@pytest.mark.parametrize("name", [*(f"{file}.npy" for file in FILES), "graph.json"])
def test_a_damaged_snapshot_is_an_error_that_names_the_folder(
    tmp_path: Path, name: str, damage: Callable[[Path], None], either_size: bool
) -> None:
    folder = tmp_path / "six"
    snapshot(folder, lambda: TextGraph(**parts()))
    if name == "graph.json" and damage is flip:
        (folder / name).write_text((folder / name).read_text().replace('"c"', '"d"'))
    else:
        damage(folder / name)
    refused(lambda: load_text_graph(folder), str(folder), "delete the folder to have it remade")


def test_a_large_snapshot_is_neither_hashed_nor_are_its_edges_checked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = TextGraph(**parts())
    save_text_graph(graph, tmp_path)
    monkeypatch.setattr(module, "SAMPLED_BYTES", 0)
    monkeypatch.setattr(module, "check_csr", lambda *_: pytest.fail("checked again"))
    expected = graph.fingerprint(), graph.texts.fingerprint()
    no_fingerprints(monkeypatch)
    back = load_text_graph(tmp_path)
    assert same(back, graph)
    assert (back.fingerprint(), back.texts.fingerprint()) == expected


def test_a_small_snapshot_is_hashed_as_a_whole(tmp_path: Path) -> None:
    """Though the samples are as recorded: whoever wrote the wrong fingerprint wrote them too."""
    save_text_graph(TextGraph(**parts()), tmp_path)
    meta = read_json(tmp_path / "graph.json")
    wrong = {"fingerprint": "0" * 16, "texts": meta["texts"]}
    sampled = module._hash_samples(tmp_path, meta["class_names"], wrong)
    write_json(tmp_path / "graph.json", {**meta, **wrong, "sampled": sampled})
    with pytest.raises(DataError, match="but 0000000000000000 was written"):
        load_text_graph(tmp_path)


def test_large_arrays_are_memory_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = TextGraph(**parts())
    save_text_graph(graph, tmp_path)
    arrays = ("rowptr", "col", "label", "features")
    small = load_text_graph(tmp_path)
    assert [isinstance(getattr(small, name), np.memmap) for name in arrays] == [False, False, False, True]
    monkeypatch.setattr(module, "MAPPED_BYTES", 0)
    mapped = load_text_graph(tmp_path)
    assert all(isinstance(getattr(mapped, name), np.memmap) for name in arrays)
    assert isinstance(mapped.texts.buffer.base, np.memmap)
    assert same(mapped, graph) and mapped.fingerprint() == graph.fingerprint()


def test_node_ids_are_read_where_they_lie_and_are_not_in_the_json(tmp_path: Path) -> None:
    save_text_graph(TextGraph(**parts()), tmp_path)
    assert "node_ids" not in read_json(tmp_path / "graph.json")
    ids = load_text_graph(tmp_path).node_ids
    assert isinstance(ids, Texts)
    assert ids == list("uvwxyz")
    assert ids.index("w") == 2
    assert pd.DataFrame({"node": ids})["node"].tolist() == list("uvwxyz")


def test_a_snapshot_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    """Node ids in the JSON, nothing to compare samples with: it is checked as a whole, however large."""
    graph = TextGraph(**parts())
    save_text_graph(graph, tmp_path)
    meta = {"name": "six", "class_names": ["a", "b", "c"], "origin": {"file": "six.csv", "repaired": 0}}
    write_json(tmp_path / "graph.json", {**meta, "node_ids": list("uvwxyz"), "fingerprint": "07055c5b163a4ffd"})
    for name in ("node_id", "node_id_offsets"):
        (tmp_path / f"{name}.npy").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SAMPLED_BYTES", 0)
        back = load_text_graph(tmp_path)
        assert same(back, graph)
        assert back.node_ids == list("uvwxyz")
        flip(tmp_path / "features.npy")
        with pytest.raises(DataError, match="content has fingerprint"):
            load_text_graph(tmp_path)


# ---- snapshots piece by piece -------------------------------------------------------------------------------------


def write_parts(folder: Path, *missing: str) -> dict[str, Any]:
    """The graph of `parts` without some files, as a loader writes it that never holds it in memory."""
    graph = parts()
    with TextsWriter(folder, 6) as texts:
        texts.put((node, graph["texts"][node]) for node in (4, 3, 1, 0, 5))
    with TextsWriter(folder, 6, "node_id") as ids:
        ids.put(enumerate(graph["node_ids"]))
    write_csr(np.stack([np.arange(4), np.arange(1, 5)]), 6, folder, memory_bytes=1000)
    for part, nodes in graph["split"].items():
        np.save(folder / f"split_{part}.npy", nodes)
    np.save(folder / "label.npy", graph["label"])
    np.save(folder / "features.npy", graph["features"])
    for name in missing:
        (folder / f"{name}.npy").unlink()
    return {name: graph[name] for name in ("name", "class_names", "origin")}


def test_a_snapshot_of_parts_is_that_of_the_graph(tmp_path: Path, either_size: bool) -> None:
    graph = TextGraph(**parts())
    made = snapshot_from_parts(tmp_path / "parts", write_parts)
    assert same(made, graph)
    assert made.fingerprint() == graph.fingerprint()
    snapshot(tmp_path / "whole", lambda: graph)
    assert (tmp_path / "parts" / "graph.json").read_text() == (tmp_path / "whole" / "graph.json").read_text()
    never = snapshot_from_parts(tmp_path / "parts", lambda _: pytest.fail("written again"))
    assert same(never, graph)


def test_features_and_node_ids_need_not_be_among_the_parts(tmp_path: Path) -> None:
    missing = ("features", "node_id", "node_id_offsets")
    bare = snapshot_from_parts(tmp_path / "parts", lambda folder: write_parts(folder, *missing))
    assert (bare.features, bare.node_ids) == (None, None)
    assert bare.fingerprint() == TextGraph(**parts(features=None, node_ids=None)).fingerprint()


@pytest.mark.parametrize("missing", ["text", "text_offsets", "rowptr", "col", "label", "split_test", "node_id_offsets"])
def test_a_missing_part_is_named(tmp_path: Path, missing: str) -> None:
    with pytest.raises(DataError, match=rf"^six: the parts of the graph are not complete \(.*{missing}\.npy"):
        snapshot_from_parts(tmp_path / "parts", lambda folder: write_parts(folder, missing))
    assert not list(tmp_path.glob("*parts"))


def test_parts_that_break_an_invariant_are_refused(tmp_path: Path, either_size: bool) -> None:
    def write(folder: Path) -> dict[str, Any]:
        about = write_parts(folder)
        np.save(folder / "col.npy", moved(COL, 7, 2))
        return about

    with pytest.raises(DataError, match=r"^six: the adjacency is not symmetric"):
        snapshot_from_parts(tmp_path / "parts", write)
    assert not (tmp_path / "parts").exists()


@pytest.mark.slow
def test_a_graph_is_made_of_parts_in_a_memory_smaller_than_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph of 84 MB; a quarter of that may be held at a time: texts, edges, checks and hashes go by blocks."""
    monkeypatch.setattr(module, "MAPPED_BYTES", 2_000_000)
    n, degree, budget = 200_000, 40, 4_000_000
    rng = np.random.default_rng(0)

    source = np.repeat(np.arange(n, dtype=np.int32), degree // 2)
    edges = np.stack([source, (source + np.tile(np.arange(1, degree // 2 + 1, dtype=np.int32), n)) % n])

    def write(folder: Path) -> dict[str, Any]:
        with TextsWriter(folder, n) as texts:
            texts.put((node, f"{node:>100}") for node in range(n))
        write_csr(edges, n, folder, memory_bytes=budget)
        features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, (n, 64))
        features[:] = 1
        np.save(folder / "label.npy", rng.integers(0, 4, n))
        for index, part in enumerate(("train", "valid", "test")):
            np.save(folder / f"split_{part}.npy", np.arange(index, n, 3))
        return {"name": "large", "class_names": list("abcd"), "origin": {}}

    peak = peak_of(lambda: snapshot_from_parts(tmp_path / "large", write))
    assert load_text_graph(tmp_path / "large").num_edges == n * degree // 2
    size = sum(file.stat().st_size for file in (tmp_path / "large").iterdir())
    assert size > 80_000_000
    assert peak < size / 4
